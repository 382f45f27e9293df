// The running batch: arguments are checked here, once; rows are BatchingSlots', dense copies
// BatchingDense's, and the view that attention reads BatchingView's.
#include "kvcache/batching_cache.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "api/cache_impl.h"
#include "attention/check.h"
#include "attention/plan.h"
#include "base/door.h"
#include "base/expect.h"
#include "cache/contiguous/dense.h"
#include "cache/contiguous/slots.h"
#include "cache/contiguous/slots_view.h"
#include "cache/contiguous/view.h"
#include "cache/layer_check.h"
#include "tensor/strides.h"

namespace kvcache {

using internal::at_door;
using internal::ContiguousLayer;
using internal::expect_at_least;
using internal::expect_between;
using internal::kAnyExtent;
using internal::KvExtents;
using internal::LayeredStorage;
using internal::LayerShape;
using internal::refusal;

struct BatchingCache::Impl {
  Impl(std::int64_t num_slots, const BatchingOptions& batching, MemoryResource& memory)
      : options(batching), slots(num_slots, batching), dense(memory) {}

  // What update_and_fetch and attend have in common: the arguments of their append. Hidden: a class
  // within an exported class is exported too.
  [[gnu::visibility("hidden")]] Status check_append(const TensorView& key, const TensorView& value,
                                                    std::int64_t layer, LayerShape* shape,
                                                    std::int64_t* count) const;

  BatchingOptions options;
  internal::BatchingSlots slots;
  internal::BatchingDense dense;
  internal::BatchingView view;
  internal::Plan plan;
  std::vector<std::int32_t> qo_indptr;
  BatchingStats stats;  // without the bytes that growth copied
};

Status BatchingCache::Impl::check_append(const TensorView& key, const TensorView& value,
                                         std::int64_t layer, LayerShape* shape,
                                         std::int64_t* count) const {
  KVC_RETURN_IF_ERROR(slots.check_layer(layer));
  KVC_RETURN_IF_ERROR(slots.check_rows(layer, key, value, shape));
  for (const TensorView* tensor : {&key, &value}) {
    if (dense.owns(tensor->data)) {
      return refusal(tensor == &key ? "key" : "value", "a result of update_and_fetch",
                     "memory outside of the batch");
    }
  }
  *count = internal::kv_extents(key, options.layout).length;
  return slots.check_bounds(layer, *count);
}

inline namespace v1 {

BatchingCache::BatchingCache(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
BatchingCache::BatchingCache(BatchingCache&&) noexcept = default;
BatchingCache& BatchingCache::operator=(BatchingCache&&) noexcept = default;
BatchingCache::~BatchingCache() = default;

Result<BatchingCache> BatchingCache::create(std::int64_t max_active_requests,
                                            const BatchingOptions& options) {
  return at_door([&]() -> Result<BatchingCache> {
    constexpr std::int64_t kMaxSlots = 1 << 16;
    KVC_RETURN_IF_ERROR(expect_between("max_active_requests", max_active_requests, 1, kMaxSlots));
    if (options.num_layers) {
      KVC_RETURN_IF_ERROR(
          expect_between("num_layers", *options.num_layers, 1, internal::kMaxLayers));
    }
    if (options.max_seq_len) {
      KVC_RETURN_IF_ERROR(expect_at_least("max_seq_len", *options.max_seq_len, 1));
    }
    // The rest is what every cache is given.
    CacheOptions cache;
    cache.dtype = options.dtype;
    cache.layout = options.layout;
    cache.memory = options.memory;
    KVC_RETURN_IF_ERROR(Cache::Impl::create(cache, 0, 0).status());
    MemoryResource& memory = options.memory != nullptr ? *options.memory : system_memory();
    return BatchingCache(std::make_unique<Impl>(max_active_requests, options, memory));
  });
}

Status BatchingCache::add_request(Cache& cache, std::int64_t id) {
  return at_door([&]() -> Status {
    internal::BatchingSlots& slots = impl_->slots;
    KVC_RETURN_IF_ERROR(slots.check_id(id));
    if (slots.find(id) != nullptr) {
      return refusal("id", "slot " + std::to_string(id) + " occupied", "a free one");
    }
    Cache::Impl& given = *cache.impl_;
    const internal::StorageOptions& forms = given.storage.options();
    KVC_RETURN_IF_ERROR(
        internal::check_plain("cache", LayerSpec::kv(1, 1, 1, forms.keys, forms.values)));
    KVC_RETURN_IF_ERROR(slots.check_request(given.storage));
    slots.add(id, &given.storage, LayeredStorage(given.storage.options(), given.fixed_layers));
    return {};
  });
}

Status BatchingCache::remove_request(std::int64_t id) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(impl_->slots.check_occupied(id));
    impl_->slots.remove(id);
    return {};
  });
}

