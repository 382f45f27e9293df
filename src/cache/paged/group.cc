#include "cache/paged/group.h"

#include <bit>
#include <string>
#include <utility>

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
      rule_(layout == nullptr ? KeepRule() : layout->rule),
      page_size_(page_size),
      memory_(memory),
      pool_(num_pages, reinterpret_cast<std::int32_t*>(
                           tables + (layout == nullptr ? 0 : 2 * kPointerBytes * num_pages))) {
  if (layout == nullptr) return;
  starts_ = reinterpret_cast<const std::byte**>(tables);
  edges_ = reinterpret_cast<PageEdge**>(tables + kPointerBytes * num_pages);
  rows_ = reinterpret_cast<std::int32_t*>(tables + 2 * (kPointerBytes + kIntBytes) * num_pages);
  region_shift_ = region_shift(layout->page_bytes, num_pages);
  offsets_.reserve(layout->layers.size() * LayerSpec::kMaxBuffers * 2 + 1);
  std::int64_t at = 0;
  for (const LayerLayout& layer : layout->layers) {
    for (const BufferLayout& buffer : layer.buffers) {
      for (const std::int64_t bytes : {buffer.code_page_bytes(), buffer.scale_page_bytes}) {
        offsets_.push_back(at);
        at += round_up(bytes << region_shift_, kBufferAlignment);
      }
    }
  }
  offsets_.push_back(at);
  accounts_.resize(static_cast<std::size_t>(ceil_div(num_pages, region_pages())));
}

PageGroup::~PageGroup() {
  for (std::int64_t r = 0; r < num_regions_; ++r) {
    memory_.release(region(r), account(r).granted * page_bytes());
  }
}

// --- Memory. ---

Region PageGroup::region(std::int64_t index) const noexcept {
  return {const_cast<std::byte*>(starts_[index]), region_bytes()};
}

std::int64_t PageGroup::pages_in(std::int64_t region, std::int64_t begin,
                                 std::int64_t end) const noexcept {
  const std::int64_t first = region << region_shift_;
  return std::max<std::int64_t>(0, std::min(end, first + region_pages()) - std::max(begin, first));
}

Status PageGroup::commit(std::int64_t r, std::int64_t pages) noexcept {
  KVC_RETURN_IF_ERROR(memory_.commit(region(r), pages * page_bytes()));
  account(r).granted += static_cast<std::int32_t>(pages);
  return {};
}

void PageGroup::decommit(std::int64_t r, std::int64_t pages) noexcept {
  memory_.decommit(region(r), pages * page_bytes(), 0, 0);
  account(r).granted -= static_cast<std::int32_t>(pages);
}

std::int64_t PageGroup::lend(std::int64_t bytes, std::int64_t pages) noexcept {
  if (layout_ == nullptr || bytes <= 0) return 0;
  pages = std::min(pages, ceil_div(bytes, page_bytes()));
  std::int64_t lent = 0;
  for (std::int64_t r = 0; r < num_regions_ && lent < pages; ++r) {
    const std::int64_t here = std::min<std::int64_t>(pages - lent, account(r).granted);
    if (here == 0) continue;
    decommit(r, here);
    account(r).lent += static_cast<std::int32_t>(here);
    lent += here;
  }
  lent_pages_ += lent;
  return lent * page_bytes();
}

void PageGroup::repay() noexcept {
  for (std::int64_t r = 0; r < num_regions_ && lent_pages_ > 0; ++r) {
    const std::int32_t lent = account(r).lent;
    if (lent == 0 || !commit(r, lent).ok()) continue;
    account(r).lent = 0;
    lent_pages_ -= lent;
  }
}

