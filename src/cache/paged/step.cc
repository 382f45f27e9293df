// Steps: taking room for new tokens, and ending with some, all or none of them.
#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/door.h"
#include "base/expect.h"
#include "cache/paged/store.h"

namespace kvcache::internal {
namespace {

std::int64_t number(SequenceId id) { return static_cast<std::int64_t>(id); }

// Geometric, so that appending token by token stays constant on average.
void reserve_more(std::vector<std::int32_t>& table, std::int64_t more) {
  const std::size_t needed = table.size() + static_cast<std::size_t>(more);
  if (table.capacity() < needed) table.reserve(std::max(needed, 2 * table.capacity()));
}

// "appends[2].count".
std::string append_field(std::size_t i, const char* field) {
  return "appends[" + std::to_string(i) + "]." + field;
}

}  // namespace

// Fills step.seqs; also what is known before pages are counted: nothing longer than the pool.
Status PagedStore::check_appends(std::span<const Append> appends, PagedStep& step) {
  ++mark_;
  std::size_t num_tokens = 0;
  step.seqs.reserve(appends.size());
  for (std::size_t i = 0; i < appends.size(); ++i) {
    const Append& append = appends[i];
    KVC_ASSIGN_OR_RETURN(PagedSequence * seq, find_idle(append.seq));
    if (seq->mark == mark_) {
      return refusal(append_field(i, "seq"), std::to_string(number(append.seq)) + " twice",
                     "each sequence once");
    }
    seq->mark = mark_;
    if (append.count < 0) {
      return refusal(append_field(i, "count"), append.count, "at least 0");
    }
    if (!append.parents.empty()) {
      return refusal(StatusCode::kUnsupported, append_field(i, "parents"), append.parents.size(),
                     "none: kParents is not supported");
    }
    if (!append.tokens.empty() && static_cast<std::int64_t>(append.tokens.size()) != append.count) {
      return refusal(append_field(i, "tokens"), append.tokens.size(),
                     "none or " + std::to_string(append.count));
    }
    num_tokens += append.tokens.size();
    step.seqs.push_back({seq, append.count, -1});
  }
  // Tables are int32, and rows that are kept need slots.
  const std::int64_t slots =
      layout_.is_bounded() ? std::numeric_limits<std::int32_t>::max() : num_pages_ * page_size();
  for (std::size_t i = 0; i < appends.size(); ++i) {
    const StepSequence& entry = step.seqs[i];
    if (entry.count > slots - entry.seq->length) {
      return refusal(StatusCode::kNeverFits, append_field(i, "count"),
                     std::to_string(entry.count) + " after " + std::to_string(entry.seq->length),
                     "at most " + std::to_string(slots) + " tokens in all");
    }
  }
  step.tokens.reserve(num_tokens);
  for (std::size_t i = 0; i < appends.size(); ++i) {
    if (appends[i].tokens.empty()) continue;
    step.seqs[i].tokens_begin = static_cast<std::int64_t>(step.tokens.size());
    step.tokens.insert(step.tokens.end(), appends[i].tokens.begin(), appends[i].tokens.end());
  }
  return {};
}

// Fills the rooms of every group: pages each sequence needs more, its copied tail included. Ids
// that find no block are not kept: what is known of their sequence ends.
void PagedStore::count_room(PagedStep& step) const {
  step.rooms.resize(groups_.size());
  for (const StepSequence& entry : step.seqs) step.num_new_tokens += entry.count;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    GroupRoom& room = step.rooms[g];
    room.seqs.reserve(step.seqs.size() + 1);
    std::int64_t pages = 0;
    for (StepSequence& entry : step.seqs) {
      const PagedSequence& seq = *entry.seq;
      PageNeed need = groups_[g].need(seq.tables[g], length_in(g, seq), count_in(g, entry));
      if (is_blocks(g) && pages + need.pages > groups_[g].available()) {
        entry.tokens_begin = -1;
        need = {};
      }
      room.seqs.push_back({pages, need.copies_tail});
      pages += need.pages;
    }
    room.seqs.push_back({pages, false});
  }
}

namespace {

// The pages of a pool that a step's sequences would hold even if all others left: a tail shared
// with one of those would need no copy then, unless the page is named.
std::int64_t pages_alone(const PagedStep& step, const PageGroup& group, std::size_t g) {
  const GroupRoom& room = step.rooms[g];
  std::vector<std::int32_t> held;
  for (const StepSequence& entry : step.seqs) {
    const std::vector<std::int32_t>& pages = entry.seq->tables[g].pages;
    held.insert(held.end(), pages.begin(), pages.end());
  }
  std::sort(held.begin(), held.end());
  std::int64_t alone = room.num_pages();
  for (std::size_t i = 0; i < step.seqs.size(); ++i) {
    if (!room.seqs[i].copies_tail) continue;
    const auto [first, last] =
        std::equal_range(held.begin(), held.end(), step.seqs[i].seq->tables[g].pages.back());
    if (last - first == 1 && !group.is_named(*first)) --alone;
  }
  return alone + (std::unique(held.begin(), held.end()) - held.begin());
}

}  // namespace

