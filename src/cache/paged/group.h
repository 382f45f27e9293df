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
struct PagedSequence;
struct PagedStep;

// A page of which a sequence holds some rows and not others: 0 .. sinks and begin .. end. Those of
// a page are linked, so that its rows are counted when one of them changes.
struct PageEdge {
  std::int32_t page = -1;  // -1: none
  std::int32_t sinks = 0;
  std::int32_t begin = 0, end = 0;
  PageEdge* previous = nullptr;
  PageEdge* next = nullptr;
};

// The pages of one sequence in one group: those before its hole and those behind it. Not to be
// moved while it has edges.
struct GroupTable {
  std::vector<std::int32_t> pages;
  std::int64_t first = 0;  // the oldest row held beside the sinks; it never falls
  std::int64_t hole_begin = 0, hole_pages = 0;
  // Pages of which rows were never in them: the first ones, that were gone before it came, or those
  // behind the sinks, where all of them came from elsewhere.
  std::int64_t torn = -1, torn_sinks = -1;
  bool is_torn(std::int64_t page) const noexcept { return page == torn || page == torn_sinks; }

  static constexpr int kMaxEdges = 3;  // where sinks end, where `first` is, where the sequence ends
  PageEdge edges[kMaxEdges];

  // The sequence's pages, those of the hole counted.
  std::int64_t end() const noexcept { return hole_pages + static_cast<std::int64_t>(pages.size()); }
  // Where page number `page` of the sequence is in `pages`. REQUIRES: not in the hole.
  std::size_t entry(std::int64_t page) const noexcept {
    return static_cast<std::size_t>(page < hole_begin ? page : page - hole_pages);
  }
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
  std::int64_t evicts = 0;                    // how many come from evictions, by the plan
  std::int64_t bare = 0, fresh = 0;           // that memory was granted for
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

  // Pages begin .. end of the group are taken for the first time: what is kept of them is not yet
  // written.
  virtual void touched(const PageGroup&, std::int32_t, std::int32_t) noexcept {}

  // Room is needed: evicts at least `count` of the group's cached pages, by group.evict(page).
  // Asked once memory was granted and before the first page is taken.
  virtual void make_room(PageGroup& group, std::int64_t count) noexcept = 0;

  // Whether it names `page`, held or cached: then nobody writes to it, and who appends behind its
  // rows copies them first.
  virtual bool names(const PageGroup&, std::int32_t) const noexcept { return false; }

  // Room for a step is about to be counted and taken; null: it was, or was refused.
  virtual void reserving(const PagedStep*) noexcept {}
  // Cached pages of the group that such a step must leave.
  virtual std::int64_t spared(const PageGroup&) const noexcept { return 0; }

  // Sequence `i` of a step keeps `accepted` new tokens: their ids are stored, their pages enter the
  // tables next, and then those leave that no row is held of.
  virtual void grown(PagedSequence&, const PagedStep&, std::size_t, std::int64_t) noexcept {}
  // A sequence is about to be released.
  virtual void leaving(PagedSequence&) noexcept {}
};

class PageGroup {
 public:
  // `layout` null: no buffers. `tables` has table_bytes(), of which a page's are written when it is
  // touched; both, `memory` and the keeper live as long as the group.
  PageGroup(const GroupLayout* layout, std::int64_t page_size, std::int64_t num_pages,
            MemoryResource& memory, std::byte* tables);
  ~PageGroup();
  PageGroup(const PageGroup&) = delete;
  PageGroup& operator=(const PageGroup&) = delete;

  static std::int64_t table_bytes(const GroupLayout* layout, std::int64_t num_pages) noexcept;

