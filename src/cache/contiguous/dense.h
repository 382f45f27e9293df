// Dense, right-aligned copies of a batch's rows, with the mask that goes with them.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_DENSE_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_DENSE_H_

#include <cstdint>
#include <memory>
#include <span>

#include "cache/contiguous/geometry.h"
#include "cache/contiguous/layer.h"
#include "kvcache/batching_cache.h"
#include "kvcache/executor.h"
#include "kvcache/mask.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

// How large: all of BatchFetch's shapes.
struct DenseShape {
  LayerShape layer;  // of one slot
  std::int64_t slots = 0;
  std::int64_t new_tokens = 0;  // L
  std::int64_t length = 0;      // S_max
};

// Shape and type of a mask against [slots, 1, L, S_max]. Errors: kInvalidArgument. May throw
// bad_alloc.
Status check_fetch_mask(const Mask& mask, const DenseShape& shape);

// The memory behind the results of update_and_fetch, used again by the next one.
class BatchingDense {
 public:
  explicit BatchingDense(MemoryResource& memory) noexcept : memory_(&memory) {}

  // Room for results of this shape; earlier ones stay as they are. Errors: kOutOfMemory. May throw
  // bad_alloc.
  Status make_room(const DenseShape& shape);

  // Rows of slots (null: idle) and mask; adds the bytes of rows it copied to `*copied`.
  // REQUIRES: room for them, a mask that passed its check.
  BatchFetch fill(std::span<const ContiguousLayer* const> slots, const DenseShape& shape,
                  const Mask& mask, const ExecContext& context, std::int64_t* copied) noexcept;

  // Whether a pointer leads into this memory.
  bool owns(const void* pointer) const noexcept;

  std::int64_t committed_bytes() const noexcept { return mapping_ ? mapping_->committed : 0; }

 private:
  MemoryResource* memory_;
  std::shared_ptr<Mapping> mapping_;  // committed from its start; none: never used
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_DENSE_H_
