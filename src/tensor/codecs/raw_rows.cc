#include "tensor/codecs/raw_rows.h"

#include <cstring>

#include "tensor/codecs/coded_block.h"

namespace kvcache::internal {
namespace {

// One way or the other.
template <bool kIntoView>
void move(std::byte* stored, std::byte* dense, std::int64_t bytes) noexcept {
  std::memcpy(kIntoView ? stored : dense, kIntoView ? dense : stored,
              static_cast<std::size_t>(bytes));
}

}  // namespace

template <bool kIntoView>
void move_raw(const RowsView& view, const BufferSpec& spec, std::int64_t page, std::int64_t slot,
              std::int64_t count, const RawRows& raw, std::int64_t at) noexcept {
  CodedBlock block;
  set_codes(view, page, slot, &block);
  const std::int64_t row_bytes = view.format.code_bytes(spec.dim);
  const std::int64_t groups = view.format.num_scales(spec.dim);
  for (std::int64_t head = 0; head < spec.heads; ++head) {
    const CodedRow row = block.coded(0, head);
    std::byte* dense = raw.codes + (head * raw.rows + at) * row_bytes;
    if (view.token_stride == row_bytes) {
      move<kIntoView>(row.codes, dense, count * row_bytes);
    } else {
      for (std::int64_t i = 0; i < count; ++i, dense += row_bytes) {
        move<kIntoView>(row.codes + i * view.token_stride, dense, row_bytes);
      }
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t from = g * view.scale_group_stride;
      const std::int64_t to = (head * groups + g) * raw.rows + at;
      move<kIntoView>(row.scales + from, raw.scales + 2 * to, 2 * count);
      if (view.format.has_zeros()) {
        move<kIntoView>(row.zeros + from / 2, raw.zeros + to, count);
      }
    }
  }
}

template void move_raw<false>(const RowsView&, const BufferSpec&, std::int64_t, std::int64_t,
                              std::int64_t, const RawRows&, std::int64_t) noexcept;
template void move_raw<true>(const RowsView&, const BufferSpec&, std::int64_t, std::int64_t,
                             std::int64_t, const RawRows&, std::int64_t) noexcept;

}  // namespace kvcache::internal
