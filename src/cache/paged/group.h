// PageGroup: layers that live alike. Their pages (a page id names the same slot in every buffer of
// every layer), the memory of these, and what a sequence's table of pages means. The store
// (store.h) is a transaction over groups.
//
// Memory grows by regions of 2^region_shift pages, which lie wherever the MemoryResource puts them:
// a page never moves, so views stay valid while the pool grows. Within a region each buffer of each
// layer has its pages in one piece.
//
// A group of no buffers keeps what has no rows: the blocks of token ids.
#ifndef KVCACHE_SRC_CACHE_PAGED_GROUP_H_
#define KVCACHE_SRC_CACHE_PAGED_GROUP_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cache/paged/layout.h"
#include "cache/paged/pool.h"
#include "kvcache/memory.h"
#include "kvcache/row_format.h"
#include "kvcache/status.h"
#include "tensor/overlap.h"

namespace kvcache::internal {

struct PagedTables;

// The pages of one sequence in one group. Sequences that end within a page are linked there, so
// that its rows are counted when one of them leaves. Not to be moved while it ends in a page.
struct GroupTable {
  std::vector<std::int32_t> pages;

  std::int32_t tail_page = -1;  // the page within which the sequence ends; -1: at the end of one
  std::int32_t tail_rows = 0;   // rows of it
  GroupTable* previous = nullptr;
  GroupTable* next = nullptr;
};

// What a sequence needs for more tokens.
struct PageNeed {
  std::int64_t pages = 0;
  bool copies_tail = false;  // the first of them is for its shared tail
};

// New rows of one sequence within one page.
struct StepRun {
  std::int32_t page = 0;
  std::int32_t slot = 0;   // of its first row
  std::int32_t count = 0;  // rows
  std::int64_t row = 0;    // of the packed new tokens
};

// What a step took from one group.
struct GroupRoom {
  // Pages of sequence i: seqs[i].begin .. seqs[i + 1].begin; the first is the copy of its tail.
  struct Share {
    std::int64_t begin = 0;
    bool copies_tail = false;
  };
  std::vector<Share> seqs;                    // [num_seqs + 1]
  std::vector<std::int32_t> pages;            // in the order they were taken
  std::vector<StepRun> runs;                  // in the order of the packed rows
  bool counted = false;                       // whether its copies are in the counters yet
  std::shared_ptr<const PagedTables> tables;  // built by the first view

  std::int64_t num_pages() const noexcept { return seqs.back().begin; }
};

class PageGroup;

// Decides about pages that no sequence names any more. Without one they are free at once.
class PageKeeper {
 public:
  virtual ~PageKeeper() = default;

  // The last table that named `page` is gone: whether it stays, cached.
  virtual bool keeps(const PageGroup& group, std::int32_t page) noexcept = 0;

  // Room is about to be taken: evicts at least `count` of the group's cached pages, by
  // group.evict(page). Asked after memory was granted and before the first page is taken.
  virtual void make_room(PageGroup& group, std::int64_t count) noexcept = 0;
};

class PageGroup {
 public:
  // `layout` null: no buffers. `tables` are table_bytes() zeros; both, `memory` and the keeper live
  // as long as the group.
  PageGroup(const GroupLayout* layout, std::int64_t page_size, std::int64_t num_pages,
            MemoryResource& memory, std::byte* tables);
  ~PageGroup();
  PageGroup(const PageGroup&) = delete;
  PageGroup& operator=(const PageGroup&) = delete;

  static std::int64_t table_bytes(const GroupLayout* layout, std::int64_t num_pages) noexcept;

  const PagePool& pool() const noexcept { return pool_; }
  std::int64_t page_bytes() const noexcept { return layout_ == nullptr ? 0 : layout_->page_bytes; }
  // Bytes of committed rows, a shared row counted once.
  std::int64_t stored_bytes() const noexcept {
    return layout_ == nullptr ? 0 : stored_rows_ * layout_->row_bytes();
  }
  void set_keeper(PageKeeper* keeper) noexcept { keeper_ = keeper; }

  // --- Room. ---

  // For `count` more tokens of a sequence of `length`.
  PageNeed need(const GroupTable& table, std::int64_t length, std::int64_t count) const noexcept;

  // Memory of the fresh ones among the next `pages`. Errors: kOutOfMemory, nothing changed.
  // return_memory() undoes it, before any page is taken.
  Status grant_memory(std::int64_t pages) noexcept;
  void return_memory(std::int64_t pages) noexcept;