Result<BatchFetch> BatchingCache::update_and_fetch(const TensorView& key, const TensorView& value,
                                                   std::optional<std::int64_t> mask_length,
                                                   const Mask& mask, std::int64_t layer,
                                                   const ExecContext& context) {
  return at_door([&]() -> Result<BatchFetch> {
    Impl& self = *impl_;
    internal::DenseShape shape;
    std::int64_t count = 0;
    KVC_RETURN_IF_ERROR(self.check_append(key, value, layer, &shape.layer, &count));
    KVC_RETURN_IF_ERROR(internal::check_mask_length(mask_length, key, self.options.layout));
    shape.slots = self.slots.size();
    shape.new_tokens = count;
    for (std::int64_t id = 0; id < shape.slots; ++id) {
      const LayeredStorage* slot = self.slots.find(id);
      if (slot == nullptr) continue;
      shape.length = std::max(shape.length, slot->length_after(layer, count, {}));
    }
    KVC_RETURN_IF_ERROR(internal::check_fetch_mask(mask, shape));
    if (mask.kind == MaskKind::kAdditive && self.dense.owns(mask.tensor.data)) {
      return refusal("mask", "a result of update_and_fetch", "memory outside of the batch");
    }

    const std::int64_t active = count > 0 ? self.slots.active() : 0;
    if (active == 0) {
      KVC_RETURN_IF_ERROR(self.dense.make_room(shape));
    } else {
      KVC_RETURN_IF_ERROR(self.slots.append(layer, shape.layer, key, value, context));
      const Status room = at_door([&]() -> Status { return self.dense.make_room(shape); });
      if (!room.ok()) {
        self.slots.take_back(layer);
        return room;
      }
      self.slots.keep(layer, shape.layer);
    }
    self.stats.rows_appended += active * count;
    return self.dense.fill(self.slots.layers(layer), shape, mask, context,
                           &self.stats.copied_bytes);
  });
}