  const PagePool& pool() const noexcept { return pool_; }
  std::int64_t page_bytes() const noexcept { return layout_ == nullptr ? 0 : layout_->page_bytes; }
  // Bytes of the pages that have memory, once `taken` more are taken: as it would be now, and at
  // least, if free pages and those that could be evicted, not among these, gave theirs back.
  std::int64_t memory_with(std::int64_t taken) const noexcept {
    return (pool_.touched() - pool_.bare() + pool_.bare_among(taken) + pool_.fresh_among(taken)) *
           page_bytes();
  }
  std::int64_t least_memory_with(std::int64_t taken) const noexcept {
    return (pool_.held() + pool_.reserved() + spared() + taken) * page_bytes();
  }
  // Pages touched then, if all that could be evicted went before the first fresh one.
  std::int64_t least_touched_with(std::int64_t taken) const noexcept {
    return pool_.touched() + pool_.fresh_among(std::max<std::int64_t>(0, taken - evictable()));
  }
  // Bytes of committed rows that are held, a shared row counted once.
  std::int64_t stored_bytes() const noexcept {
    return layout_ == nullptr ? 0 : stored_rows_ * layout_->row_bytes;
  }
  // What is kept of a sequence.
  const KeepRule& rule() const noexcept { return rule_; }
  std::int64_t rows_held(const GroupTable& table, std::int64_t length) const noexcept {
    return sink_rows(table) + length - table.first;
  }
  // Of those the sinks that lie before table.first.
  std::int64_t sink_rows(const GroupTable& table) const noexcept {
    return std::min<std::int64_t>(rule_.life.sink_tokens, table.first);
  }
  // Rows of the last page that the table lists; 0 without one.
  std::int64_t last_page_rows(const GroupTable& table, std::int64_t length) const noexcept;
  void set_keeper(PageKeeper* keeper, std::int32_t number) noexcept {
    keeper_ = keeper;
    number_ = number;
  }
  // Its number, as the keeper was told.
  std::int32_t number() const noexcept { return number_; }
  // Pages that could be taken, once cached ones are evicted.
  std::int64_t available() const noexcept { return pool_.available() - spared(); }
  std::int64_t evictable() const noexcept { return pool_.cached() - spared(); }
  // Whether a row behind those in `page`, which one table names, goes to a copy.
  bool is_named(std::int32_t page) const noexcept {
    return keeper_ != nullptr && keeper_->names(*this, page);
  }

  // --- Room. ---

  // For `count` more tokens of a sequence of `length`.
  PageNeed need(const GroupTable& table, std::int64_t length, std::int64_t count) const noexcept;

  // Gives back at least `bytes` of memory, if free pages beside the next `taken` have it.
  void shed_free(std::int64_t bytes, std::int64_t taken) noexcept;
  // Lends the account of at least `bytes` of memory, or of `pages` pages: it is given back to the
  // resource, and the rows stay. Returns the bytes. What sheds its memory next pays them back; what
  // is still lent then repay() asks for again, as often as it is refused.
  std::int64_t lend(std::int64_t bytes, std::int64_t pages) noexcept;
  void repay() noexcept;
  std::int64_t lent_bytes() const noexcept { return lent_pages_ * page_bytes(); }
  // Evicts at least `count` cached pages, or all that could be. Whether any went.
  bool evict_cached(std::int64_t count) noexcept;
  // The pages of a table that holds none of them yet are not cached between the two.
  void pin(const GroupTable& table) noexcept;
  void unpin(const GroupTable& table) noexcept;

  // Memory of those among the next `pages` that have none. Errors: kOutOfMemory, nothing changed.
  // return_memory() undoes it, before any page is taken.
  Status grant_memory(std::int64_t pages) noexcept;
  void return_memory(std::int64_t pages) noexcept;

  // Takes room.num_pages() pages. REQUIRES: memory was granted for room.bare that are bare and
  // room.fresh that are fresh, and all are available. What evictions made needless of that memory
  // is given back.
  void take(GroupRoom& room) noexcept;
  // The runs of a sequence's new rows, `count` packed rows from `row` on. REQUIRES: taken.
  void place(const GroupTable& table, std::int64_t length, std::int64_t count, std::int64_t row,
             std::size_t i, GroupRoom& room) const noexcept;

  // Ends a step for its sequence i: pages of accepted rows enter the table, those that no row is
  // held of any more leave it, the others go back. Returns how many entries the table gained less
  // those that the step had for it (never more than 0). `holds`: all rows stay, whatever the rule.
  // REQUIRES: capacity in table.pages.
  std::int64_t keep(GroupTable& table, std::int64_t length, std::int64_t accepted, std::size_t i,
                    const GroupRoom& room, bool holds) noexcept;

  // --- Tables. ---

  // Keeps the pages of the first `length` tokens. From the tail, so that appending again takes the
  // same pages again. Returns how many entries are gone. REQUIRES: table.first <= length, or tails.
  std::int64_t shorten(GroupTable& table, std::int64_t length) noexcept;
  // Drops what the rule drops at `length`. Returns how many entries are gone.
  std::int64_t let_go(GroupTable& table, std::int64_t length) noexcept;
  // The table is empty again. Returns how many entries are gone.
  std::int64_t clear(GroupTable& table) noexcept;
  // `child` lists the pages of the first `length` tokens of `parent`, and holds them from adopt()
  // on; `is_held`: as `parent` does. REQUIRES: it held none; parent.first <= length, or tails. May
  // throw bad_alloc.
  void list(const GroupTable& parent, std::int64_t length, GroupTable& child) const;
  void adopt(GroupTable& child, std::int64_t length, bool is_held) noexcept;
  // What `from` holds becomes what `to` holds. REQUIRES: `to` is empty.
  void hand_over(GroupTable& from, GroupTable& to) noexcept;

