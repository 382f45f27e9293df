// Sequences over pages: who has which page, what an open step has taken, and where rows lie. The
// bookkeeping behind PagedCache; rows are copied in rows.h, tables are built in
// tables.h.
//
// Copy on write is decided by reserve(): a step that appends behind a tail page that is shared at
// that moment takes a page of its own for it, and the committed rows move there with the first
// write of each layer. The sequence's own table names the old page until commit, so that nothing is
// visible before and rollback has nothing to undo.
#ifndef KVCACHE_SRC_CACHE_PAGED_STORE_H_
#define KVCACHE_SRC_CACHE_PAGED_STORE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/paged/group.h"
#include "cache/paged/layout.h"
#include "kvcache/memory.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

struct PagedStep;
struct PrefixSpace;

// How far the pages of a sequence are in the index of prefixes, if there is one.
struct PrefixCursor {
  std::shared_ptr<const PrefixSpace> space;  // null: none of its pages goes there
  std::int64_t pages = 0;                    // of its leading ones
  std::int32_t node = -1;                    // the last of them
  std::uint32_t serial = 0;                  // of that node
};

struct PagedSequence {
  SequenceId id{};
  std::int64_t length = 0;  // committed tokens
  std::int64_t coded = 0;   // of them coded, where the newest stay plain
  // Leading tokens whose ids are known: they are kept as long as every append brings them.
  std::int64_t known_tokens = 0;
  std::vector<GroupTable> tables;  // [group], and that of the blocks of token ids
  PrefixCursor cursor;
  bool is_handle = false;   // the library's own, on a prefix
  bool holds_rows = false;  // whatever windows and chunks drop

  const PagedStep* step = nullptr;  // the open step it is in
  std::int64_t step_index = 0;      // and where
  std::int64_t mark = 0;            // of the last call that looked for repetitions
};

struct StepSequence {
  PagedSequence* seq = nullptr;
  std::int64_t count = 0;          // new tokens
  std::int64_t tokens_begin = -1;  // their ids in PagedStep::tokens; -1: none are kept
};

// Of a sequence that was stored elsewhere.
struct RestoredSequence {
  std::int64_t length = 0;
  std::int64_t coded = 0;           // rows that are codes where the form is coded
  std::vector<std::int64_t> first;  // [num_layers] the oldest row that is there beside the sinks
  std::span<const std::int32_t> tokens;      // ids of leading tokens
  std::shared_ptr<const PrefixSpace> space;  // where they are to be found; null: nowhere
  SequenceId id{};                           // that it is to have; 0: a new one
};

using SequenceMap = std::unordered_map<std::int64_t, std::unique_ptr<PagedSequence>>;

struct PagedStep {
  std::vector<StepSequence> seqs;
  std::vector<GroupRoom> rooms;  // [group], and that of the blocks of token ids
  std::vector<std::int32_t> tokens;
  std::vector<unsigned char> written;  // [num_layers]
  std::int64_t num_new_tokens = 0;
  SequenceMap restored;  // the step's own sequence, until it is open: see reserve_restored()
  std::int64_t high_water_before = 0;  // of pages: then, if it is rolled back
  std::mutex mutex;  // guards `tables`: views of one step may be asked for at once
};

SequenceId next_sequence_id() noexcept;
// The largest that may be given from outside: far from those given out, and far from the last that
// there can be, so that a process does not run out of them.
std::int64_t most_sequence_id() noexcept;
// No later id is that one.
void skip_sequence_id(SequenceId id) noexcept;

// Errors are those of PagedCache; every failing call changes nothing. Calls that return Status or
// Result may throw bad_alloc, with the same promise.
class PagedStore {
 public:
  // `budget_bytes` 0: no bound. REQUIRES: layout.check_num_pages(num_pages) is ok.
  static Result<std::unique_ptr<PagedStore>> create(PagedLayout layout, std::int64_t num_pages,
                                                    std::int64_t budget_bytes,
                                                    MemoryResource& memory);
  ~PagedStore();
  PagedStore(const PagedStore&) = delete;
  PagedStore& operator=(const PagedStore&) = delete;

  // --- Sequences (store.cc). ---
  Result<SequenceId> open();
  Status release(SequenceId id);
  Result<SequenceId> fork(SequenceId id, std::int64_t length, bool is_handle = false);
  Status reaches(SequenceId id, std::int64_t length) const;
  Status hold_rows(SequenceId id, bool hold);
  Status truncate(SequenceId id, std::int64_t length);
  Status rewind(SequenceId id, std::int64_t count);
  Status reorder(std::span<const SequenceId> ids, std::span<const std::int64_t> beam_idx);

