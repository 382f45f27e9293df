// The layered caches: arguments are checked here, once; the work is LayeredStorage's.
#include "kvcache/cache.h"

#include <algorithm>
#include <string>
#include <vector>

#include "api/cache_impl.h"
#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"
#include "cache/contiguous/view.h"
#include "cache/layer_check.h"
#include "kernels/select.h"
#include "tensor/codecs/codec.h"
#include "tensor/strides.h"

namespace kvcache {
namespace {

using internal::at_door;
using internal::ContiguousLayer;
using internal::expect_at_least;
using internal::kAnyExtent;
using internal::kv_extents;
using internal::KvExtents;
using internal::LayeredStorage;
using internal::LayerShape;
using internal::refusal;
using internal::RowTargets;

// Batch, heads and head size may not be empty; the number of tokens may.
Status check_sizes(const char* name, const TensorView& tensor, Layout layout) {
  const KvExtents e = kv_extents(tensor, layout);
  if (e.batch > 0 && e.heads > 0 && e.dim > 0) return {};
  return refusal(name, internal::describe(tensor), "a batch, heads and a head size of at least 1");
}

// Key and value agree with each other, and with the layer if it has a shape.
Status check_rows(const TensorView& key, const TensorView& value, Layout layout,
                  const ContiguousLayer* layer) {
  KvExtents expected{kAnyExtent, kAnyExtent, kAnyExtent, kAnyExtent};
  if (layer != nullptr) {
    const LayerShape& s = layer->shape();
    expected = {s.batch, s.heads(), kAnyExtent, s.key().dim};
  }
  KVC_RETURN_IF_ERROR(internal::expect_kv("key", key, layout, expected));
  KVC_RETURN_IF_ERROR(check_sizes("key", key, layout));
  expected = kv_extents(key, layout);
  expected.dim = layer != nullptr ? layer->shape().value().dim : kAnyExtent;
  KVC_RETURN_IF_ERROR(internal::expect_kv("value", value, layout, expected));
  KVC_RETURN_IF_ERROR(check_sizes("value", value, layout));
  if (layer == nullptr) return {};
  for (const TensorView* tensor : {&key, &value}) {
    if (layer->owns(tensor->data)) {
      return refusal(tensor == &key ? "key" : "value", "rows of this layer itself",
                     "memory outside of it");
    }
  }
  return {};
}

// Where new tokens go. `rows` holds the positions that `targets` points into.
Status read_targets(const TensorView& cache_position, const KvExtents& key,
                    std::vector<std::int64_t>* rows, RowTargets* targets) {
  constexpr const char* kName = "cache_position";
  KVC_RETURN_IF_ERROR(internal::expect_tensor(kName, cache_position));
  switch (cache_position.rank) {
    case 0:
      if (key.length != 1) {
        return refusal(kName, "a scalar for " + std::to_string(key.length) + " new tokens",
                       "one token");
      }
      break;
    case 1:
      KVC_RETURN_IF_ERROR(internal::expect_shape(kName, cache_position, {key.length}));
      break;
    case 2:
      KVC_RETURN_IF_ERROR(internal::expect_shape(kName, cache_position, {key.batch, key.length}));
      break;
    default:
      return refusal(kName, internal::describe(cache_position), "a scalar, [T] or [B, T]");
  }
  KVC_ASSIGN_OR_RETURN(*rows, internal::read_indices(kName, cache_position));
  for (std::int64_t row : *rows) {
    KVC_RETURN_IF_ERROR(expect_at_least(kName, row, 0));
    targets->max_row = std::max(targets->max_row, row);
  }
  targets->kind = cache_position.rank == 2 ? RowTargets::kPerBatchRow : RowTargets::kShared;
  targets->rows = rows->data();
  return {};
}

// Head sizes that the forms allow.
Status check_forms(const TensorView& key, const TensorView& value,
                   const internal::StorageOptions& options) {
  for (const bool is_key : {true, false}) {
    const RowFormat& format = is_key ? options.keys : options.values;
    const TensorView& rows = is_key ? key : value;
    const char* const wanted =
        internal::wanted_elements(format, kv_extents(rows, options.layout).dim);
    if (wanted == nullptr) continue;
    return refusal(is_key ? "key" : "value", internal::describe(rows),
                   std::string("a head size of ") + wanted + " for " + name_of(format.kind));
  }
  return {};
}

Status check_capacity(const LayeredStorage& storage, std::int64_t layer_idx, std::int64_t count,
                      const RowTargets& targets) {
  const std::int64_t capacity = storage.options().fixed_capacity;
  if (capacity == 0 || storage.length_after(layer_idx, count, targets) <= capacity) return {};
  const ContiguousLayer* layer = storage.find(layer_idx);
  const std::string length = std::to_string(layer != nullptr ? layer->length() : 0);
  if (targets.kind == RowTargets::kAppend) {
    return refusal(StatusCode::kOutOfRange, "key",
                   std::to_string(count) + " new tokens after a length of " + length,
                   "at most the capacity of " + std::to_string(capacity));
  }
  return refusal(StatusCode::kOutOfRange, "cache_position",
                 std::to_string(targets.max_row) + " at a length of " + length,
                 "less than the capacity of " + std::to_string(capacity));
}

// [B, H, 0, D] of what an update without tokens brought.
TensorView without_tokens(TensorView tensor, Layout layout, std::optional<DType> dtype) {
  tensor.shape[internal::axes_of(layout).seq] = 0;
  tensor.dtype = dtype.value_or(tensor.dtype);
  tensor.data = nullptr;
  return tensor;
}

}  // namespace

Result<std::unique_ptr<Cache::Impl>> Cache::Impl::create(const CacheOptions& options,
                                                         std::int64_t capacity,
                                                         std::int64_t num_layers) {
  if (options.dtype && !is_floating(*options.dtype)) {
    return refusal("dtype", name_of(*options.dtype), "f32, f16 or bf16");
  }
  if (options.layout != Layout::kHND && options.layout != Layout::kNHD) {
    return refusal("layout", static_cast<std::int64_t>(options.layout), "hnd or nhd");
  }
  KVC_RETURN_IF_ERROR(internal::check_format("keys", options.keys));
  KVC_RETURN_IF_ERROR(internal::check_format("values", options.values));
  KVC_RETURN_IF_ERROR(expect_at_least("reserve_tokens", options.reserve_tokens, 1));
  MemoryResource& memory = options.memory != nullptr ? *options.memory : system_memory();
  KVC_RETURN_IF_ERROR(internal::expect_backend("memory", memory.device()));
  internal::StorageOptions storage;
  storage.dtype = options.dtype;
  storage.keys = options.keys;
  storage.values = options.values;
  storage.layout = options.layout;
  storage.fixed_capacity = capacity;
  storage.reserve_tokens = options.reserve_tokens;
  storage.memory = &memory;
  return std::make_unique<Impl>(storage, num_layers);
}

Status Cache::Impl::check_layer(std::int64_t layer) const {
  const std::int64_t end = fixed_layers > 0 ? fixed_layers : internal::kMaxLayers;
  if (layer >= 0 && layer < end) return {};
  return refusal(StatusCode::kOutOfRange, "layer_idx", layer, "0 .. " + std::to_string(end - 1));
}

Result<std::unique_ptr<Cache::Impl>> Cache::Impl::clone() const {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<LayeredStorage> rows, storage.clone(ExecContext{}));
  return std::make_unique<Impl>(std::move(*rows), fixed_layers);
}

