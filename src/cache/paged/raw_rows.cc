#include "cache/paged/raw_rows.h"

#include <algorithm>

namespace kvcache::internal {
namespace {

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
    move_raw<kIntoPages>(view, spec, page, slot, count, raw, at);
    row += count;
    at += count;
  }
}

template <bool kIntoPages>
void move_page(const PagedStore& store, std::int64_t layer, std::int32_t buffer, std::int32_t page,
               const RawRows& raw) noexcept {
  const RowsView view = store.group_of(layer).rows(store.place(layer).index, buffer);
  move_raw<kIntoPages>(view, store.spec_of(layer).buffers[buffer], page, 0, raw.rows, raw, 0);
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