  // For prefixes: a sequence that is not open yet; opened, it holds the pages that its tables list,
  // each held or cached. `is_held`: all of them by another sequence, with the same rows.
  std::unique_ptr<PagedSequence> make_sequence() const;
  Result<PagedSequence*> assemble(std::unique_ptr<PagedSequence> seq, bool is_held = false);
  // Records of `count` sequences more or less, of something else. Errors as those of open().
  Status charge_records(std::int64_t count);
  // Whether nothing leaves for them.
  bool has_room_for_records(std::int64_t count) const noexcept {
    return budget_bytes_ == 0 || bytes_with({count, 0}) <= budget_bytes_;
  }
  void return_records(std::int64_t count) noexcept { records_ -= count; }
  // Gives back what is not used of the memory of tables: at the end of every call that may free
  // some.
  void settle_tables() noexcept;
  struct SettleTables {  // at the end of a scope
    PagedStore& store;
    ~SettleTables() { store.settle_tables(); }
  };
  void evict(std::size_t group, std::int32_t page) noexcept { groups_[group].evict(page); }
  void forget_prefixes() noexcept;
  std::vector<std::int64_t> handles() const;
  std::vector<SequenceId> sequences() const;  // others than handles, by id

  Result<const PagedSequence*> find(SequenceId id) const;
  Result<std::vector<const PagedSequence*>> find_all(std::span<const SequenceId> ids) const;

  // --- Steps (step.cc). A step must be committed or rolled back before it is destroyed,
  // unless the store is gone. ---
  Result<std::unique_ptr<PagedStep>> reserve(std::span<const Append> appends);
  // What commit() refuses. Errors: kInvalidArgument.
  Status check_commit(const PagedStep& step, std::span<const std::int64_t> accepted) const;
  Status commit(PagedStep& step, std::span<const std::int64_t> accepted);
  void rollback(PagedStep& step) noexcept;
  // Counts the tails that the step copies in a group, once.
  void count_copies(PagedStep& step, std::size_t group) noexcept;

  // --- Sequences that were stored elsewhere (restore.cc). ---
  // Room for one, as a step of its own that ends by open_restored(), once its rows are where its
  // tables say (raw_rows.h), or by rollback(). Errors: as reserve(), and kCorrupt for rows that are
  // missing; kInvalidArgument for plain ones that have no place here.
  Result<std::unique_ptr<PagedStep>> reserve_restored(const RestoredSequence& from);
  // Whether that would take free pages with their memory alone, so that a rollback leaves nothing.
  bool has_in_hand(const RestoredSequence& from) const;
  SequenceId open_restored(PagedStep& step) noexcept;

  // Room for one page in each group of `wanted`, and a block, as far as nothing must be evicted for
  // it: null where it must. hold_pages() and drop_pages() end the step: between the two its pages
  // are held by a table that nobody sees. Or rollback(). Errors: kOutOfMemory.
  Result<std::unique_ptr<PagedStep>> reserve_pages(const std::vector<bool>& wanted);
  void hold_pages(PagedStep& step) noexcept;
  void drop_pages(PagedStep& step) noexcept;

  // --- Plain tails of coded rows. ---
  // The group of a layer's tails; -1: it has none.
  std::int32_t tail_group(std::int64_t layer) const noexcept {
    return layout_.groups[static_cast<std::size_t>(place(layer).group)].tail;
  }
  // Coded rows of a sequence once it has `length`.
  std::int64_t coded_at(const PagedSequence& seq, std::int64_t length) const noexcept {
    return std::max(seq.coded, layout_.tail.coded(length));
  }
  // Rows of a sequence's step that a group has room for.
  std::int64_t count_in(std::size_t group, const StepSequence& entry) const noexcept {
    if (is_blocks(group)) {
      const bool none = entry.tokens_begin < 0 || entry.seq->known_tokens != entry.seq->length;
      return none ? 0 : entry.count;
    }
    return rows_in(group, *entry.seq, entry.count);
  }

