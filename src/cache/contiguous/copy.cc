#include "cache/contiguous/copy.h"

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"
#include "kernels/select.h"

namespace kvcache::internal {
namespace {

// Rows [begin, end) of the flattened outer axes.
void store_range(const RowCopy& copy, std::int64_t begin, std::int64_t end) noexcept {
  while (begin < end) {
    const std::int64_t outer = begin / copy.shape[2];
    const std::int64_t at[3] = {outer / copy.shape[1], outer % copy.shape[1],
                                begin % copy.shape[2]};
    RowCopy piece = copy;
    piece.shape[0] = piece.shape[1] = 1;
    piece.shape[2] = std::min(end - begin, copy.shape[2] - at[2]);
    std::int64_t src = 0;
    std::int64_t dst = 0;
    for (int axis = 0; axis < 3; ++axis) {
      src += at[axis] * copy.src_strides[axis];
      dst += at[axis] * copy.dst_strides[axis];
    }
    piece.src = static_cast<const char*>(copy.src) + src;
    piece.dst = static_cast<char*>(copy.dst) + dst;
    selected_rows().store(piece);
    begin += piece.shape[2];
  }
}

}  // namespace

void store_rows_on(const ExecContext& context, const RowCopy& copy) noexcept {
  const std::int64_t rows = copy.shape[0] * copy.shape[1] * copy.shape[2];
  const std::int64_t bytes = rows * copy.shape[3] * size_of(copy.dst_dtype);
  if (bytes < kParallelBytes) return selected_rows().store(copy);
  for_each_range(context, rows, bytes, [&copy](std::int64_t begin, std::int64_t end) noexcept {
    store_range(copy, begin, end);
  });
}

}  // namespace kvcache::internal
