// A block of rows to copy, with conversion between the floating types, and the loop over its rows.
// Plain, for files compiled for one instruction set too: it includes no template of the standard
// library.
#ifndef KVCACHE_SRC_TENSOR_ROW_COPY_H_
#define KVCACHE_SRC_TENSOR_ROW_COPY_H_

#include <cstdint>

#include "kvcache/types.h"

namespace kvcache::internal {

// A block of rows [n0, n1, n2, dim] to copy; any axis order, axis 3 being the row.
struct RowCopy {
  const void* src = nullptr;
  void* dst = nullptr;
  DType src_dtype = DType::kF32;
  DType dst_dtype = DType::kF32;
  std::int64_t shape[4] = {0, 0, 0, 0};
  std::int64_t src_strides[4] = {0, 0, 0, 0};  // bytes
  std::int64_t dst_strides[4] = {0, 0, 0, 0};  // bytes
};

// Calls fn(src, src_stride, dst, dst_stride, count) for each row, strides in bytes. Rows that
// follow one another without a gap on both sides are one long row. `src_size` and `dst_size` are
// those of an element. Fn is a type of the caller's own file, so that each has its own code.
//
// The inner loop goes over axis 2, or over axis 1 where axis 2 has a single row: one token of every
// head, as a decode step writes it.
template <typename Fn>
[[gnu::always_inline]] inline void for_each_row(const RowCopy& copy, std::int64_t src_size,
                                                std::int64_t dst_size, Fn fn) {
  const int inner = copy.shape[2] == 1 ? 1 : 2;
  const int outer = 3 - inner;
  std::int64_t length = copy.shape[3];
  std::int64_t rows = copy.shape[inner];
  if (copy.shape[0] <= 0 || copy.shape[outer] <= 0 || rows <= 0 || length <= 0) return;
  const std::int64_t src_row = copy.src_strides[inner];
  const std::int64_t dst_row = copy.dst_strides[inner];
  if (copy.src_strides[3] == src_size && copy.dst_strides[3] == dst_size &&
      src_row == length * src_size && dst_row == length * dst_size) {
    length *= rows;
    rows = 1;
  }
  const char* const src = static_cast<const char*>(copy.src);
  char* const dst = static_cast<char*>(copy.dst);
  for (std::int64_t i = 0; i < copy.shape[0]; ++i) {
    for (std::int64_t j = 0; j < copy.shape[outer]; ++j) {
      const char* from = src + i * copy.src_strides[0] + j * copy.src_strides[outer];
      char* to = dst + i * copy.dst_strides[0] + j * copy.dst_strides[outer];
      for (std::int64_t row = 0; row < rows; ++row, from += src_row, to += dst_row) {
        fn(from, copy.src_strides[3], to, copy.dst_strides[3], length);
      }
    }
  }
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_ROW_COPY_H_
