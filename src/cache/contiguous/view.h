// Contiguous rows as attention sees them.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_VIEW_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_VIEW_H_

#include <cstdint>

#include "cache/contiguous/layer.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "tensor/strides.h"

namespace kvcache::internal {

// See dense_part: a layer's rows, with one page of all its tokens per batch row. REQUIRES: rows of
// rank 4 in `layout`, fewer than 2^31 of them.
KvPart part_of(const KeyValueView& rows, Layout layout) noexcept;

// A tensor of rank 4 in `layout` with its axes in the order of attention, [B, H, L, D].
template <typename View>
View head_first(const View& tensor, Layout layout) noexcept {
  return kv_tensor(tensor.data, tensor.dtype, Layout::kHND, kv_extents(tensor, layout),
                   kv_strides(tensor, layout));
}

// Sizes, lengths and positions of a view are int32. Errors: kOutOfRange. May throw bad_alloc.
Status check_view_size(std::int64_t size);

// Rows of anybody's, or those of a layer, coded or plain: one sequence per batch row, one part.
// `first_position` is the position of row 0. Errors: kOutOfRange for sizes and positions past
// int32. May throw bad_alloc.
Result<OwnedKvView> view_of(const KeyValueView& rows, Layout layout, std::int64_t first_position);
Result<OwnedKvView> view_of(const ContiguousLayer& layer);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_VIEW_H_