void PageGroup::give_back(std::int64_t begin, std::int64_t end, std::int64_t keep) noexcept {
  for (std::int64_t r = begin >> region_shift_; r < num_regions_; ++r) {
    const std::int64_t pages = pages_in(r, begin, end);
    if (pages > 0) decommit(r, pages);
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

void PageGroup::shed_free(std::int64_t bytes, std::int64_t taken) noexcept {
  if (layout_ == nullptr || bytes <= 0) return;
  const std::int64_t count =
      std::min(ceil_div(bytes, page_bytes()), std::max<std::int64_t>(0, pool_.free() - taken));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t page = pool_.strip();
    const std::int64_t r = page >> region_shift_;
    // What was lent of the region has left the account already.
    const bool is_lent = account(r).lent > 0;
    --(is_lent ? account(r).lent : account(r).granted);
    lent_pages_ -= is_lent ? 1 : 0;
    const auto shed = [&](std::int64_t offset, std::int64_t stride) {
      const std::int64_t at = offset + (page - (r << region_shift_)) * stride;
      if (stride > 0) memory_.decommit(region(r), is_lent ? 0 : stride, at, stride);
    };
    for (std::size_t layer = 0; layer < layout_->layers.size(); ++layer) {
      for_each_buffer(static_cast<std::int64_t>(layer),
                      [&](const RowsView& view, const BufferLayout&) {
                        shed(view.offset, view.page_stride);
                        shed(view.scale_offset, view.scale_page_stride);
                      });
    }
  }
}

bool PageGroup::evict_cached(std::int64_t count) noexcept {
  const std::int64_t cached = pool_.cached();
  count = std::min(count, evictable());
  if (count > 0) keeper_->make_room(*this, count);
  return pool_.cached() < cached;
}

void PageGroup::pin(const GroupTable& table) noexcept {
  for (const std::int32_t page : table.pages) pool_.hold(page);
}

void PageGroup::unpin(const GroupTable& table) noexcept {
  for (const std::int32_t page : table.pages) pool_.drop(page);
}

void PageGroup::give_back_bare(std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    decommit(pool_.bare_page(i) >> region_shift_, 1);
  }
}

Status PageGroup::grant_memory(std::int64_t pages) noexcept {
  if (layout_ == nullptr) return {};
  const std::int64_t bare = pool_.bare_among(pages);
  for (std::int64_t i = 0; i < bare; ++i) {
    const Status status = commit(pool_.bare_page(i) >> region_shift_, 1);
    if (status.ok()) continue;
    give_back_bare(i);
    return status;
  }
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
    if (status.ok()) status = commit(r, count);
    if (!status.ok()) {
      give_back(begin, at, regions_before);
      give_back_bare(bare);
      return status;
    }
    at += count;
  }
  return {};
}

void PageGroup::return_memory(std::int64_t pages) noexcept {
  if (layout_ == nullptr) return;
  give_back_bare(pool_.bare_among(pages));
  const std::int64_t begin = pool_.touched();
  const std::int64_t in_use = ceil_div(begin, region_pages());
  give_back(begin, begin + pool_.fresh_among(pages), in_use);
}

bool PageGroup::a_region_has(const ByteSpan& span) const noexcept {
  for (std::int64_t r = 0; r < num_regions_; ++r) {
    const ByteSpan mine{reinterpret_cast<std::uintptr_t>(starts_[r]),
                        static_cast<std::uint64_t>(region_bytes())};
    if (intersect(span, mine)) return true;
  }
  return false;
}

RowsView PageGroup::rows(std::int64_t layer, std::int32_t buffer) const noexcept {
  const BufferLayout& shape = layout_->layers[static_cast<std::size_t>(layer)].buffers[buffer];
  RowsView view;
  view.chunks = starts_;
  view.chunk_shift = region_shift_;
  const auto piece = static_cast<std::size_t>((layer * LayerSpec::kMaxBuffers + buffer) * 2);
  view.offset = offsets_[piece];
  view.page_stride = shape.code_page_bytes();
  view.head_stride = shape.head_stride;
  view.token_stride = shape.token_stride;
  view.format = shape.spec.format;
  if (shape.scale_page_bytes == 0) return view;
  view.scale_offset = offsets_[piece + 1];
  view.zero_offset = view.scale_offset + shape.zero_offset;
  view.scale_page_stride = shape.scale_page_bytes;
  view.scale_head_stride = shape.scale_head_stride;
  view.scale_group_stride = shape.scale_group_stride;
  return view;
}

std::int64_t PageGroup::last_page_rows(const GroupTable& table,
                                       std::int64_t length) const noexcept {
  if (table.pages.empty()) return 0;
  // Where nothing of the window is held the last page listed is one of sinks.
  const bool sinks_last = table.first == length;
  const std::int64_t rows = sinks_last ? sink_rows(table) : length;
  const std::int64_t pages = sinks_last ? table.hole_begin : table.end();
  return std::min(page_size_, rows - (pages - 1) * page_size_);
}

