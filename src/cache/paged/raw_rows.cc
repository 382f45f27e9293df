#include "cache/paged/raw_rows.h"

#include <algorithm>
#include <cstring>

#include "tensor/codecs/coded_block.h"

namespace kvcache::internal {
namespace {

// One way or the other.
template <bool kIntoPages>
void move(std::byte* stored, std::byte* dense, std::int64_t bytes) noexcept {
  std::memcpy(kIntoPages ? stored : dense, kIntoPages ? dense : stored,
              static_cast<std::size_t>(bytes));
}

// `count` rows from `slot` of a page on.
template <bool kIntoPages>
void move_run(const RowsView& view, const BufferSpec& spec, std::int32_t page, std::int64_t slot,
              std::int64_t count, const RawRows& raw, std::int64_t at) noexcept {
  CodedBlock block;
  set_codes(view, page, slot, &block);
  const std::int64_t row_bytes = view.format.code_bytes(spec.dim);
  const std::int64_t groups = view.format.num_scales(spec.dim);
  for (std::int64_t head = 0; head < spec.heads; ++head) {
    const CodedRow row = block.coded(0, head);
    std::byte* dense = raw.codes + (head * raw.rows + at) * row_bytes;
    if (view.token_stride == row_bytes) {
      move<kIntoPages>(row.codes, dense, count * row_bytes);
    } else {
      for (std::int64_t i = 0; i < count; ++i, dense += row_bytes) {
        move<kIntoPages>(row.codes + i * view.token_stride, dense, row_bytes);
      }
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t from = g * view.scale_group_stride;
      const std::int64_t to = (head * groups + g) * raw.rows + at;
      move<kIntoPages>(row.scales + from, raw.scales + 2 * to, 2 * count);
      if (view.format.has_zeros()) {
        move<kIntoPages>(row.zeros + from / 2, raw.zeros + to, count);
      }
    }
  }
}

template <bool kIntoPages>
void move_rows(const PagedStore& store, const PagedSequence& seq, const RawRange& range,
               const RawRows& raw, std::int64_t at) noexcept {
  const LayerPlace place = store.place(range.layer);
  const std::int32_t tail = store.tail_group(range.layer);
  const auto group =
      static_cast<std::size_t>(tail >= 0 && range.begin >= seq.coded ? tail : place.group);
  const RowsView view = store.group(group).rows(place.index, range.buffer);
  const BufferSpec& spec = store.spec_of(range.layer).buffers[range.buffer];
  const GroupTable& table = seq.tables[group];
  for (std::int64_t row = range.begin; row < range.end;) {
    const std::int64_t slot = row % store.page_size();
    const std::int64_t count = std::min(store.page_size() - slot, range.end - row);
    const std::int32_t page = table.pages[table.entry(row / store.page_size())];
    move_run<kIntoPages>(view, spec, page, slot, count, raw, at);
    row += count;
    at += count;
  }
}

template <bool kIntoPages>
void move_page(const PagedStore& store, std::int64_t layer, std::int32_t buffer, std::int32_t page,
               const RawRows& raw) noexcept {
  const RowsView view = store.group_of(layer).rows(store.place(layer).index, buffer);
  move_run<kIntoPages>(view, store.spec_of(layer).buffers[buffer], page, 0, raw.rows, raw, 0);
}

}  // namespace

void get_page(const PagedStore& store, std::int64_t layer, std::int32_t buffer, std::int32_t page,
              const RawRows& raw) noexcept {
  move_page<false>(store, layer, buffer, page, raw);
}

void put_page(PagedStore& store, std::int64_t layer, std::int32_t buffer, std::int32_t page,
              const RawRows& raw) noexcept {
  move_page<true>(store, layer, buffer, page, raw);
}

void get_raw(const PagedStore& store, const PagedSequence& seq, const RawRange& range,
             const RawRows& raw, std::int64_t at) noexcept {
  move_rows<false>(store, seq, range, raw, at);
}

void put_raw(PagedStore& store, const PagedSequence& seq, const RawRange& range, const RawRows& raw,
             std::int64_t at) noexcept {
  move_rows<true>(store, seq, range, raw, at);
}

}  // namespace kvcache::internal
