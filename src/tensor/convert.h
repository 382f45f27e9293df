// Copying rows with conversion between the floating types: the definition of what the row kernels
// of a backend do (kernels/backend.h), in plain loops.
#ifndef KVCACHE_SRC_TENSOR_CONVERT_H_
#define KVCACHE_SRC_TENSOR_CONVERT_H_

#include <cstdint>

#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "tensor/row_copy.h"

namespace kvcache::internal {

// dst[i] = src[i * src_stride] for i < count, rounded to dst_dtype (f16 <-> bf16 goes through
// float). `src_stride` counts elements and may be 0 or negative; dst is dense. Equal types are
// copied bit for bit. No alignment is needed.
// REQUIRES: both types floating; src and dst do not overlap.
void convert_row(const void* src, DType src_dtype, std::int64_t src_stride, void* dst,
                 DType dst_dtype, std::int64_t count) noexcept;

// Copies the whole block, converting. Equal types with dense rows on both sides are memcpy; the
// innermost of the three outer axes is merged into it where it is dense on both sides as well.
// REQUIRES: both types floating; src and dst do not overlap.
void copy_rows(const RowCopy& copy) noexcept;

// The copy of all of `src` onto `dst`, axis by axis. REQUIRES: both of rank 4, equal shapes.
RowCopy row_copy(const TensorView& src, const MutableTensorView& dst) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CONVERT_H_