  // --- What there is. ---
  const PagedLayout& layout() const noexcept { return layout_; }
  std::int64_t page_size() const noexcept { return layout_.page_size; }
  const LayerSpec& spec_of(std::int64_t layer) const noexcept {
    const LayerPlace at = place(layer);
    return layout_.groups[static_cast<std::size_t>(at.group)]
        .layers[static_cast<std::size_t>(at.index)]
        .spec;
  }
  const GroupTable& table_of(const PagedSequence& seq, std::int64_t layer) const noexcept {
    return seq.tables[static_cast<std::size_t>(place(layer).group)];
  }
  const PageGroup& group(std::size_t index) const noexcept { return groups_[index]; }
  const PageGroup& group_of(std::int64_t layer) const noexcept {
    return groups_[static_cast<std::size_t>(place(layer).group)];
  }
  LayerPlace place(std::int64_t layer) const noexcept {
    return layout_.places[static_cast<std::size_t>(layer)];
  }
  Device device() const noexcept { return memory_.device(); }
  // Whether a tensor lies, in part or whole, in memory of the pages.
  bool owns(const TensorView& rows) const noexcept;

  std::int64_t free_pages(std::int64_t group) const noexcept;
  PagedStats stats() const noexcept;
  std::int64_t nbytes() const noexcept;
  std::int64_t reserved_bytes() const noexcept { return bytes_with({}); }
  std::int64_t num_pages() const noexcept { return num_pages_; }
  const PageGroup& blocks() const noexcept { return groups_.back(); }
  // Where the ids of a block lie, [page_size].
  std::int32_t* token_slots(std::int32_t block) const noexcept {
    return token_ids_ + block * layout_.page_size;
  }
  // num_pages() * PagedLayout::prefix_bytes, at a multiple of 64. What lies there of a page may be
  // written once the page is touched.
  std::byte* prefix_memory() const noexcept { return prefix_memory_; }
  // Who decides about pages that no sequence names. REQUIRES: it outlives the store, or is unset.
  void set_keeper(PageKeeper* keeper) noexcept;
  // The known ids of a sequence, oldest first.
  std::vector<std::int32_t> tokens(const PagedSequence& seq) const;

  Status check_invariants() const;  // check.cc

 private:
  PagedStore(PagedLayout layout, std::int64_t num_pages, std::int64_t budget_bytes,
             MemoryResource& memory)
      : layout_(std::move(layout)),
        num_pages_(num_pages),
        budget_bytes_(budget_bytes),
        memory_(memory) {}
  Status create_groups();

  // The blocks of token ids are a group of no rows, behind the others: it goes by the tokens whose
  // ids are known.
  bool is_blocks(std::size_t group) const noexcept { return group == layout_.groups.size(); }
  bool is_codes(std::size_t group) const noexcept {
    return !is_blocks(group) && layout_.groups[group].tail >= 0;
  }
  std::int64_t length_in(std::size_t group, const PagedSequence& seq) const noexcept {
    if (is_blocks(group)) return seq.known_tokens;
    return is_codes(group) ? seq.coded : seq.length;
  }
  // Rows that `count` more tokens of a sequence bring to a group of rows.
  std::int64_t rows_in(std::size_t group, const PagedSequence& seq,
                       std::int64_t count) const noexcept {
    return is_codes(group) && count > 0 ? coded_at(seq, seq.length + count) - seq.coded : count;
  }

  // For a scope in which room for a step is counted and taken.
  struct Announced {
    Announced(PageKeeper* told, const PagedStep& step) noexcept : keeper(told) {
      if (keeper != nullptr) keeper->reserving(&step);
    }
    ~Announced() {
      if (keeper != nullptr) keeper->reserving(nullptr);
    }
    PageKeeper* keeper;
  };