// --- Room. ---

PageNeed PageGroup::need(const GroupTable& table, std::int64_t length,
                         std::int64_t count) const noexcept {
  if (count == 0) return {};
  const bool copies = has_tail(table, length) &&
                      (pool_.references(table.pages.back()) > 1 || is_named(table.pages.back()));
  return {pages_for(length + count, page_size_) - table.end() + (copies ? 1 : 0), copies};
}

void PageGroup::take(GroupRoom& room) noexcept {
  const std::int64_t count = room.num_pages();
  const std::int64_t evicted = pool_.evicted_among(count);
  if (evicted > 0) keeper_->make_room(*this, evicted);
  const std::int64_t bare = pool_.bare();
  const std::int64_t touched = pool_.touched();
  for (std::int64_t i = 0; i < count; ++i) room.pages.push_back(pool_.take());
  if (keeper_ != nullptr && pool_.touched() > touched) {
    keeper_->touched(*this, static_cast<std::int32_t>(touched),
                     static_cast<std::int32_t>(pool_.touched()));
  }
  if (layout_ == nullptr) return;
  for (std::int64_t page = touched; page < pool_.touched(); ++page) {
    edges_[page] = nullptr;
    rows_[page] = 0;
  }
  if (pool_.touched() > touched) announce(touched);
  give_back_bare(room.bare - (bare - pool_.bare()));
  const std::int64_t end = touched + room.fresh;
  if (pool_.touched() < end) {
    give_back(pool_.touched(), end, ceil_div(pool_.touched(), region_pages()));
  }
}

// Tells the memory of the fresh pages from `touched` on, side by side in the buffers of each layer,
// that they are about to be filled.
void PageGroup::announce(std::int64_t touched) noexcept {
  for (std::int64_t r = touched >> region_shift_; r < num_regions_; ++r) {
    const std::int64_t count = pages_in(r, touched, pool_.touched());
    if (count == 0) continue;
    const std::int64_t first = std::max<std::int64_t>(touched - (r << region_shift_), 0);
    for (std::size_t layer = 0; layer < layout_->layers.size(); ++layer) {
      for_each_buffer(
          static_cast<std::int64_t>(layer), [&](const RowsView& view, const BufferLayout&) {
            const std::int64_t page = view.page_stride;
            memory_.will_fill(region(r), view.offset + first * page, count * page);
            const std::int64_t scales = view.scale_page_stride;
            if (scales == 0) return;
            memory_.will_fill(region(r), view.scale_offset + first * scales, count * scales);
          });
    }
  }
}

