#include "cache/paged/group.h"

#include <bit>
#include <string>

#include "base/checked_math.h"
#include "base/expect.h"

namespace kvcache::internal {
namespace {

// Buffers start at pages of the system, so that neighbours never share one.
constexpr std::int64_t kBufferAlignment = 4096;

// A region is about a 64th of the pool, within these: few regions, and little address space for a
// pool that stays almost empty.
constexpr std::int64_t kLeastRegionBytes = std::int64_t{4} << 20;
constexpr std::int64_t kMostRegionBytes = std::int64_t{256} << 20;

std::int32_t region_shift(std::int64_t page_bytes, std::int64_t num_pages) {
  const std::int64_t wanted =
      std::clamp(num_pages * page_bytes / 64, kLeastRegionBytes, kMostRegionBytes);
  const auto pages =
      static_cast<std::uint64_t>(std::clamp<std::int64_t>(wanted / page_bytes, 1, num_pages));
  return static_cast<std::int32_t>(std::bit_width(pages)) - 1;
}

constexpr std::int64_t kPointerBytes = sizeof(void*);
constexpr std::int64_t kIntBytes = sizeof(std::int32_t);

}  // namespace

std::int64_t PageGroup::table_bytes(const GroupLayout* layout, std::int64_t num_pages) noexcept {
  return num_pages * (2 * kIntBytes + (layout == nullptr ? 0 : 2 * kPointerBytes + kIntBytes));
}

// Pointers first, for their alignment.
PageGroup::PageGroup(const GroupLayout* layout, std::int64_t page_size, std::int64_t num_pages,
                     MemoryResource& memory, std::byte* tables)
    : layout_(layout),
      page_size_(page_size),
      memory_(memory),
      pool_(num_pages, reinterpret_cast<std::int32_t*>(
                           tables + (layout == nullptr ? 0 : 2 * kPointerBytes * num_pages))) {
  if (layout == nullptr) return;
  starts_ = reinterpret_cast<const std::byte**>(tables);
  tails_ = reinterpret_cast<GroupTable**>(tables + kPointerBytes * num_pages);
  rows_ = reinterpret_cast<std::int32_t*>(tables + 2 * (kPointerBytes + kIntBytes) * num_pages);
  region_shift_ = region_shift(layout->page_bytes, num_pages);
}

PageGroup::~PageGroup() {
  for (std::int64_t r = 0; r < num_regions_; ++r) {
    memory_.release(region(r), pages_in(r, 0, pool_.touched()) * page_bytes());
  }
}

// --- Memory. ---

std::int64_t PageGroup::buffer_bytes(std::int32_t buffer) const noexcept {
  return round_up(layout_->buffers[buffer].page_bytes << region_shift_, kBufferAlignment);
}

std::int64_t PageGroup::region_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (std::int32_t b = 0; b < layout_->spec.num_buffers; ++b) bytes += buffer_bytes(b);
  return bytes * layout_->num_layers();
}

Region PageGroup::region(std::int64_t index) const noexcept {
  return {const_cast<std::byte*>(starts_[index]), region_bytes()};
}

std::int64_t PageGroup::pages_in(std::int64_t region, std::int64_t begin,
                                 std::int64_t end) const noexcept {
  const std::int64_t first = region << region_shift_;
  return std::max<std::int64_t>(0, std::min(end, first + region_pages()) - std::max(begin, first));
}

void PageGroup::give_back(std::int64_t begin, std::int64_t end, std::int64_t keep) noexcept {
  for (std::int64_t r = begin >> region_shift_; r < num_regions_; ++r) {
    const std::int64_t bytes = pages_in(r, begin, end) * page_bytes();
    if (bytes > 0) memory_.decommit(region(r), bytes, 0, 0);
    if (r >= keep) memory_.release(region(r), 0);
  }
  num_regions_ = std::min(num_regions_, keep);
}