Result<KeyValueView> Cache::Impl::rows(std::int64_t layer) const {
  const ContiguousLayer* found = storage.find(layer);
  if (found == nullptr) return KeyValueView{};
  if (!found->is_coded()) return found->rows();
  const std::lock_guard lock(mutex);
  const auto place = static_cast<std::size_t>(layer);
  if (decoded.size() <= place) decoded.resize(place + 1);
  if (decoded[place] != nullptr) return decoded[place]->rows();
  KVC_ASSIGN_OR_RETURN(
      std::shared_ptr<internal::DecodedRows> room,
      internal::DecodedRows::make(found->shape(), found->length(), *storage.options().memory));
  return hand_out(layer, std::move(room), {});
}

KeyValueView Cache::Impl::hand_out(std::int64_t layer, std::shared_ptr<internal::DecodedRows> room,
                                   const ExecContext& context) const noexcept {
  decoded_bytes += room->fill(*storage.find(layer), context);
  auto& copy = decoded[static_cast<std::size_t>(layer)];
  copy = std::move(room);
  return copy->rows();
}

Status internal::check_mask_length(std::optional<std::int64_t> mask_length, const TensorView& key,
                                   Layout layout) {
  if (!mask_length || key.rank != 4) return {};
  const std::int64_t count = kv_extents(key, layout).length;
  if (*mask_length == count) return {};
  return refusal("mask_length", *mask_length,
                 "none or the " + std::to_string(count) + " new tokens of key");
}