  // What a call adds: sequences, page ids in tables, and the pages that a step has counted.
  struct Growth {
    std::int64_t sequences = 0;
    std::int64_t entries = 0;
    PagedStep* step = nullptr;
  };
  // Pages of the group, and of these, those that are not to come from evictions.
  static std::int64_t pages_of(const Growth& growth, std::size_t group) noexcept {
    return growth.step == nullptr ? 0 : growth.step->rooms[group].num_pages();
  }
  static std::int64_t new_pages_of(const Growth& growth, std::size_t group) noexcept {
    return growth.step == nullptr
               ? 0
               : growth.step->rooms[group].num_pages() - growth.step->rooms[group].evicts;
  }
  // Of tables, of groups of which none has touched more pages than `touched`.
  std::int64_t tables_of(const Growth& growth, std::int64_t touched) const noexcept {
    return layout_.table_bytes(touched, num_records() + growth.sequences,
                               table_entries_ + growth.entries);
  }
  // reserved_bytes() afterwards: of tables, as things are, and at least, with no page in memory
  // that nobody holds.
  std::int64_t tables_with(const Growth& growth) const noexcept;
  std::int64_t bytes_with(const Growth& growth) const noexcept;
  std::int64_t least_bytes_with(const Growth& growth) const noexcept;
  // Within a budget memory is asked for before anything leaves, so that a refusal changes nothing:
  // plan_room() decides how many pages of each group come from evictions, and, where bytes must go
  // from one group to another or to tables, lends the account of pages that will leave.
  // make_room() then lets them leave, until `growth` fits the budget, and repay() asks for what
  // was lent of pages that stay. REQUIRES: least_bytes_with(growth) is within the budget.
  void plan_room(const Growth& growth) noexcept;
  void make_room(const Growth& growth) noexcept;
  void repay() noexcept;
  // Asks for the tables; settle_tables() gives back what is not used of them. Errors: kOutOfMemory.
  Status charge_tables(const Growth& growth);
  // Both, for tables alone; the pages that `listed` names, if any, do not leave for it. Errors:
  // kRetryLater past the budget, kOutOfMemory.
  Status grow_tables(const Growth& growth, const PagedSequence* listed = nullptr);
  Result<PagedSequence*> find_idle(SequenceId id);
  Result<PagedSequence*> insert(std::unique_ptr<PagedSequence> seq);
  // Whether every group holds what a query at position `length` sees. Errors: kOutOfRange.
  Status check_held(const PagedSequence& seq, std::int64_t length) const;
  // Keeps the first `length` tokens. REQUIRES: they were checked.
  void shorten(PagedSequence& seq, std::int64_t length) noexcept;
  void clear(PagedSequence& seq) noexcept;
  std::int64_t num_records() const noexcept {
    return static_cast<std::int64_t>(sequences_.size()) + records_;
  }
  // Drops what windows and chunks drop at its length.
  void let_go(PagedSequence& seq) noexcept;

  Status check_restored(const RestoredSequence& from, PagedSequence& seq) const;
  // Pages of a checked one in a group.
  std::int64_t pages_of_restored(std::size_t group, const RestoredSequence& from,
                                 const PagedSequence& seq) const noexcept;
  Status check_appends(std::span<const Append> appends, PagedStep& step);
  void count_room(PagedStep& step) const;
  Status check_room(PagedStep& step, std::int64_t* entries) const;
  Status check_budget(const Growth& growth) const;
  void reserve_tables(PagedStep& step);
  // The step's pages and sequence, with `entries` more in tables.
  static Growth growth_of(PagedStep& step, std::int64_t entries) noexcept {
    return {static_cast<std::int64_t>(step.restored.size()), entries, &step};
  }
  Status grant_memory(PagedStep& step, std::int64_t entries);
  void take(PagedStep& step) noexcept;
  void keep(PagedStep& step, std::size_t i, std::int64_t accepted) noexcept;
  void store_tokens(const PagedStep& step, std::size_t i, std::int64_t accepted) noexcept;
  void end_step() noexcept;

  PagedLayout layout_;
  std::int64_t num_pages_;
  std::int64_t budget_bytes_;
  MemoryResource& memory_;
  Region tables_;                      // of all groups, and the token ids
  std::int64_t tables_bytes_ = 0;      // committed of it
  std::deque<PageGroup> groups_;       // those of the layout, and that of the blocks of token ids
  std::int32_t* token_ids_ = nullptr;  // [num_pages, page_size], by block
  SequenceMap sequences_;
  std::int64_t table_entries_ = 0;  // page ids in tables and taken by steps, over all groups
  std::int64_t records_ = 0;        // see charge_records()
  std::int64_t handles_ = 0;        // sequences that are the library's own
  PageKeeper* keeper_ = nullptr;
  std::byte* prefix_memory_ = nullptr;
  std::int64_t mark_ = 0;
  std::int64_t open_steps_ = 0;
  std::int64_t pages_high_water_ = 0;
  std::int64_t pages_copied_ = 0;
  std::int64_t rows_copied_ = 0;
  std::int64_t rows_encoded_ = 0;
};

// At the end of a scope a step is rolled back, unless `step` was set to null.
struct RollBack {
  PagedStore& store;
  PagedStep* step;
  ~RollBack() {
    if (step != nullptr) store.rollback(*step);
  }
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_STORE_H_