void PageGroup::add_region(const std::byte* data) noexcept {
  starts_[num_regions_++] = data;
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t end = begin + static_cast<std::uintptr_t>(region_bytes());
  const std::uintptr_t reached = reach_.begin + reach_.bytes;
  reach_.begin = reach_.bytes == 0 ? begin : std::min(reach_.begin, begin);
  reach_.bytes = std::max(reached, end) - reach_.begin;
}

Status PageGroup::grant_memory(std::int64_t pages) noexcept {
  if (layout_ == nullptr) return {};
  const std::int64_t begin = pool_.touched();
  const std::int64_t end = begin + pool_.fresh_among(pages);
  const std::int64_t regions_before = num_regions_;
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t r = at >> region_shift_;
    Status status;
    if (r == num_regions_) {
      const Result<Region> fresh = memory_.reserve(region_bytes());
      status = fresh.status();
      if (status.ok()) add_region(fresh->data);
    }
    const std::int64_t count = pages_in(r, at, end);
    if (status.ok()) status = memory_.commit(region(r), count * page_bytes());
    if (!status.ok()) {
      give_back(begin, at, regions_before);
      return status;
    }
    at += count;
  }
  return {};
}

void PageGroup::return_memory(std::int64_t pages) noexcept {
  if (layout_ == nullptr) return;
  const std::int64_t begin = pool_.touched();
  const std::int64_t in_use = ceil_div(begin, region_pages());
  give_back(begin, begin + pool_.fresh_among(pages), in_use);
}

bool PageGroup::owns(const ByteSpan& span) const noexcept {
  if (!intersect(span, reach_)) return false;
  for (std::int64_t r = 0; r < num_regions_; ++r) {
    const ByteSpan mine{reinterpret_cast<std::uintptr_t>(starts_[r]),
                        static_cast<std::uint64_t>(region_bytes())};
    if (intersect(span, mine)) return true;
  }
  return false;
}

RowsView PageGroup::rows(std::int64_t layer, std::int32_t buffer) const noexcept {
  const BufferLayout& shape = layout_->buffers[buffer];
  RowsView view;
  view.chunks = starts_;
  view.chunk_shift = region_shift_;
  view.offset = region_bytes() / layout_->num_layers() * layer;
  for (std::int32_t b = 0; b < buffer; ++b) view.offset += buffer_bytes(b);
  view.page_stride = shape.page_bytes;
  view.head_stride = shape.head_stride;
  view.token_stride = shape.token_stride;
  view.format = shape.spec.format;
  return view;
}

// --- Room. ---

PageNeed PageGroup::need(const GroupTable& table, std::int64_t length,
                         std::int64_t count) const noexcept {
  const bool copies =
      count > 0 && length % page_size_ != 0 && pool_.references(table.pages.back()) > 1;
  return {pages_for(length + count, page_size_) - pages_for(length, page_size_) + (copies ? 1 : 0),
          copies};
}

void PageGroup::take(GroupRoom& room) noexcept {
  const std::int64_t count = room.num_pages();
  const std::int64_t evicted = pool_.evicted_among(count);
  if (evicted > 0) keeper_->make_room(*this, evicted);
  const std::int64_t touched = pool_.touched();
  for (std::int64_t i = 0; i < count; ++i) room.pages.push_back(pool_.take());
  if (pool_.touched() > touched) announce(touched);
}

// Tells the memory of the fresh pages from `touched` on, side by side in the buffers of each layer,
// that they are about to be filled.
void PageGroup::announce(std::int64_t touched) noexcept {
  if (layout_ == nullptr) return;
  for (std::int64_t r = touched >> region_shift_; r < num_regions_; ++r) {
    const std::int64_t count = pages_in(r, touched, pool_.touched());
    if (count == 0) continue;
    const std::int64_t first = std::max<std::int64_t>(touched - (r << region_shift_), 0);
    for (std::int64_t layer = 0; layer < layout_->num_layers(); ++layer) {
      for (std::int32_t b = 0; b < layout_->spec.num_buffers; ++b) {
        const std::int64_t page = layout_->buffers[b].page_bytes;
        memory_.will_fill(region(r), rows(layer, b).offset + first * page, count * page);
      }
    }
  }
}