inline namespace v1 {

Cache::Cache(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Cache::Cache(Cache&&) noexcept = default;
Cache& Cache::operator=(Cache&&) noexcept = default;
Cache::~Cache() = default;

Result<KeyValueView> Cache::update(const TensorView& key, const TensorView& value,
                                   std::int64_t layer_idx, const TensorView& cache_position,
                                   const ExecContext& context) {
  return store(key, value, layer_idx, cache_position, true, context);
}

Status Cache::append(const TensorView& key, const TensorView& value, std::int64_t layer_idx,
                     const ExecContext& context) {
  return store(key, value, layer_idx, {}, false, context).status();
}

Result<KeyValueView> Cache::store(const TensorView& key, const TensorView& value,
                                  std::int64_t layer_idx, const TensorView& cache_position,
                                  bool hand_out, const ExecContext& context) {
  return at_door([&]() -> Result<KeyValueView> {
    LayeredStorage& storage = impl_->storage;
    const Layout layout = storage.options().layout;
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer_idx));
    const ContiguousLayer* layer = storage.find(layer_idx);
    KVC_RETURN_IF_ERROR(check_rows(key, value, layout, layer));
    KVC_RETURN_IF_ERROR(check_forms(key, value, storage.options()));
    const KvExtents extents = kv_extents(key, layout);
    RowTargets targets;
    std::vector<std::int64_t> rows;
    if (cache_position.defined()) {
      KVC_RETURN_IF_ERROR(read_targets(cache_position, extents, &rows, &targets));
    }
    if (extents.length == 0) {
      if (layer != nullptr) return hand_out ? impl_->rows(layer_idx) : KeyValueView{};
      const std::optional<DType> dtype = storage.options().dtype;
      return KeyValueView{without_tokens(key, layout, dtype), without_tokens(value, layout, dtype)};
    }
    KVC_RETURN_IF_ERROR(check_capacity(storage, layer_idx, extents.length, targets));
    if (!storage.is_coded()) {
      KVC_RETURN_IF_ERROR(storage.update(layer_idx, key, value, targets, context));
      return storage.find(layer_idx)->rows();
    }
    KVC_RETURN_IF_ERROR(storage.check_codes(key, value, context));
    // What is handed out has its room before anything changes.
    std::shared_ptr<internal::DecodedRows> room;
    if (hand_out) {
      const auto place = static_cast<std::size_t>(layer_idx);
      if (impl_->decoded.size() <= place) impl_->decoded.resize(place + 1);
      KVC_ASSIGN_OR_RETURN(
          room,
          internal::DecodedRows::make(
              layer != nullptr ? layer->shape() : storage.shape_of(key, value),
              storage.length_after(layer_idx, extents.length, targets), *storage.options().memory));
    }
    KVC_RETURN_IF_ERROR(storage.update(layer_idx, key, value, targets, context));
    impl_->changed();
    return hand_out ? impl_->hand_out(layer_idx, std::move(room), context) : KeyValueView{};
  });
}

Result<KeyValueView> Cache::get(std::int64_t layer_idx) const {
  return at_door([&]() -> Result<KeyValueView> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer_idx));
    return impl_->rows(layer_idx);
  });
}

Result<OwnedKvView> Cache::view(std::int64_t layer_idx) const {
  return at_door([&]() -> Result<OwnedKvView> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer_idx));
    const ContiguousLayer* layer = impl_->storage.find(layer_idx);
    if (layer == nullptr) {
      return refusal(StatusCode::kNotFound, "layer_idx", layer_idx, "a layer with rows");
    }
    return internal::view_of(*layer);
  });
}

Result<std::int64_t> Cache::seq_length(std::int64_t layer_idx) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer_idx));
    const ContiguousLayer* layer = impl_->storage.find(layer_idx);
    return layer != nullptr ? layer->length() : 0;
  });
}

Result<std::int64_t> Cache::next_position(std::int64_t layer_idx) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer_idx));
    const ContiguousLayer* layer = impl_->storage.find(layer_idx);
    return layer != nullptr ? layer->first_position() + layer->length() : 0;
  });
}

std::optional<std::int64_t> Cache::max_length() const noexcept {
  const std::int64_t capacity = impl_->storage.options().fixed_capacity;
  return capacity > 0 ? std::optional<std::int64_t>(capacity) : std::nullopt;
}

std::int64_t Cache::num_layers() const noexcept { return impl_->storage.num_layers(); }

Layout Cache::layout() const noexcept { return impl_->storage.options().layout; }

