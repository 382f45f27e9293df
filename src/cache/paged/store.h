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

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/paged/layout.h"
#include "cache/paged/pool.h"
#include "kvcache/memory.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

struct PagedStep;
struct PagedTables;

struct PagedSequence {
  SequenceId id{};
  std::int64_t length = 0;  // committed tokens
  // Leading tokens whose ids are known: they are kept as long as every append brings them.
  std::int64_t known_tokens = 0;
  std::vector<std::vector<std::int32_t>> tables;  // [group]: pages_for(length) page ids

  const PagedStep* step = nullptr;  // the open step it is in
  std::int64_t step_index = 0;      // and where
  std::int64_t mark = 0;            // of the last call that looked for repetitions
};

// New rows of one sequence within one page.
struct StepRun {
  std::int32_t page = 0;
  std::int32_t slot = 0;   // of its first row
  std::int32_t count = 0;  // rows
  std::int64_t row = 0;    // of the packed new tokens
};

struct StepSequence {
  PagedSequence* seq = nullptr;
  std::int64_t count = 0;          // new tokens
  std::int64_t tokens_begin = -1;  // their ids in PagedStep::tokens; -1: none given
};

// What a step took from one group.
struct StepGroup {
  // Pages of sequence i: rooms[i].begin .. rooms[i + 1].begin; the first is the copy of its tail.
  struct Room {
    std::int64_t begin = 0;
    bool copies_tail = false;
  };
  std::vector<Room> rooms;                    // [num_seqs + 1]
  std::vector<std::int32_t> pages;            // in the order they were taken
  std::vector<StepRun> runs;                  // in the order of the packed rows
  bool counted = false;                       // whether its copies are in the counters yet
  std::shared_ptr<const PagedTables> tables;  // built by the first view
};

struct PagedStep {
  std::vector<StepSequence> seqs;
  std::vector<StepGroup> groups;
  std::vector<std::int32_t> tokens;
  std::vector<unsigned char> written;  // [num_layers]
  std::int64_t num_new_tokens = 0;
  std::mutex mutex;  // guards `tables`: views of one step may be asked for at once
};

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
  Result<SequenceId> fork(SequenceId id, std::int64_t length);
  Status truncate(SequenceId id, std::int64_t length);
  Status rewind(SequenceId id, std::int64_t count);
  Status reorder(std::span<const SequenceId> ids, std::span<const std::int64_t> beam_idx);

  Result<const PagedSequence*> find(SequenceId id) const;
  Result<std::vector<const PagedSequence*>> find_all(std::span<const SequenceId> ids) const;

  // --- Steps (step.cc). A step must be committed or rolled back before it is destroyed,
  // unless the store is gone. ---
  Result<std::unique_ptr<PagedStep>> reserve(std::span<const Append> appends);
  Status commit(PagedStep& step, std::span<const std::int64_t> accepted);
  void rollback(PagedStep& step) noexcept;
  void count_copies(StepGroup& group, const PagedStep& step) noexcept;

  // --- What there is. ---
  const PagedLayout& layout() const noexcept { return layout_; }
  std::int64_t page_size() const noexcept { return layout_.page_size; }
  const PagedGroup& group_of(std::int64_t layer) const noexcept {
    return layout_.groups[place(layer).group];
  }
  LayerPlace place(std::int64_t layer) const noexcept {
    return layout_.places[static_cast<std::size_t>(layer)];
  }
  std::byte* k_rows(std::int64_t layer) const noexcept;
  std::byte* v_rows(std::int64_t layer) const noexcept;
  Device device() const noexcept { return memory_.device(); }
  // Whether a tensor lies, in part or whole, in memory of the pages.
  bool owns(const TensorView& rows) const noexcept;

  std::int64_t free_pages(std::int64_t group) const noexcept;
  PagedStats stats() const noexcept;
  std::int64_t nbytes() const noexcept;
  std::int64_t reserved_bytes() const noexcept { return bytes_with(0, 0, 0); }
  // The known ids of a sequence, oldest first.
  std::vector<std::int32_t> tokens(const PagedSequence& seq) const;

  Status check_invariants() const;  // check.cc

 private:
  struct Group {
    Region region;  // for each layer of the group a buffer of K pages, then one of V pages
    std::int64_t k_buffer_bytes = 0;
    std::int64_t v_buffer_bytes = 0;
    PagePool pool;
  };
  struct Need;

  PagedStore(PagedLayout layout, std::int64_t num_pages, std::int64_t budget_bytes,
             MemoryResource& memory) noexcept
      : layout_(std::move(layout)),
        num_pages_(num_pages),
        budget_bytes_(budget_bytes),
        memory_(memory) {}

  // reserved_bytes() after more sequences, page ids in tables, and touched pages (of every group).
  std::int64_t bytes_with(std::int64_t sequences, std::int64_t entries,
                          std::int64_t page_bytes) const noexcept;
  Status check_budget(std::int64_t sequences, std::int64_t entries) const;
  Result<PagedSequence*> find_idle(SequenceId id);
  Result<PagedSequence*> insert(std::unique_ptr<PagedSequence> seq);
  // Drops table entries from the tail, so that appending again takes the same pages again.
  void shorten(PagedSequence& seq, std::int64_t pages) noexcept;

  Status check_appends(std::span<const Append> appends, PagedStep& step);
  void count_room(PagedStep& step) const;
  Status check_room(const PagedStep& step) const;
  Status commit_memory(const PagedStep& step) noexcept;
  void announce(std::size_t group, std::int64_t touched) noexcept;
  void take_pages(PagedStep& step) noexcept;
  void keep(PagedStep& step, std::size_t i, std::int64_t accepted) noexcept;
  void store_tokens(const PagedStep& step, const StepSequence& entry,
                    std::int64_t accepted) noexcept;
  std::int32_t* token_slots(std::int32_t page) const noexcept {
    return token_ids_.get() + page * layout_.page_size;
  }

  PagedLayout layout_;
  std::int64_t num_pages_;
  std::int64_t budget_bytes_;
  MemoryResource& memory_;
  std::vector<Group> groups_;
  LazyInts token_ids_;  // [num_pages, page_size], by the pages of group 0
  std::unordered_map<std::int64_t, std::unique_ptr<PagedSequence>> sequences_;
  std::int64_t table_entries_ = 0;  // page ids in tables and taken by steps, over all groups
  std::int64_t mark_ = 0;
  std::int64_t open_steps_ = 0;
  std::int64_t pages_high_water_ = 0;
  std::int64_t pages_copied_ = 0;
  std::int64_t rows_copied_ = 0;

  // (page, rows) of partly filled tails, for nbytes(): room for every sequence.
  mutable std::mutex tails_mutex_;
  mutable std::vector<std::pair<std::int32_t, std::int64_t>> tails_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_STORE_H_
