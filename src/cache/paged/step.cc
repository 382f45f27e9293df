// Steps: taking room for new tokens, and ending with some, all or none of them.
#include <algorithm>
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
  const std::int64_t slots = num_pages_ * page_size();
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

// Fills the rooms of every group: pages each sequence needs more, its copied tail included.
void PagedStore::count_room(PagedStep& step) const {
  step.groups.resize(groups_.size());
  for (const StepSequence& entry : step.seqs) step.num_new_tokens += entry.count;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    StepGroup& group = step.groups[g];
    group.rooms.reserve(step.seqs.size() + 1);
    std::int64_t pages = 0;
    for (const StepSequence& entry : step.seqs) {
      const PagedSequence& seq = *entry.seq;
      const bool copies = entry.count > 0 && seq.length % page_size() != 0 &&
                          groups_[g].pool.references(seq.tables[g].back()) > 1;
      group.rooms.push_back({pages, copies});
      pages += pages_for(seq.length + entry.count, page_size()) -
               pages_for(seq.length, page_size()) + (copies ? 1 : 0);
    }
    group.rooms.push_back({pages, false});
  }
}

// kNeverFits if it would not do even with the pages of all other sequences: a tail shared with one
// of those would need no copy then.
Status PagedStore::check_room(const PagedStep& step) const {
  std::int64_t entries = 0;
  std::int64_t page_bytes = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const StepGroup& group = step.groups[g];
    const PagePool& pool = groups_[g].pool;
    const std::int64_t needed = group.rooms.back().begin;
    entries += needed;
    if (needed <= pool.available()) {
      page_bytes += pool.fresh_among(needed) * layout_.groups[g].page_bytes;
      continue;
    }
    std::vector<std::int32_t> held;
    for (const StepSequence& entry : step.seqs) {
      const std::vector<std::int32_t>& table = entry.seq->tables[g];
      held.insert(held.end(), table.begin(), table.end());
    }
    std::sort(held.begin(), held.end());
    std::int64_t alone = needed;
    for (std::size_t i = 0; i < step.seqs.size(); ++i) {
      if (!group.rooms[i].copies_tail) continue;
      const auto [first, last] =
          std::equal_range(held.begin(), held.end(), step.seqs[i].seq->tables[g].back());
      if (last - first == 1) --alone;
    }
    alone += std::unique(held.begin(), held.end()) - held.begin();
    const bool never = alone > pool.num_pages();
    const std::string name = "pages of group " + std::to_string(g);
    if (never) {
      return refusal(StatusCode::kNeverFits, name, std::to_string(pool.num_pages()) + " in all",
                     alone);
    }
    return refusal(StatusCode::kRetryLater, name, std::to_string(pool.available()) + " free",
                   needed);
  }
  if (budget_bytes_ == 0) return {};
  const std::int64_t bytes = bytes_with(0, entries, page_bytes);
  if (bytes <= budget_bytes_) return {};
  std::int64_t kept = entries;
  for (const StepSequence& entry : step.seqs) {
    for (const auto& table : entry.seq->tables) kept += static_cast<std::int64_t>(table.size());
  }
  const std::int64_t alone = bytes_with(
      static_cast<std::int64_t>(step.seqs.size()) - static_cast<std::int64_t>(sequences_.size()),
      kept - table_entries_, page_bytes);
  return refusal(alone > budget_bytes_ ? StatusCode::kNeverFits : StatusCode::kRetryLater,
                 "budget_bytes", std::to_string(bytes) + " needed",
                 "at most " + std::to_string(budget_bytes_));
}

// Asks the memory resource for the pages that this step is the first to touch.
Status PagedStore::commit_memory(const PagedStep& step) noexcept {
  const auto bytes_of = [&](std::size_t g) {
    return groups_[g].pool.fresh_among(step.groups[g].rooms.back().begin) *
           layout_.groups[g].page_bytes;
  };
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::int64_t bytes = bytes_of(g);
    if (bytes == 0) continue;
    Status status = memory_.commit(groups_[g].region, bytes);
    if (status.ok()) continue;
    while (g-- > 0) {
      if (bytes_of(g) > 0) memory_.decommit(groups_[g].region, bytes_of(g), 0, 0);
    }
    return status;
  }
  return {};
}

// Tells the memory of the pages from `touched` on: fresh ones, side by side in the buffers of each
// layer, that the step is about to fill.
void PagedStore::announce(std::size_t g, std::int64_t touched) noexcept {
  const PagedGroup& shape = layout_.groups[g];
  const Group& group = groups_[g];
  const std::int64_t fresh = group.pool.touched() - touched;
  if (fresh == 0) return;
  for (std::int64_t layer = 0; layer < shape.num_layers(); ++layer) {
    const std::int64_t k = layer * (group.k_buffer_bytes + group.v_buffer_bytes);
    const std::int64_t v = k + group.k_buffer_bytes;
    memory_.will_fill(group.region, k + touched * shape.k_page_bytes, fresh * shape.k_page_bytes);
    memory_.will_fill(group.region, v + touched * shape.v_page_bytes, fresh * shape.v_page_bytes);
  }
}