  // Takes room.num_pages() pages. REQUIRES: memory was granted for them, and they are available.
  void take(GroupRoom& room) noexcept;
  // The runs of a sequence's new rows, `count` packed rows from `row` on. REQUIRES: taken.
  void place(const GroupTable& table, std::int64_t length, std::int64_t count, std::int64_t row,
             std::size_t i, GroupRoom& room) const noexcept;

  // Ends a step for its sequence i: pages of accepted rows enter the table, the others go back.
  // Returns how many entries the table gained less those that the step had for it (never more
  // than 0). REQUIRES: capacity in table.pages.
  std::int64_t keep(GroupTable& table, std::int64_t length, std::int64_t accepted, std::size_t i,
                    const GroupRoom& room) noexcept;

  // --- Tables. ---

  // Keeps the pages of the first `length` tokens. From the tail, so that appending again takes the
  // same pages again. Returns how many entries are gone.
  std::int64_t shorten(GroupTable& table, std::int64_t length) noexcept;
  // `child` holds the pages it lists from now on, those of the first `length` tokens of another.
  // REQUIRES: it held none.
  void adopt(GroupTable& child, std::int64_t length) noexcept;
  // What `from` holds becomes what `to` holds. REQUIRES: `to` is empty.
  void hand_over(GroupTable& from, GroupTable& to) noexcept;

  // Whether bytes lie in the group's memory.
  bool owns(const ByteSpan& span) const noexcept;

  // A cached page becomes free.
  void evict(std::int32_t page) noexcept { pool_.evict(page); }

  // --- Where rows are. ---

  // Buffer `buffer` of the group's layer number `layer`.
  RowsView rows(std::int64_t layer, std::int32_t buffer) const noexcept;
  // fn(const RowsView&, const BufferLayout&) for each buffer of that layer.
  template <typename Fn>
  void for_each_buffer(std::int64_t layer, Fn&& fn) const {
    for (std::int32_t b = 0; b < layout_->spec.num_buffers; ++b) {
      fn(rows(layer, b), layout_->buffers[b]);
    }
  }

  // The bookkeeping counted again, but for what tables and steps name: `named` by how many tables,
  // `reserved` by how many open steps, and the rows of each page, [num_pages].
  Status check(const std::vector<std::int64_t>& named, const std::vector<std::int64_t>& reserved,
               const std::vector<std::int64_t>& rows) const;

 private:
  std::int64_t region_pages() const noexcept { return std::int64_t{1} << region_shift_; }
  std::int64_t region_bytes() const noexcept;
  // Of a buffer's pages, those of one region. They start at pages of the system.
  std::int64_t buffer_bytes(std::int32_t buffer) const noexcept;
  Region region(std::int64_t index) const noexcept;
  // Of the region's pages, how many are among begin .. end of the pool.
  std::int64_t pages_in(std::int64_t region, std::int64_t begin, std::int64_t end) const noexcept;
  void add_region(const std::byte* data) noexcept;
  // Gives back the memory of pages begin .. end, and regions from `keep` on.
  void give_back(std::int64_t begin, std::int64_t end, std::int64_t keep) noexcept;

  void announce(std::int64_t touched) noexcept;
  void drop(std::int32_t page) noexcept;
  void link_tail(GroupTable& table, std::int32_t page, std::int32_t rows) noexcept;
  void unlink_tail(GroupTable& table) noexcept;
  // The sequence ends at `length` now: within its last page, or at the end of it.
  void set_tail(GroupTable& table, std::int64_t length) noexcept;
  void set_rows(std::int32_t page, std::int32_t rows) noexcept;
  void count_rows(std::int32_t page) noexcept;

  const GroupLayout* const layout_;
  const std::int64_t page_size_;
  MemoryResource& memory_;
  PagePool pool_;
  PageKeeper* keeper_ = nullptr;
  std::int32_t region_shift_ = 0;
  std::int64_t num_regions_ = 0;
  ByteSpan reach_;  // from the lowest to the highest region there was
  std::int64_t stored_rows_ = 0;
  // Null where there are no buffers.
  const std::byte** starts_ = nullptr;  // [num_pages] of the regions there are: room for all
  GroupTable** tails_ = nullptr;        // [num_pages] a list of the sequences that end in the page
  std::int32_t* rows_ = nullptr;        // [num_pages] committed rows
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_GROUP_H_
