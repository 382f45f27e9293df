// The slots of a batch: whose rows they hold, what the requests agree in, and the append that
// reaches all of them or none.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_SLOTS_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_SLOTS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cache/contiguous/geometry.h"
#include "cache/contiguous/layer.h"
#include "cache/contiguous/storage.h"
#include "kvcache/batching_cache.h"
#include "kvcache/executor.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"

namespace kvcache::internal {

class BatchingSlots {
 public:
  // May throw bad_alloc.
  BatchingSlots(std::int64_t num_slots, const BatchingOptions& options);

  std::int64_t size() const noexcept { return static_cast<std::int64_t>(slots_.size()); }
  std::int64_t active() const noexcept;
  // Null for an empty slot. REQUIRES: 0 <= id < size().
  LayeredStorage* find(std::int64_t id) noexcept {
    auto& slot = slots_[static_cast<std::size_t>(id)];
    return slot ? &*slot : nullptr;
  }
  const LayeredStorage* find(std::int64_t id) const noexcept {
    return const_cast<BatchingSlots*>(this)->find(id);
  }

  // --- Checks. All may throw bad_alloc. ---

  Status check_id(std::int64_t id) const;        // kOutOfRange
  Status check_occupied(std::int64_t id) const;  // kOutOfRange, kNotFound
  Status check_layer(std::int64_t layer) const;  // kOutOfRange
  // Whether a cache may take a free slot.
  Status check_request(const LayeredStorage& request) const;
  // Key and value for an append to `layer`; `*shape` becomes that of the layer, batch 1.
  Status check_rows(std::int64_t layer, const TensorView& key, const TensorView& value,
                    LayerShape* shape) const;
  // Room for `count` more tokens by the bounds of the batch and of its requests.
  Status check_bounds(std::int64_t layer, std::int64_t count) const;

  // --- Changes. ---

  // `request` moves into the slot, `empty` takes its place. REQUIRES: a free slot, check_request
  // passed. May throw bad_alloc, unchanged.
  void add(std::int64_t id, LayeredStorage* request, LayeredStorage empty);
  void remove(std::int64_t id) noexcept { slots_[static_cast<std::size_t>(id)].reset(); }

  // Appends row b of key and value to every occupied slot b. Errors: kOutOfMemory, unchanged. May
  // throw bad_alloc, unchanged. REQUIRES: the checks above passed. Until keep() or take_back(),
  // one of which must follow, nothing else may be called but `layers`.
  Status append(std::int64_t layer, const LayerShape& shape, const TensorView& key,
                const TensorView& value, const ExecContext& context);
  void keep(std::int64_t layer, const LayerShape& shape) noexcept;
  void take_back(std::int64_t layer) noexcept;

  // One layer of every slot, null where the slot is empty or has no rows in it. Valid until the
  // next call.
  std::span<const ContiguousLayer* const> layers(std::int64_t layer) noexcept;

  // Bytes that growth had to copy since construction, for requests of this batch.
  std::int64_t copied_bytes() const noexcept { return copied_bytes_; }

 private:
  Status check_request_layer(std::int64_t layer, const ContiguousLayer& rows) const;
  const LayerShape* known_shape(std::int64_t layer) const noexcept;

  Layout layout_;
  std::optional<std::int64_t> max_seq_len_;
  std::int64_t num_layers_;                        // 0: not known yet
  std::optional<DType> dtype_;                     // none: of the first rows
  std::vector<std::optional<LayerShape>> shapes_;  // of the layers seen so far, batch 1
  std::vector<std::optional<LayeredStorage>> slots_;
  std::vector<ContiguousLayer::Mark> marks_;    // [slots], of the append that is open
  std::vector<const ContiguousLayer*> layers_;  // [slots]
  std::int64_t copied_bytes_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_SLOTS_H_
