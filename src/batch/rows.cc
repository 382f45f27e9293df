#include "batch/rows.h"

#include <algorithm>
#include <cstddef>

#include "kernels/select.h"
#include "tensor/convert.h"
#include "tensor/strides.h"

namespace kvcache::internal {

TensorView packed_rows(const TensorView& rows, Layout layout, std::vector<std::byte>& scratch) {
  const KvExtents shape = kv_extents(rows, layout);
  const KvExtents strides = kv_strides(rows, layout);
  TensorView packed(rows.data, rows.dtype, {shape.batch * shape.length, shape.heads, shape.dim});
  if (shape.batch < 2 || shape.length < 2 || strides.batch == shape.length * strides.length) {
    packed.strides[0] = shape.length > 1 ? strides.length : strides.batch;
    packed.strides[1] = strides.heads;
    packed.strides[2] = strides.dim;
    return packed;
  }
  scratch.resize(static_cast<std::size_t>(packed.num_elements() * size_of(rows.dtype)));
  packed.data = scratch.data();
  const KvExtents dense{shape.length * packed.strides[0], packed.strides[1], packed.strides[0], 1};
  selected_rows().copy(row_copy(rows, kv_tensor(scratch.data(), rows.dtype, layout, shape, dense)));
  return packed;
}

MutableTensorView row_of(const MutableTensorView& rows, std::int64_t row) noexcept {
  MutableTensorView one;
  one.data = static_cast<std::byte*>(rows.data) + row * rows.strides[0] * size_of(rows.dtype);
  one.dtype = rows.dtype;
  one.device = rows.device;
  one.rank = 3;
  std::copy(rows.shape + 1, rows.shape + 4, one.shape);
  std::copy(rows.strides + 1, rows.strides + 4, one.strides);
  return one;
}

std::int64_t rows_held(const KvView& view, std::int32_t seq) noexcept {
  std::int64_t rows = 0;
  for (std::int32_t p = 0; p < view.num_parts; ++p) {
    const KvPart& part = view.parts[p];
    const std::int64_t first = part.first_held == nullptr ? 0 : part.first_held[seq];
    const std::int64_t hidden = part.first_visible == nullptr ? 0 : part.first_visible[seq];
    rows +=
        std::min<std::int64_t>(part.held_sink_tokens, first) + part.lengths[seq] - first - hidden;
  }
  return rows;
}

}  // namespace kvcache::internal