// REQUIRES: room for everything in every vector.
void PagedStore::take_pages(PagedStep& step) noexcept {
  std::int64_t in_use = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    StepGroup& group = step.groups[g];
    PagePool& pool = groups_[g].pool;
    const std::int64_t touched = pool.touched();
    for (std::int64_t i = 0; i < group.rooms.back().begin; ++i) group.pages.push_back(pool.take());
    announce(g, touched);
    table_entries_ += group.rooms.back().begin;
    in_use += pool.held() + pool.reserved();
    std::int64_t row = 0;
    for (std::size_t i = 0; i < step.seqs.size(); ++i) {
      const PagedSequence& seq = *step.seqs[i].seq;
      const StepGroup::Room& room = group.rooms[i];
      std::int64_t next = room.begin;
      std::int64_t slot = seq.length % page_size();
      const std::int64_t end = row + step.seqs[i].count;
      while (row < end) {
        const bool in_place = slot != 0 && !room.copies_tail;
        const std::int32_t page =
            in_place ? seq.tables[g].back() : group.pages[static_cast<std::size_t>(next++)];
        const std::int64_t count = std::min(page_size() - slot, end - row);
        group.runs.push_back(
            {page, static_cast<std::int32_t>(slot), static_cast<std::int32_t>(count), row});
        row += count;
        slot = 0;
      }
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
  count_room(*step);
  KVC_RETURN_IF_ERROR(check_room(*step));
  step->written.resize(static_cast<std::size_t>(layout_.num_layers()));
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    StepGroup& group = step->groups[g];
    group.pages.reserve(static_cast<std::size_t>(group.rooms.back().begin));
    // At most: every new page, and for each sequence the tail it has.
    group.runs.reserve(group.pages.capacity() + step->seqs.size());
    for (std::size_t i = 0; i < step->seqs.size(); ++i) {
      reserve_more(step->seqs[i].seq->tables[g], group.rooms[i + 1].begin - group.rooms[i].begin);
    }
  }
  KVC_RETURN_IF_ERROR(commit_memory(*step));
  take_pages(*step);
  return step;
}

void PagedStore::count_copies(StepGroup& group, const PagedStep& step) noexcept {
  if (group.counted) return;
  group.counted = true;
  for (std::size_t i = 0; i < step.seqs.size(); ++i) {
    if (!group.rooms[i].copies_tail) continue;
    ++pages_copied_;
    rows_copied_ += step.seqs[i].seq->length % page_size();
  }
}

// Ids are kept as long as they are complete: one append without them ends what is known.
void PagedStore::store_tokens(const PagedStep& step, const StepSequence& entry,
                              std::int64_t accepted) noexcept {
  PagedSequence& seq = *entry.seq;
  if (entry.tokens_begin < 0 || seq.known_tokens != seq.length) return;
  const std::int32_t* ids = step.tokens.data() + entry.tokens_begin;
  for (std::int64_t i = 0; i < accepted; ++i) {
    const std::int64_t row = seq.length + i;
    const std::int32_t page = seq.tables[0][static_cast<std::size_t>(row / page_size())];
    token_slots(page)[row % page_size()] = ids[i];
  }
  seq.known_tokens += accepted;
}

// Ends the step for its sequence i: pages of accepted rows enter the table, the others go back.
void PagedStore::keep(PagedStep& step, std::size_t i, std::int64_t accepted) noexcept {
  const StepSequence& entry = step.seqs[i];
  PagedSequence& seq = *entry.seq;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const StepGroup& group = step.groups[g];
    PagePool& pool = groups_[g].pool;
    const bool copied = accepted > 0 && group.rooms[i].copies_tail;
    const std::int64_t begin = group.rooms[i].begin;
    const std::int64_t end = begin + (copied ? 1 : 0) +
                             pages_for(seq.length + accepted, page_size()) -
                             pages_for(seq.length, page_size());
    for (std::int64_t p = group.rooms[i + 1].begin; p > end; --p) {
      pool.give_back(group.pages[static_cast<std::size_t>(p - 1)]);
      --table_entries_;
    }
    std::vector<std::int32_t>& table = seq.tables[g];
    if (copied) {
      const std::int32_t shared = table.back();
      const std::int32_t own = group.pages[static_cast<std::size_t>(begin)];
      if (g == 0) std::copy_n(token_slots(shared), seq.length % page_size(), token_slots(own));
      pool.drop(shared);
      --table_entries_;
      pool.hold(own);
      table.back() = own;
    }
    for (std::int64_t p = begin + (copied ? 1 : 0); p < end; ++p) {
      const std::int32_t page = group.pages[static_cast<std::size_t>(p)];
      pool.hold(page);
      table.push_back(page);
    }
  }
  store_tokens(step, entry, accepted);
  seq.length += accepted;
  seq.step = nullptr;
}

Status PagedStore::commit(PagedStep& step, std::span<const std::int64_t> accepted) {
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
  // From the last to the first, so that room goes back in the reverse order of taking it.
  for (std::size_t i = step.seqs.size(); i-- > 0;) {
    keep(step, i, accepted.empty() ? step.seqs[i].count : accepted[i]);
  }
  --open_steps_;
  return {};
}

void PagedStore::rollback(PagedStep& step) noexcept {
  for (std::size_t i = step.seqs.size(); i-- > 0;) keep(step, i, 0);
  --open_steps_;
}

}  // namespace kvcache::internal