void PageGroup::place(const GroupTable& table, std::int64_t length, std::int64_t count,
                      std::int64_t row, std::size_t i, GroupRoom& room) const noexcept {
  const GroupRoom::Share& share = room.seqs[i];
  std::int64_t next = share.begin;
  std::int64_t slot = length % page_size_;
  const std::int64_t end = row + count;
  while (row < end) {
    const bool in_place = slot != 0 && !share.copies_tail;
    const std::int32_t page =
        in_place ? table.pages.back() : room.pages[static_cast<std::size_t>(next++)];
    const std::int64_t here = std::min(page_size_ - slot, end - row);
    room.runs.push_back(
        {page, static_cast<std::int32_t>(slot), static_cast<std::int32_t>(here), row});
    row += here;
    slot = 0;
  }
}

std::int64_t PageGroup::keep(GroupTable& table, std::int64_t length, std::int64_t accepted,
                             std::size_t i, const GroupRoom& room) noexcept {
  const bool copied = accepted > 0 && room.seqs[i].copies_tail;
  const std::int64_t begin = room.seqs[i].begin;
  const std::int64_t end = begin + (copied ? 1 : 0) + pages_for(length + accepted, page_size_) -
                           pages_for(length, page_size_);
  const std::int64_t entries = end - room.seqs[i + 1].begin - (copied ? 1 : 0);
  for (std::int64_t p = room.seqs[i + 1].begin; p > end; --p) {
    pool_.give_back(room.pages[static_cast<std::size_t>(p - 1)]);
  }
  if (copied) {
    unlink_tail(table);
    drop(table.pages.back());
    table.pages.pop_back();
  }
  for (std::int64_t p = begin; p < end; ++p) {
    const std::int32_t page = room.pages[static_cast<std::size_t>(p)];
    pool_.hold(page);
    table.pages.push_back(page);
    // Full, unless it is the last, which set_tail() looks at.
    if (rows_ != nullptr) set_rows(page, p + 1 < end ? static_cast<std::int32_t>(page_size_) : 0);
  }
  if (accepted == 0) return entries;
  const std::int32_t tail = table.tail_page;
  set_tail(table, length + accepted);
  if (tail >= 0 && tail != table.tail_page) set_rows(tail, static_cast<std::int32_t>(page_size_));
  return entries;
}

// --- Tables. ---

std::int64_t PageGroup::shorten(GroupTable& table, std::int64_t length) noexcept {
  const auto pages = static_cast<std::size_t>(pages_for(length, page_size_));
  if (table.pages.size() > pages) unlink_tail(table);
  std::int64_t gone = 0;
  for (; table.pages.size() > pages; ++gone) {
    const std::int32_t page = table.pages.back();
    table.pages.pop_back();
    drop(page);
  }
  set_tail(table, length);
  // It may have been the longest in this page, or one that had all of it.
  if (table.tail_page >= 0) count_rows(table.tail_page);
  return gone;
}

void PageGroup::adopt(GroupTable& child, std::int64_t length) noexcept {
  for (const std::int32_t page : child.pages) pool_.hold(page);
  set_tail(child, length);
}

void PageGroup::hand_over(GroupTable& from, GroupTable& to) noexcept {
  to.pages.swap(from.pages);
  if (from.tail_page < 0) return;
  const std::int32_t page = from.tail_page;
  const std::int32_t rows = from.tail_rows;
  unlink_tail(from);
  link_tail(to, page, rows);
}

void PageGroup::drop(std::int32_t page) noexcept {
  const bool last = pool_.drop(page);
  if (rows_ != nullptr) count_rows(page);
  if (last && (keeper_ == nullptr || !keeper_->keeps(*this, page))) pool_.evict(page);
}

// --- Rows that are stored: each page counts once, by the sequence that has most of it. ---

void PageGroup::link_tail(GroupTable& table, std::int32_t page, std::int32_t rows) noexcept {
  table.tail_page = page;
  table.tail_rows = rows;
  table.previous = nullptr;
  table.next = tails_[page];
  if (table.next != nullptr) table.next->previous = &table;
  tails_[page] = &table;
}

