// Copying rows into pages and out of them.
#ifndef KVCACHE_SRC_CACHE_PAGED_ROWS_H_
#define KVCACHE_SRC_CACHE_PAGED_ROWS_H_

#include <cstdint>

#include "cache/paged/store.h"
#include "kvcache/executor.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

// Stores the new rows of one layer of `step`, k [num_new_tokens, num_kv_heads, k_head_dim] and v
// likewise, converted to the layer's format; the first time also the committed rows of the tails
// that the step copies. Allocates nothing.
// REQUIRES: usable floating tensors of those shapes.
void write_rows(PagedStore& store, PagedStep& step, std::int64_t layer, const TensorView& k,
                const TensorView& v, const ExecContext& context) noexcept;

// Copies the committed rows of `seq` in one layer to key and value, in the axis order of the
// store's layout, [H, S, D] or [S, H, D]. REQUIRES: usable floating tensors of those shapes.
void gather_rows(const PagedStore& store, const PagedSequence& seq, std::int64_t layer,
                 const MutableTensorView& key, const MutableTensorView& value,
                 const ExecContext& context) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_ROWS_H_
