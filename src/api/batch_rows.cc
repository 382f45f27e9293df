#include "api/batch_rows.h"

#include <algorithm>
#include <cstddef>

#include "base/checked_math.h"
#include "base/parallel.h"
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
  copy_rows(row_copy(rows, kv_tensor(scratch.data(), rows.dtype, layout, shape, dense)));
  return packed;
}

void copy_out(const KvView& view, bool keys, std::int64_t length, Layout layout,
              const MutableTensorView& rows, const ExecContext& context) noexcept {
  const KvPart& part = view.parts[0];
  const DType stored = keys ? part.k_format.dtype : part.v_format.dtype;
  const std::int64_t page_stride = keys ? part.k_page_stride : part.v_page_stride;
  const std::int64_t head_stride = keys ? part.k_head_stride : part.v_head_stride;
  const std::int64_t token_stride = keys ? part.k_token_stride : part.v_token_stride;
  const KvExtents strides = kv_strides(rows, layout);
  const KvAxes axes = axes_of(layout);
  const std::int64_t pages = ceil_div(length, part.page_size);  // of each sequence
  const std::int64_t bytes = rows.num_elements() * size_of(rows.dtype);
  for_each_range(
      context, view.num_seqs * pages, bytes, [&](std::int64_t begin, std::int64_t end) noexcept {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t seq = i / pages;
          const std::int64_t first = i % pages * part.page_size;
          const std::int64_t page = part.block_table[seq * part.block_table_stride + i % pages];
          RowCopy copy;
          copy.src_dtype = stored;
          copy.dst_dtype = rows.dtype;
          copy.src = static_cast<const std::byte*>(keys ? part.k : part.v) +
                     page * page_stride * size_of(stored);
          copy.dst = static_cast<std::byte*>(rows.data) +
                     (seq * strides.batch + first * strides.length) * size_of(rows.dtype);
          const auto set = [&](int axis, std::int64_t extent, std::int64_t from, std::int64_t to) {
            copy.shape[axis] = extent;
            copy.src_strides[axis] = from * size_of(stored);
            copy.dst_strides[axis] = to * size_of(rows.dtype);
          };
          set(axes.batch, 1, 0, 0);
          set(axes.head, view.num_kv_heads, head_stride, strides.heads);
          set(axes.seq, std::min<std::int64_t>(part.page_size, length - first), token_stride,
              strides.length);
          set(axes.dim, keys ? view.k_head_dim : view.v_head_dim, 1, strides.dim);
          copy_rows(copy);
        }
      });
}

}  // namespace kvcache::internal