void PageGroup::unlink_tail(GroupTable& table) noexcept {
  if (table.tail_page < 0) return;
  (table.previous != nullptr ? table.previous->next : tails_[table.tail_page]) = table.next;
  if (table.next != nullptr) table.next->previous = table.previous;
  table.tail_page = -1;
}

void PageGroup::set_tail(GroupTable& table, std::int64_t length) noexcept {
  if (tails_ == nullptr) return;
  const auto rows = static_cast<std::int32_t>(length % page_size_);
  const std::int32_t last = table.pages.empty() ? -1 : table.pages.back();
  const std::int32_t page = rows == 0 ? -1 : last;
  if (page != table.tail_page) {
    unlink_tail(table);
    if (page >= 0) link_tail(table, page, rows);
  }
  if (page >= 0) {
    table.tail_rows = rows;
    if (rows > rows_[page]) set_rows(page, rows);
  } else if (last >= 0) {
    set_rows(last, static_cast<std::int32_t>(page_size_));
  }
}

void PageGroup::set_rows(std::int32_t page, std::int32_t rows) noexcept {
  stored_rows_ += rows - rows_[page];
  rows_[page] = rows;
}

void PageGroup::count_rows(std::int32_t page) noexcept {
  std::int32_t ending = 0;
  std::int32_t most = 0;
  for (const GroupTable* table = tails_[page]; table != nullptr; table = table->next) {
    ++ending;
    most = std::max(most, table->tail_rows);
  }
  const bool whole = pool_.references(page) > ending;
  set_rows(page, whole ? static_cast<std::int32_t>(page_size_) : most);
}

// --- Check. ---

Status PageGroup::check(const std::vector<std::int64_t>& named,
                        const std::vector<std::int64_t>& reserved,
                        const std::vector<std::int64_t>& rows) const {
  const auto broken = [](std::int64_t page, const std::string& found, const std::string& expected) {
    return refusal(StatusCode::kInternal, "page " + std::to_string(page), found, expected);
  };
  const auto num_pages = static_cast<std::size_t>(pool_.num_pages());
  std::vector<std::int64_t> free(num_pages);
  for (const std::int32_t page : pool_.free_list()) {
    if (page < 0 || page >= pool_.touched()) return broken(page, "it free", "a page in use before");
    ++free[static_cast<std::size_t>(page)];
  }
  std::int64_t held = 0, taken = 0, cached = 0, stored = 0;
  for (std::size_t p = 0; p < num_pages; ++p) {
    const auto page = static_cast<std::int32_t>(p);
    const std::int64_t is_cached = pool_.is_cached(page) ? 1 : 0;
    const std::int64_t uses = free[p] + reserved[p] + (named[p] > 0 ? 1 : 0) + is_cached;
    const bool fresh = page >= pool_.touched();
    if (uses != (fresh ? 0 : 1)) {
      return broken(page, std::to_string(uses) + " of free, held, reserved and cached",
                    fresh ? "none: it is fresh" : "one");
    }
    if (pool_.references(page) != named[p]) {
      return broken(page, std::to_string(pool_.references(page)) + " references",
                    std::to_string(named[p]));
    }
    if (rows_ != nullptr && rows_[p] != rows[p]) {
      return broken(page, std::to_string(rows_[p]) + " rows", std::to_string(rows[p]));
    }
    held += named[p] > 0 ? 1 : 0;
    taken += reserved[p];
    cached += is_cached;
    stored += rows[p];
  }
  if (held != pool_.held() || taken != pool_.reserved() || cached != pool_.cached()) {
    return broken(
        -1,
        std::to_string(pool_.held()) + " held, " + std::to_string(pool_.reserved()) +
            " reserved, " + std::to_string(pool_.cached()) + " cached",
        std::to_string(held) + ", " + std::to_string(taken) + ", " + std::to_string(cached));
  }
  if (rows_ != nullptr && stored != stored_rows_) {
    return broken(-1, std::to_string(stored_rows_) + " rows in all", std::to_string(stored));
  }
  return {};
}

}  // namespace kvcache::internal