// Errors: kNeverFits if it would not do even with the pages of all other sequences.
Status PagedStore::check_room(PagedStep& step, std::int64_t* entries) const {
  *entries = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const PagePool& pool = groups_[g].pool();
    const std::int64_t needed = step.rooms[g].num_pages();
    *entries += needed;
    if (needed <= groups_[g].available()) continue;
    const std::int64_t alone = pages_alone(step, groups_[g], g);
    const bool never = alone > pool.num_pages();
    const std::string name = "pages of group " + std::to_string(g);
    if (never) {
      return refusal(StatusCode::kNeverFits, name, std::to_string(pool.num_pages()) + " in all",
                     alone);
    }
    return refusal(StatusCode::kRetryLater, name, std::to_string(groups_[g].available()) + " free",
                   needed);
  }
  return budget_bytes_ == 0 ? Status() : check_budget(growth_of(step, *entries));
}

Status PagedStore::check_budget(const Growth& growth) const {
  const std::int64_t bytes = least_bytes_with(growth);
  if (bytes <= budget_bytes_) return {};
  // Without the other sequences, whose pages these could take.
  const PagedStep& step = *growth.step;
  std::int64_t entries = growth.entries, touched = 0, alone = 0;
  for (const StepSequence& entry : step.seqs) {
    for (const GroupTable& table : entry.seq->tables) {
      entries += static_cast<std::int64_t>(table.pages.size());
    }
  }
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::int64_t pages = pages_alone(step, groups_[g], g);
    touched = std::max({touched, groups_[g].pool().touched(), pages});
    alone += pages * groups_[g].page_bytes();
  }
  alone += layout_.table_bytes(touched, static_cast<std::int64_t>(step.seqs.size()), entries);
  return refusal(alone > budget_bytes_ ? StatusCode::kNeverFits : StatusCode::kRetryLater,
                 "budget_bytes", std::to_string(bytes) + " needed",
                 "at most " + std::to_string(budget_bytes_));
}

// Room in every vector, so that nothing allocates once pages are taken.
void PagedStore::reserve_tables(PagedStep& step) {
  step.written.resize(static_cast<std::size_t>(layout_.num_layers()));
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    GroupRoom& room = step.rooms[g];
    room.pages.reserve(static_cast<std::size_t>(room.num_pages()));
    // At most: every new page, and for each sequence the tail it has.
    room.runs.reserve(room.pages.capacity() + step.seqs.size());
    for (std::size_t i = 0; i < step.seqs.size(); ++i) {
      reserve_more(step.seqs[i].seq->tables[g].pages, room.seqs[i + 1].begin - room.seqs[i].begin);
    }
  }
}

// Asks the memory resource for tables, and for the pages that have no memory yet; then what the
// budget needs of others leaves.
Status PagedStore::grant_memory(PagedStep& step, std::int64_t entries) {
  const Growth growth = growth_of(step, entries);
  plan_room(growth);
  Status status = charge_tables(growth);
  for (std::size_t g = 0; status.ok() && g < groups_.size(); ++g) {
    const std::int64_t pages = new_pages_of(growth, g);
    step.rooms[g].bare = groups_[g].pool().bare_among(pages);
    step.rooms[g].fresh = groups_[g].pool().fresh_among(pages);
    status = groups_[g].grant_memory(pages);
    if (status.ok()) continue;
    while (g-- > 0) groups_[g].return_memory(new_pages_of(growth, g));
    break;
  }
  if (!status.ok()) {
    settle_tables();
    return status;
  }
  make_room(growth);
  return {};
}

// REQUIRES: room for everything in every vector.
void PagedStore::take(PagedStep& step) noexcept {
  std::int64_t in_use = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    GroupRoom& room = step.rooms[g];
    groups_[g].take(room);
    table_entries_ += room.num_pages();
    if (is_blocks(g)) break;
    in_use += groups_[g].pool().held() + groups_[g].pool().reserved();
    std::int64_t row = 0;
    for (std::size_t i = 0; i < step.seqs.size(); ++i) {
      const StepSequence& entry = step.seqs[i];
      const std::int64_t count = count_in(g, entry);
      groups_[g].place(entry.seq->tables[g], length_in(g, *entry.seq), count, row, i, room);
      row += count;
    }
  }
  pages_high_water_ = std::max(pages_high_water_, in_use);
  for (std::size_t i = 0; i < step.seqs.size(); ++i) {
    step.seqs[i].seq->step = &step;
    step.seqs[i].seq->step_index = static_cast<std::int64_t>(i);
  }
  ++open_steps_;
}