void PageGroup::place(const GroupTable& table, std::int64_t length, std::int64_t count,
                      std::int64_t row, std::size_t i, GroupRoom& room) const noexcept {
  const GroupRoom::Share& share = room.seqs[i];
  std::int64_t next = share.begin;
  std::int64_t slot = length % page_size_;
  const std::int64_t first = row;
  const std::int64_t end = row + count;
  while (row < end) {
    const bool in_place = row == first && has_tail(table, length) && !share.copies_tail;
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
                             std::size_t i, const GroupRoom& room, bool holds) noexcept {
  const std::int64_t begin = room.seqs[i].begin;
  const bool copied = accepted > 0 && room.seqs[i].copies_tail;
  const std::int64_t end =
      begin + (copied ? 1 : 0) +
      (accepted > 0 ? pages_for(length + accepted, page_size_) - table.end() : 0);
  std::int64_t entries = end - room.seqs[i + 1].begin - (copied ? 1 : 0);
  for (std::int64_t p = room.seqs[i + 1].begin; p > end; --p) {
    pool_.give_back(room.pages[static_cast<std::size_t>(p - 1)]);
  }
  if (accepted == 0) return entries;
  if (length % page_size_ != 0 && !has_tail(table, length)) table.torn = length / page_size_;
  const Left left = unlink_edges(table);
  if (copied) {
    drop(table.pages.back());
    table.pages.pop_back();
  }
  for (std::int64_t p = begin; p < end; ++p) {
    const std::int32_t page = room.pages[static_cast<std::size_t>(p)];
    pool_.hold(page);
    table.pages.push_back(page);
  }
  if (!holds) table.first = std::max(table.first, rule_.first(length + accepted));
  entries -= conform(table, length + accepted);
  link_edges(table, length + accepted, left);
  for (std::int64_t p = begin; p < end; ++p) count_rows(room.pages[static_cast<std::size_t>(p)]);
  return entries;
}

// --- Tables. ---

std::int64_t PageGroup::conform(GroupTable& table, std::int64_t length) noexcept {
  const LivePages live = live_pages(table.first, length, rule_.life.sink_tokens, page_size_);
  std::int64_t gone = 0;
  for (; table.end() > live.end && !table.pages.empty(); ++gone) {
    const std::int32_t page = table.pages.back();
    table.pages.pop_back();
    drop(page);
  }
  const std::int64_t before =
      table.hole_pages > 0 ? table.hole_begin + table.hole_pages : live.sinks;
  if (live.begin > before) {
    const auto from = table.pages.begin() + live.sinks;
    const auto to = from + (live.begin - before);
    for (auto page = to; page != from;) drop(*--page);
    table.pages.erase(from, to);
    gone += live.begin - before;
  }
  table.hole_begin = live.sinks;
  table.hole_pages = live.begin - live.sinks;
  return gone;
}

std::int64_t PageGroup::shorten(GroupTable& table, std::int64_t length) noexcept {
  const Left left = unlink_edges(table);
  if (rule_.is_tail()) table.first = std::min(table.first, length);
  const std::int64_t gone = conform(table, length);
  link_edges(table, length, left);
  return gone;
}

std::int64_t PageGroup::let_go(GroupTable& table, std::int64_t length) noexcept {
  if (rule_.first(length) <= table.first) return 0;
  const Left left = unlink_edges(table);
  table.first = rule_.first(length);
  const std::int64_t gone = conform(table, length);
  link_edges(table, length, left);
  return gone;
}

std::int64_t PageGroup::clear(GroupTable& table) noexcept {
  const auto gone = static_cast<std::int64_t>(table.pages.size());
  unlink_edges(table);
  for (; !table.pages.empty(); table.pages.pop_back()) drop(table.pages.back());
  table.first = table.hole_begin = table.hole_pages = 0;
  table.torn = table.torn_sinks = -1;
  return gone;
}

void PageGroup::list(const GroupTable& parent, std::int64_t length, GroupTable& child) const {
  child.first = rule_.is_tail() ? std::min(parent.first, length) : parent.first;
  const LivePages live = live_pages(child.first, length, rule_.life.sink_tokens, page_size_);
  child.pages.reserve(static_cast<std::size_t>(live.count()));
  const auto copy = [&](std::int64_t begin, std::int64_t end) {
    if (begin >= end) return;
    const auto from = parent.pages.begin() + static_cast<std::ptrdiff_t>(parent.entry(begin));
    child.pages.insert(child.pages.end(), from, from + (end - begin));
  };
  copy(0, live.sinks);
  copy(live.begin, live.end);
  child.torn = parent.torn;
  child.torn_sinks = parent.torn_sinks;
  child.hole_begin = live.sinks;
  child.hole_pages = live.begin - live.sinks;
}

void PageGroup::adopt(GroupTable& child, std::int64_t length, bool is_held) noexcept {
  pool_.hold_all(child.pages);
  link_edges(child, length, {});
  // Where another holds all that this one does, no page but those of edges has more rows now.
  if (rows_ == nullptr || is_held) return;
  for (const std::int32_t page : child.pages) {
    if (rows_[page] < page_size_) count_rows(page);  // it was cached, or held in part
  }
}

void PageGroup::hand_over(GroupTable& from, GroupTable& to) noexcept {
  to.pages.swap(from.pages);
  to.first = std::exchange(from.first, 0);
  to.torn = std::exchange(from.torn, -1);
  to.torn_sinks = std::exchange(from.torn_sinks, -1);
  to.hole_begin = std::exchange(from.hole_begin, 0);
  to.hole_pages = std::exchange(from.hole_pages, 0);
  for (int i = 0; i < GroupTable::kMaxEdges; ++i) {
    if (from.edges[i].page < 0) continue;
    to.edges[i] = from.edges[i];
    unlink(from.edges[i]);
    link(to.edges[i]);
  }
}

void PageGroup::drop(std::int32_t page) noexcept {
  const bool last = pool_.drop(page);
  count_rows(page);
  if (last && (keeper_ == nullptr || !keeper_->keeps(*this, page))) pool_.evict(page);
}

// --- Rows that are held: each counts once, whoever holds it. ---

void PageGroup::link(PageEdge& edge) noexcept {
  edge.previous = nullptr;
  edge.next = edges_[edge.page];
  if (edge.next != nullptr) edge.next->previous = &edge;
  edges_[edge.page] = &edge;
}

void PageGroup::unlink(PageEdge& edge) noexcept {
  (edge.previous != nullptr ? edge.previous->next : edges_[edge.page]) = edge.next;
  if (edge.next != nullptr) edge.next->previous = edge.previous;
  edge = PageEdge();
}

PageGroup::Left PageGroup::unlink_edges(GroupTable& table) noexcept {
  Left left;
  for (int i = 0; i < GroupTable::kMaxEdges; ++i) {
    left.pages[i] = table.edges[i].page;
    if (left.pages[i] >= 0) unlink(table.edges[i]);
  }
  return left;
}

void PageGroup::link_edges(GroupTable& table, std::int64_t length, const Left& left) noexcept {
  if (edges_ == nullptr) return;
  PageEdge* next = table.edges;
  // The edge in the page of row `row`.
  const auto edge_at = [&](std::int64_t row) -> PageEdge& {
    const std::int32_t page = table.pages[table.entry(row / page_size_)];
    for (PageEdge* edge = table.edges; edge != next; ++edge) {
      if (edge->page == page) return *edge;
    }
    next->page = page;
    return *next++;
  };
  // Rows begin .. end of a page from where it is entered or left.
  const auto hold = [&](PageEdge& edge, std::int64_t page) {
    edge.begin = static_cast<std::int32_t>(std::max<std::int64_t>(table.first - page, 0));
    edge.end = static_cast<std::int32_t>(std::min(page_size_, length - page));
  };
  const std::int64_t sinks = sink_rows(table);
  const std::int64_t first = table.first;
  if (sinks % page_size_ != 0) {
    PageEdge& edge = edge_at(sinks);
    edge.sinks = static_cast<std::int32_t>(sinks % page_size_);
    if (first < length && first / page_size_ == sinks / page_size_) {
      hold(edge, first / page_size_ * page_size_);
    }
  }
  if (first < length && first % page_size_ != 0) {
    hold(edge_at(first), first / page_size_ * page_size_);
  }
  if (first < length && length % page_size_ != 0) {
    hold(edge_at(length), length / page_size_ * page_size_);
  }
  for (PageEdge* edge = table.edges; edge != next; ++edge) link(*edge);
  for (const std::int32_t page : left.pages) {
    if (page >= 0) count_rows(page);
  }
  for (PageEdge* edge = table.edges; edge != next; ++edge) count_rows(edge->page);
}

void PageGroup::count_rows(std::int32_t page) noexcept {
  if (rows_ == nullptr) return;
  std::int32_t edges = 0;
  for (const PageEdge* edge = edges_[page]; edge != nullptr; edge = edge->next) ++edges;
  auto rows = static_cast<std::int32_t>(page_size_);
  if (pool_.references(page) <= edges) {
    // Nobody has all of it: the union of what they have, from the first row on.
    rows = 0;
    for (std::int32_t at = 0; at < page_size_;) {
      std::int32_t reach = at;
      std::int32_t nearest = static_cast<std::int32_t>(page_size_);
      for (const PageEdge* edge = edges_[page]; edge != nullptr; edge = edge->next) {
        if (edge->sinks > at) reach = std::max(reach, edge->sinks);
        if (edge->end <= at) continue;
        if (edge->begin <= at) {
          reach = std::max(reach, edge->end);
        } else {
          nearest = std::min(nearest, edge->begin);
        }
      }
      rows += reach - at;
      at = reach > at ? reach : nearest;
    }
  }
  stored_rows_ += rows - rows_[page];
  rows_[page] = rows;
}

}  // namespace kvcache::internal
