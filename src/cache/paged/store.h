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

struct PagedSequence {
  SequenceId id{};
  std::int64_t length = 0;  // committed tokens
  // Leading tokens whose ids are known: they are kept as long as every append brings them.
  std::int64_t known_tokens = 0;
  std::vector<GroupTable> tables;  // [group], and that of the blocks of token ids

  const PagedStep* step = nullptr;  // the open step it is in
  std::int64_t step_index = 0;      // and where
  std::int64_t mark = 0;            // of the last call that looked for repetitions
};

struct StepSequence {
  PagedSequence* seq = nullptr;
  std::int64_t count = 0;          // new tokens
  std::int64_t tokens_begin = -1;  // their ids in PagedStep::tokens; -1: none given
};

struct PagedStep {
  std::vector<StepSequence> seqs;
  std::vector<GroupRoom> rooms;  // [group], and that of the blocks of token ids
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
  void count_copies(GroupRoom& room, const PagedStep& step) noexcept;

  // --- What there is. ---
  const PagedLayout& layout() const noexcept { return layout_; }
  std::int64_t page_size() const noexcept { return layout_.page_size; }
  const LayerSpec& spec_of(std::int64_t layer) const noexcept {
    return layout_.groups[static_cast<std::size_t>(place(layer).group)].spec;
  }
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
  std::int64_t reserved_bytes() const noexcept { return bytes_with(0, 0, 0); }
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
  std::int64_t length_in(std::size_t group, const PagedSequence& seq) const noexcept {
    return is_blocks(group) ? seq.known_tokens : seq.length;
  }
  std::int64_t count_in(std::size_t group, const StepSequence& entry) const noexcept {
    const bool none = is_blocks(group) &&
                      (entry.tokens_begin < 0 || entry.seq->known_tokens != entry.seq->length);
    return none ? 0 : entry.count;
  }
  std::int32_t* token_slots(std::int32_t block) const noexcept {
    return token_ids_ + block * layout_.page_size;
  }

  // reserved_bytes() after more sequences, page ids in tables, and touched pages (of every group).
  std::int64_t bytes_with(std::int64_t sequences, std::int64_t entries,
                          std::int64_t page_bytes) const noexcept;
  // Asks for the tables of more sequences and page ids; settle_tables() gives back what is not used
  // of it. Errors: kRetryLater past the budget, kOutOfMemory.
  Status charge_tables(std::int64_t sequences, std::int64_t entries);
  void settle_tables() noexcept;
  struct SettleTables {  // at the end of a scope
    PagedStore& store;
    ~SettleTables() { store.settle_tables(); }
  };
  Result<PagedSequence*> find_idle(SequenceId id);
  Result<PagedSequence*> insert(std::unique_ptr<PagedSequence> seq);
  std::unique_ptr<PagedSequence> make_sequence() const;
  // Keeps the first `length` tokens.
  void shorten(PagedSequence& seq, std::int64_t length) noexcept;

  Status check_appends(std::span<const Append> appends, PagedStep& step);
  void count_room(PagedStep& step) const;
  Status check_room(const PagedStep& step, std::int64_t* entries) const;
  Status check_budget(const PagedStep& step, std::int64_t entries, std::int64_t page_bytes) const;
  void reserve_tables(PagedStep& step);
  Status grant_memory(const PagedStep& step, std::int64_t entries);
  void take(PagedStep& step) noexcept;
  void keep(PagedStep& step, std::size_t i, std::int64_t accepted) noexcept;
  void store_tokens(const PagedStep& step, std::size_t i, std::int64_t accepted) noexcept;
  void end_step() noexcept;

  PagedLayout layout_;
  std::int64_t num_pages_;
  std::int64_t budget_bytes_;
  MemoryResource& memory_;
  Region tables_;                      // of all groups, and the token ids
  std::int64_t tables_bytes_ = 0;      // committed of it at creation
  std::int64_t sharing_bytes_ = 0;     // committed beyond that, see PagedLayout
  std::deque<PageGroup> groups_;       // those of the layout, and that of the blocks of token ids
  std::int32_t* token_ids_ = nullptr;  // [num_pages, page_size], by block
  std::unordered_map<std::int64_t, std::unique_ptr<PagedSequence>> sequences_;
  std::int64_t table_entries_ = 0;  // page ids in tables and taken by steps, over all groups
  std::int64_t mark_ = 0;
  std::int64_t open_steps_ = 0;
  std::int64_t pages_high_water_ = 0;
  std::int64_t pages_copied_ = 0;
  std::int64_t rows_copied_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_STORE_H_