Result<std::unique_ptr<PagedStep>> PagedStore::reserve(std::span<const Append> appends) {
  auto step = std::make_unique<PagedStep>();
  KVC_RETURN_IF_ERROR(check_appends(appends, *step));
  const Announced announced(keeper_, *step);
  count_room(*step);
  std::int64_t entries = 0;
  KVC_RETURN_IF_ERROR(check_room(*step, &entries));
  reserve_tables(*step);
  KVC_RETURN_IF_ERROR(grant_memory(*step, entries));
  take(*step);
  settle_tables();  // evictions may have ended namespaces
  return step;
}

void PagedStore::count_copies(PagedStep& step, std::size_t group) noexcept {
  GroupRoom& room = step.rooms[group];
  if (room.counted) return;
  room.counted = true;
  for (std::size_t i = 0; i < step.seqs.size(); ++i) {
    if (!room.seqs[i].copies_tail) continue;
    ++pages_copied_;
    rows_copied_ += length_in(group, *step.seqs[i].seq) % page_size();
  }
}

// Ids of accepted tokens, into the blocks that the step has for them. They are kept as long as they
// are complete: one append without them, or without room for them, ends what is known.
void PagedStore::store_tokens(const PagedStep& step, std::size_t i,
                              std::int64_t accepted) noexcept {
  const std::size_t blocks = layout_.groups.size();
  const StepSequence& entry = step.seqs[i];
  PagedSequence& seq = *entry.seq;
  const std::int64_t count = std::min(count_in(blocks, entry), accepted);
  const GroupRoom& room = step.rooms[blocks];
  GroupTable& table = seq.tables[blocks];
  const std::int32_t shared = room.seqs[i].copies_tail ? table.pages.back() : -1;
  table_entries_ += groups_[blocks].keep(table, seq.known_tokens, count, i, room, false);
  if (count == 0) return;
  const auto block_of = [&](std::int64_t row) {
    return token_slots(table.pages[static_cast<std::size_t>(row / page_size())]);
  };
  if (shared >= 0) {
    std::copy_n(token_slots(shared), seq.known_tokens % page_size(), block_of(seq.known_tokens));
  }
  const std::int32_t* ids = step.tokens.data() + entry.tokens_begin;
  for (std::int64_t t = 0; t < count; ++t) {
    const std::int64_t row = seq.known_tokens + t;
    block_of(row)[row % page_size()] = ids[t];
  }
  seq.known_tokens += count;
}

// Ends the step for its sequence i: pages of accepted rows enter the tables, the others go back.
void PagedStore::keep(PagedStep& step, std::size_t i, std::int64_t accepted) noexcept {
  PagedSequence& seq = *step.seqs[i].seq;
  store_tokens(step, i, accepted);
  if (keeper_ != nullptr && accepted > 0) keeper_->grown(seq, step, i, accepted);
  for (std::size_t g = layout_.groups.size(); g-- > 0;) {
    const std::int64_t rows = rows_in(g, seq, accepted);
    table_entries_ += groups_[g].keep(seq.tables[g], length_in(g, seq), rows, i, step.rooms[g],
                                      seq.holds_rows && !groups_[g].rule().is_tail());
    rows_encoded_ += rows * layout_.groups[g].coded_buffers;
  }
  if (accepted > 0) seq.coded = coded_at(seq, seq.length + accepted);
  seq.length += accepted;
  seq.step = nullptr;
  if (accepted == 0 && !seq.holds_rows) let_go(seq);  // what was held when the step began
}

void PagedStore::end_step() noexcept {
  --open_steps_;
  settle_tables();
}

Status PagedStore::check_commit(const PagedStep& step,
                                std::span<const std::int64_t> accepted) const {
  if (!accepted.empty() && accepted.size() != step.seqs.size()) {
    return refusal("accepted", std::to_string(accepted.size()) + " counts",
                   "none or " + std::to_string(step.seqs.size()));
  }
  for (std::size_t i = 0; i < accepted.size(); ++i) {
    if (accepted[i] >= 0 && accepted[i] <= step.seqs[i].count) continue;
    return refusal("accepted[" + std::to_string(i) + "]", accepted[i],
                   "0 .. " + std::to_string(step.seqs[i].count));
  }
  for (std::size_t layer = 0; layer < step.written.size(); ++layer) {
    if (step.num_new_tokens == 0 || step.written[layer] != 0) continue;
    return refusal("layer", std::to_string(layer) + " not written",
                   "all of " + std::to_string(step.written.size()));
  }
  return {};
}

Status PagedStore::commit(PagedStep& step, std::span<const std::int64_t> accepted) {
  KVC_RETURN_IF_ERROR(check_commit(step, accepted));
  // From the last to the first, so that room goes back in the reverse order of taking it.
  for (std::size_t i = step.seqs.size(); i-- > 0;) {
    keep(step, i, accepted.empty() ? step.seqs[i].count : accepted[i]);
  }
  end_step();
  return {};
}

void PagedStore::rollback(PagedStep& step) noexcept {
  for (std::size_t i = step.seqs.size(); i-- > 0;) keep(step, i, 0);
  end_step();
}

}  // namespace kvcache::internal