Status BatchingCache::attend(const TensorView& q, const TensorView& key, const TensorView& value,
                             const MutableTensorView& out, std::int64_t layer,
                             const AttentionOptions& options, const ExecContext& context) {
  return at_door([&]() -> Status {
    Impl& self = *impl_;
    const Layout layout = self.options.layout;
    LayerShape shape;
    std::int64_t count = 0;
    KVC_RETURN_IF_ERROR(self.check_append(key, value, layer, &shape, &count));
    const std::int64_t slots = self.slots.size();
    KVC_RETURN_IF_ERROR(
        internal::expect_kv("q", q, layout, {slots, kAnyExtent, count, shape.key().dim}));
    const std::int64_t num_heads = internal::kv_extents(q, layout).heads;
    KVC_RETURN_IF_ERROR(
        internal::expect_kv("out", out, layout, {slots, num_heads, count, shape.value().dim}));
    const TensorView queries = internal::head_first(q, layout);
    const MutableTensorView results = internal::head_first(out, layout);
    std::vector<std::int32_t>& qo_indptr = self.qo_indptr;
    KVC_RETURN_IF_ERROR(
        internal::dense_qo_indptr(queries, static_cast<std::int32_t>(slots), &qo_indptr));

    const std::int64_t active = count > 0 ? self.slots.active() : 0;
    if (active > 0) KVC_RETURN_IF_ERROR(self.slots.append(layer, shape, key, value, context));
    const Status attended = at_door([&]() -> Status {
      KVC_RETURN_IF_ERROR(self.view.build(self.slots.layers(layer), shape));
      const KvView& view = self.view.view();
      KVC_RETURN_IF_ERROR(self.plan.plan(view, qo_indptr, num_heads, options, context));
      return self.plan.run(queries, view, results, {}, options, context);
    });
    if (active > 0) {
      if (attended.ok()) {
        self.slots.keep(layer, shape);
      } else {
        self.slots.take_back(layer);
      }
    }
    if (!attended.ok()) return attended;
    self.stats.rows_appended += active * count;
    self.stats.rows_read += self.plan.rows_read();
    return {};
  });
}

Status BatchingCache::rewind(std::int64_t id, std::int64_t n) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(impl_->slots.check_occupied(id));
    KVC_RETURN_IF_ERROR(expect_at_least("n", n, 0));
    LayeredStorage& slot = *impl_->slots.find(id);
    const std::int64_t shortest = slot.shortest_length();
    if (n > shortest) {
      return refusal(StatusCode::kOutOfRange, "n", n,
                     "at most the length of the shortest layer, " + std::to_string(shortest));
    }
    slot.rewind(n);
    return {};
  });
}

Status BatchingCache::truncate(std::int64_t id, std::int64_t n) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(impl_->slots.check_occupied(id));
    KVC_RETURN_IF_ERROR(expect_at_least("n", n, 0));
    impl_->slots.find(id)->truncate(n);
    return {};
  });
}

Result<std::int64_t> BatchingCache::seq_length(std::int64_t id, std::int64_t layer) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(impl_->slots.check_occupied(id));
    KVC_RETURN_IF_ERROR(impl_->slots.check_layer(layer));
    const ContiguousLayer* rows = impl_->slots.find(id)->find(layer);
    return rows != nullptr ? rows->length() : 0;
  });
}

Result<std::int64_t> BatchingCache::next_position(std::int64_t id, std::int64_t layer) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(impl_->slots.check_occupied(id));
    KVC_RETURN_IF_ERROR(impl_->slots.check_layer(layer));
    const ContiguousLayer* rows = impl_->slots.find(id)->find(layer);
    return rows != nullptr ? rows->first_position() + rows->length() : 0;
  });
}

std::int64_t BatchingCache::active() const noexcept { return impl_->slots.active(); }

std::int64_t BatchingCache::max_active() const noexcept { return impl_->slots.size(); }

bool BatchingCache::occupied(std::int64_t id) const noexcept {
  return id >= 0 && id < max_active() && impl_->slots.find(id) != nullptr;
}

std::int64_t BatchingCache::nbytes() const noexcept {
  std::int64_t bytes = 0;
  for (std::int64_t id = 0; id < max_active(); ++id) {
    if (const LayeredStorage* slot = impl_->slots.find(id)) bytes += slot->stored_bytes();
  }
  return bytes;
}

std::int64_t BatchingCache::reserved_bytes() const noexcept {
  std::int64_t bytes = impl_->dense.committed_bytes();
  for (std::int64_t id = 0; id < max_active(); ++id) {
    if (const LayeredStorage* slot = impl_->slots.find(id)) bytes += slot->committed_bytes();
  }
  return bytes;
}

BatchingStats BatchingCache::stats() const noexcept {
  BatchingStats stats = impl_->stats;
  stats.copied_bytes += impl_->slots.copied_bytes();
  return stats;
}

}  // namespace v1
}  // namespace kvcache
