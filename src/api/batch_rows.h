// Rows of a batch that goes forward together, between dense tensors and a cache that takes them
// packed and keeps them in pages.
#ifndef KVCACHE_SRC_API_BATCH_ROWS_H_
#define KVCACHE_SRC_API_BATCH_ROWS_H_

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

// Copies the keys, or the values, of a view's sequences, all of `length` rows and in one part, to
// rows [B, H, length, D] of any floating type. REQUIRES: expect_kv of the rows.
void copy_out(const KvView& view, bool keys, std::int64_t length, Layout layout,
              const MutableTensorView& rows, const ExecContext& context) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_API_BATCH_ROWS_H_