  // Whether bytes lie in the group's memory.
  bool owns(const ByteSpan& span) const noexcept {
    return intersect(span, reach_) && a_region_has(span);
  }

  // A cached page becomes free.
  void evict(std::int32_t page) noexcept { pool_.evict(page); }

  // --- Where rows are. ---

  // Buffer `buffer` of the group's layer number `layer`.
  RowsView rows(std::int64_t layer, std::int32_t buffer) const noexcept;
  // fn(const RowsView&, const BufferLayout&) for each buffer of that layer.
  template <typename Fn>
  void for_each_buffer(std::int64_t layer, Fn&& fn) const {
    const LayerLayout& shape = layout_->layers[static_cast<std::size_t>(layer)];
    for (std::int32_t b = 0; b < shape.spec.num_buffers; ++b) fn(rows(layer, b), shape.buffers[b]);
  }

  // The bookkeeping counted again, but for what tables and steps name: `named` by how many tables,
  // `reserved` by how many open steps, and the rows of each page, [num_pages].
  Status check(const std::vector<std::int64_t>& named, const std::vector<std::int64_t>& reserved,
               const std::vector<std::int64_t>& rows) const;

 private:
  std::int64_t spared() const noexcept { return keeper_ != nullptr ? keeper_->spared(*this) : 0; }
  std::int64_t region_pages() const noexcept { return std::int64_t{1} << region_shift_; }
  std::int64_t region_bytes() const noexcept { return offsets_.empty() ? 0 : offsets_.back(); }
  Region region(std::int64_t index) const noexcept;
  // Of the region's pages, how many are among begin .. end of the pool.
  std::int64_t pages_in(std::int64_t region, std::int64_t begin, std::int64_t end) const noexcept;
  void add_region(const std::byte* data) noexcept;
  bool a_region_has(const ByteSpan& span) const noexcept;
  // Gives back the memory of pages begin .. end, and regions from `keep` on.
  void give_back(std::int64_t begin, std::int64_t end, std::int64_t keep) noexcept;

  void announce(std::int64_t touched) noexcept;
  // Gives back the memory of pages that are bare, the next `count` of them.
  void give_back_bare(std::int64_t count) noexcept;
  // Pages of a region that the resource has granted, and those that it was lent: together those
  // that have memory.
  struct Account {
    std::int32_t granted = 0, lent = 0;
  };
  Account& account(std::int64_t region) noexcept {
    return accounts_[static_cast<std::size_t>(region)];
  }
  Status commit(std::int64_t region, std::int64_t pages) noexcept;
  void decommit(std::int64_t region, std::int64_t pages) noexcept;
  // Whether the page that row `length` goes to is in the table.
  bool has_tail(const GroupTable& table, std::int64_t length) const noexcept {
    return length % page_size_ != 0 && table.end() > length / page_size_;
  }
  // Drops the pages of which `length` rows leave none that is held. Returns how many.
  std::int64_t conform(GroupTable& table, std::int64_t length) noexcept;
  void drop(std::int32_t page) noexcept;

  // A table changes between the two: the pages it had edges in are counted when it has new ones.
  struct Left {
    std::int32_t pages[GroupTable::kMaxEdges] = {-1, -1, -1};
  };
  Left unlink_edges(GroupTable& table) noexcept;
  void link_edges(GroupTable& table, std::int64_t length, const Left& left) noexcept;
  void link(PageEdge& edge) noexcept;
  void unlink(PageEdge& edge) noexcept;
  void count_rows(std::int32_t page) noexcept;

  const GroupLayout* const layout_;
  const KeepRule rule_;
  const std::int64_t page_size_;
  MemoryResource& memory_;
  PagePool pool_;
  PageKeeper* keeper_ = nullptr;
  std::int32_t number_ = 0;
  std::int32_t region_shift_ = 0;
  std::int64_t num_regions_ = 0;
  ByteSpan reach_;  // from the lowest to the highest region there was
  std::vector<Account> accounts_;
  std::int64_t lent_pages_ = 0;
  std::int64_t stored_rows_ = 0;
  // Where the pages of each buffer of each layer start in a region, and those of its scales,
  // [num_layers, kMaxBuffers, 2], at pages of the system; then the bytes of a region. Empty where
  // there are no buffers.
  std::vector<std::int64_t> offsets_;
  // Null where there are no buffers.
  const std::byte** starts_ = nullptr;  // [num_pages] of the regions there are: room for all
  PageEdge** edges_ = nullptr;          // [num_pages] a list of those that end or begin in the page
  std::int32_t* rows_ = nullptr;        // [num_pages] committed rows that are held
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_GROUP_H_