Status Cache::batch_select(const TensorView& indices, const ExecContext& context) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(internal::expect_tensor("indices", indices));
    KVC_RETURN_IF_ERROR(internal::expect_rank("indices", indices, 1));
    KVC_ASSIGN_OR_RETURN(const std::vector<std::int64_t> list,
                         internal::read_indices("indices", indices));
    if (list.empty()) {
      return refusal("indices", "none", "at least one");
    }
    const auto [smallest, largest] = std::minmax_element(list.begin(), list.end());
    if (*smallest < 0) {
      return refusal(StatusCode::kOutOfRange, "indices", *smallest, "at least 0");
    }
    LayeredStorage& storage = impl_->storage;
    for (std::int64_t i = 0; i < storage.num_layers(); ++i) {
      const ContiguousLayer* layer = storage.find(i);
      if (layer != nullptr && *largest >= layer->shape().batch) {
        return refusal(StatusCode::kOutOfRange, "indices", *largest,
                       "0 .. " + std::to_string(layer->shape().batch - 1));
      }
    }
    internal::BatchGather gather;
    gather.count = static_cast<std::int64_t>(list.size());
    gather.indices = list.data();
    KVC_RETURN_IF_ERROR(storage.gather_batch(gather, context));
    impl_->changed();
    return {};
  });
}

Status Cache::batch_repeat_interleave(std::int64_t n, const ExecContext& context) {
  return at_door([&]() -> Status {
    if (n < 1) return refusal("n", n, "at least 1");
    if (n == 1) return {};
    internal::BatchGather gather;
    gather.repeat = n;
    KVC_RETURN_IF_ERROR(impl_->storage.gather_batch(gather, context));
    impl_->changed();
    return {};
  });
}

Status Cache::crop(std::int64_t n, const ExecContext& context) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_at_least("n", n, 0));
    impl_->storage.crop(n, context);
    impl_->changed();
    return {};
  });
}

Status Cache::truncate(std::int64_t n) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_at_least("n", n, 0));
    impl_->storage.truncate(n);
    impl_->changed();
    return {};
  });
}

Status Cache::rewind(std::int64_t n) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_at_least("n", n, 0));
    const std::int64_t shortest = impl_->storage.shortest_length();
    if (n > shortest) {
      return refusal(StatusCode::kOutOfRange, "n", n,
                     "at most the length of the shortest layer, " + std::to_string(shortest));
    }
    impl_->storage.rewind(n);
    impl_->changed();
    return {};
  });
}

Status Cache::rewind_layer(std::int64_t layer_idx, std::int64_t n) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer_idx));
    KVC_RETURN_IF_ERROR(expect_at_least("n", n, 0));
    const ContiguousLayer* layer = impl_->storage.find(layer_idx);
    const std::int64_t length = layer != nullptr ? layer->length() : 0;
    if (n > length) {
      return refusal(StatusCode::kOutOfRange, "n", n,
                     "at most the length of layer " + std::to_string(layer_idx) + ", " +
                         std::to_string(length));
    }
    if (layer != nullptr) impl_->storage.set_length(layer_idx, length - n);
    impl_->changed();
    return {};
  });
}

void Cache::reset() noexcept {
  impl_->storage.reset();
  impl_->changed();
}

void Cache::shrink() noexcept {
  impl_->storage.shrink();
  impl_->changed();
}

std::int64_t Cache::nbytes() const noexcept { return impl_->storage.stored_bytes(); }

std::int64_t Cache::reserved_bytes() const noexcept { return impl_->storage.committed_bytes(); }

std::int64_t Cache::copied_bytes() const noexcept {
  const std::lock_guard lock(impl_->mutex);
  return impl_->storage.copied_bytes() + impl_->decoded_bytes;
}

std::int64_t Cache::rows_encoded() const noexcept { return impl_->storage.rows_encoded(); }

Result<std::shared_ptr<const void>> Cache::retain(std::int64_t layer_idx) const {
  return at_door([&]() -> Result<std::shared_ptr<const void>> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer_idx));
    const ContiguousLayer* layer = impl_->storage.find(layer_idx);
    if (layer == nullptr) return std::shared_ptr<const void>();
    struct Held {
      std::shared_ptr<const void> rows, decoded;
    };
    if (!layer->is_coded()) return std::shared_ptr<const void>(layer->mapping());
    const std::lock_guard lock(impl_->mutex);
    const auto place = static_cast<std::size_t>(layer_idx);
    const bool out = place < impl_->decoded.size();
    return std::shared_ptr<const void>(
        std::make_shared<Held>(Held{layer->mapping(), out ? impl_->decoded[place] : nullptr}));
  });
}

}  // namespace v1
}  // namespace kvcache
