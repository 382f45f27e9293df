// Rows of a batch that goes forward together, between dense tensors and a cache that takes them
// packed and keeps them in pages.
#ifndef KVCACHE_SRC_BATCH_ROWS_H_
#define KVCACHE_SRC_BATCH_ROWS_H_

#include <cstdint>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"

namespace kvcache::internal {

// New rows [B, H, T, D] (the axes of `layout`) as [B * T, H, D]: the same memory where its strides
// allow it, else a copy in `scratch`. May throw bad_alloc. REQUIRES: expect_kv of the rows.
TensorView packed_rows(const TensorView& rows, Layout layout, std::vector<std::byte>& scratch);

// Row `row` of a batch [B, ..] of rank 4.
MutableTensorView row_of(const MutableTensorView& rows, std::int64_t row) noexcept;

// Rows that a view holds of a sequence.
std::int64_t rows_held(const KvView& view, std::int32_t seq) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BATCH_ROWS_H_
