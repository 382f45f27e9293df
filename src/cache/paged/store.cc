#include "cache/paged/store.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <string>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"
#include "tensor/overlap.h"

namespace kvcache::internal {
namespace {

SequenceId next_id() noexcept {
  static std::atomic<std::int64_t> last{0};
  return SequenceId{++last};
}

std::string number(SequenceId id) { return std::to_string(static_cast<std::int64_t>(id)); }

}  // namespace

Result<std::unique_ptr<PagedStore>> PagedStore::create(PagedLayout layout, std::int64_t num_pages,
                                                       std::int64_t budget_bytes,
                                                       MemoryResource& memory) {
  std::unique_ptr<PagedStore> store(
      new PagedStore(std::move(layout), num_pages, budget_bytes, memory));
  KVC_RETURN_IF_ERROR(store->create_groups());
  return store;
}

Status PagedStore::create_groups() {
  const std::int64_t bytes = num_pages_ * layout_.page_table_bytes();
  KVC_ASSIGN_OR_RETURN(tables_, memory_.reserve(bytes));
  KVC_RETURN_IF_ERROR(memory_.commit(tables_, bytes));
  tables_bytes_ = bytes;
  std::byte* at = tables_.data;
  for (std::size_t g = 0; g <= layout_.groups.size(); ++g) {
    const GroupLayout* const layout = is_blocks(g) ? nullptr : &layout_.groups[g];
    groups_.emplace_back(layout, page_size(), num_pages_, memory_, at);
    at += round_up(PageGroup::table_bytes(layout, num_pages_), alignof(std::max_align_t));
  }
  token_ids_ = reinterpret_cast<std::int32_t*>(at);
  return {};
}

PagedStore::~PagedStore() {
  groups_.clear();
  if (tables_.data != nullptr) memory_.release(tables_, tables_bytes_ + sharing_bytes_);
}

void PagedStore::set_keeper(PageKeeper* keeper) noexcept {
  for (PageGroup& group : groups_) group.set_keeper(keeper);
}

Result<const PagedSequence*> PagedStore::find(SequenceId id) const {
  const auto found = sequences_.find(static_cast<std::int64_t>(id));
  if (found == sequences_.end()) {
    return refusal(StatusCode::kNotFound, "seq", number(id), "an open sequence of this cache");
  }
  return static_cast<const PagedSequence*>(found->second.get());
}

Result<std::vector<const PagedSequence*>> PagedStore::find_all(
    std::span<const SequenceId> ids) const {
  std::vector<const PagedSequence*> seqs;
  seqs.reserve(ids.size());
  for (const SequenceId id : ids) {
    KVC_ASSIGN_OR_RETURN(const PagedSequence* seq, find(id));
    seqs.push_back(seq);
  }
  return seqs;
}

Result<PagedSequence*> PagedStore::find_idle(SequenceId id) {
  const auto found = sequences_.find(static_cast<std::int64_t>(id));
  if (found == sequences_.end()) return find(id).status();
  if (found->second->step != nullptr) {
    return refusal("seq", number(id) + " in an open step", "one in none");
  }
  return found->second.get();
}

Result<PagedSequence*> PagedStore::insert(std::unique_ptr<PagedSequence> seq) {
  seq->id = next_id();
  PagedSequence* const raw = seq.get();
  sequences_.emplace(static_cast<std::int64_t>(seq->id), std::move(seq));
  return raw;
}

std::unique_ptr<PagedSequence> PagedStore::make_sequence() const {
  auto seq = std::make_unique<PagedSequence>();
  seq->tables.resize(groups_.size());
  return seq;
}

Result<SequenceId> PagedStore::open() {
  KVC_RETURN_IF_ERROR(charge_tables(1, 0));
  const SettleTables settle{*this};
  KVC_ASSIGN_OR_RETURN(const PagedSequence* opened, insert(make_sequence()));
  return opened->id;
}

void PagedStore::shorten(PagedSequence& seq, std::int64_t length) noexcept {
  seq.length = length;
  seq.known_tokens = std::min(seq.known_tokens, length);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    table_entries_ -= groups_[g].shorten(seq.tables[g], length_in(g, seq));
  }
}

Status PagedStore::release(SequenceId id) {
  KVC_ASSIGN_OR_RETURN(PagedSequence * seq, find_idle(id));
  shorten(*seq, 0);
  sequences_.erase(static_cast<std::int64_t>(id));
  settle_tables();
  return {};
}

Result<SequenceId> PagedStore::fork(SequenceId id, std::int64_t length) {
  KVC_ASSIGN_OR_RETURN(const PagedSequence* parent, find_idle(id));
  if (length < 0 || length > parent->length) {
    return refusal(StatusCode::kOutOfRange, "length", length,
                   "0 .. " + std::to_string(parent->length));
  }
  auto seq = make_sequence();
  seq->length = length;
  seq->known_tokens = std::min(parent->known_tokens, length);
  std::int64_t entries = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::vector<std::int32_t>& from = parent->tables[g].pages;
    const std::int64_t pages = pages_for(length_in(g, *seq), page_size());
    seq->tables[g].pages.assign(from.begin(), from.begin() + pages);
    entries += pages;
  }
  KVC_RETURN_IF_ERROR(charge_tables(1, entries));
  const SettleTables settle{*this};
  KVC_ASSIGN_OR_RETURN(PagedSequence * child, insert(std::move(seq)));
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].adopt(child->tables[g], length_in(g, *child));
  }
  table_entries_ += entries;
  return child->id;
}

Status PagedStore::truncate(SequenceId id, std::int64_t length) {
  KVC_ASSIGN_OR_RETURN(PagedSequence * seq, find_idle(id));
  if (length < 0) {
    return refusal("n", length, "at least 0");
  }
  if (length >= seq->length) return {};
  shorten(*seq, length);
  settle_tables();
  return {};
}

Status PagedStore::rewind(SequenceId id, std::int64_t count) {
  KVC_ASSIGN_OR_RETURN(const PagedSequence* seq, find_idle(id));
  if (count < 0) {
    return refusal("n", count, "at least 0");
  }
  if (count > seq->length) {
    return refusal(StatusCode::kOutOfRange, "n", count, "0 .. " + std::to_string(seq->length));
  }
  return truncate(id, seq->length - count);
}

Status PagedStore::reorder(std::span<const SequenceId> ids,
                           std::span<const std::int64_t> beam_idx) {
  ++mark_;
  std::vector<PagedSequence*> seqs;
  seqs.reserve(ids.size());
  for (const SequenceId id : ids) {
    KVC_ASSIGN_OR_RETURN(PagedSequence * seq, find_idle(id));
    if (seq->mark == mark_) {
      return refusal("seqs", number(id) + " twice", "each sequence once");
    }
    seq->mark = mark_;
    seqs.push_back(seq);
  }
  struct Change {
    PagedSequence* seq;
    std::unique_ptr<PagedSequence> becomes;
  };
  std::vector<Change> changes;
  changes.reserve(seqs.size());
  std::int64_t entries = 0;
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    const std::int64_t beam = beam_idx[i];
    if (beam < 0 || beam >= static_cast<std::int64_t>(seqs.size())) {
      return refusal(StatusCode::kOutOfRange, "beam_idx[" + std::to_string(i) + "]", beam,
                     "0 .. " + std::to_string(seqs.size() - 1));
    }
    const PagedSequence& source = *seqs[static_cast<std::size_t>(beam)];
    if (&source == seqs[i]) continue;
    changes.push_back({seqs[i], make_sequence()});
    PagedSequence& becomes = *changes.back().becomes;
    becomes.length = source.length;
    becomes.known_tokens = source.known_tokens;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      becomes.tables[g].pages = source.tables[g].pages;
      entries += static_cast<std::int64_t>(source.tables[g].pages.size());
      entries -= static_cast<std::int64_t>(seqs[i]->tables[g].pages.size());
    }
  }
  KVC_RETURN_IF_ERROR(charge_tables(0, entries));
  // All references are taken before any is dropped, so that no page is freed on the way.
  for (const Change& change : changes) {
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      groups_[g].adopt(change.becomes->tables[g], length_in(g, *change.becomes));
    }
  }
  for (const Change& change : changes) {
    shorten(*change.seq, 0);
    change.seq->length = change.becomes->length;
    change.seq->known_tokens = change.becomes->known_tokens;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      groups_[g].hand_over(change.becomes->tables[g], change.seq->tables[g]);
      table_entries_ += static_cast<std::int64_t>(change.seq->tables[g].pages.size());
    }
  }
  settle_tables();
  return {};
}

bool PagedStore::owns(const TensorView& rows) const noexcept {
  const ByteSpan span = byte_span(rows);
  return std::any_of(groups_.begin(), groups_.end(),
                     [&](const PageGroup& group) { return group.owns(span); });
}

std::int64_t PagedStore::bytes_with(std::int64_t sequences, std::int64_t entries,
                                    std::int64_t page_bytes) const noexcept {
  std::int64_t bytes = page_bytes;
  for (const PageGroup& group : groups_) bytes += group.pool().touched() * group.page_bytes();
  return bytes + layout_.table_bytes(num_pages_,
                                     static_cast<std::int64_t>(sequences_.size()) + sequences,
                                     table_entries_ + entries);
}

// Pages alone always fit, num_pages being chosen so: what a budget refuses is tables of very many
// empty sequences, or of very many sharers of the same pages.
Status PagedStore::charge_tables(std::int64_t sequences, std::int64_t entries) {
  if (budget_bytes_ > 0) {
    const std::int64_t bytes = bytes_with(sequences, entries, 0);
    if (bytes > budget_bytes_ && bytes > reserved_bytes()) {
      return refusal(StatusCode::kRetryLater, "budget_bytes", std::to_string(bytes) + " needed",
                     "at most " + std::to_string(budget_bytes_));
    }
  }
  const std::int64_t more =
      layout_.sharing_bytes(num_pages_, static_cast<std::int64_t>(sequences_.size()) + sequences,
                            table_entries_ + entries) -
      sharing_bytes_;
  if (more <= 0) return {};
  KVC_RETURN_IF_ERROR(memory_.commit(tables_, more));
  sharing_bytes_ += more;
  return {};
}

void PagedStore::settle_tables() noexcept {
  const std::int64_t unused =
      sharing_bytes_ - layout_.sharing_bytes(num_pages_,
                                             static_cast<std::int64_t>(sequences_.size()),
                                             table_entries_);
  if (unused <= 0) return;
  memory_.decommit(tables_, unused, 0, 0);
  sharing_bytes_ -= unused;
}

std::int64_t PagedStore::free_pages(std::int64_t group) const noexcept {
  if (group < 0 || group >= layout_.num_groups()) return 0;
  const std::int64_t available = groups_[static_cast<std::size_t>(group)].pool().available();
  if (budget_bytes_ == 0) return available;
  const auto fits = [this](std::int64_t count) {
    std::int64_t page_bytes = 0;
    for (const PageGroup& each : groups_) {
      page_bytes += each.pool().fresh_among(count) * each.page_bytes();
    }
    return bytes_with(0, count * (layout_.num_groups() + 1), page_bytes) <= budget_bytes_;
  };
  std::int64_t low = 0;
  std::int64_t high = available;
  while (low < high) {
    const std::int64_t middle = high - (high - low) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

PagedStats PagedStore::stats() const noexcept {
  PagedStats stats;
  for (std::size_t g = 0; !is_blocks(g); ++g) {
    const PagePool& pool = groups_[g].pool();
    stats.pages_total += pool.num_pages();
    stats.pages_held += pool.held();
    stats.pages_reserved += pool.reserved();
  }
  stats.pages_high_water = pages_high_water_;
  stats.pages_copied = pages_copied_;
  stats.rows_copied = rows_copied_;
  stats.sequences = static_cast<std::int64_t>(sequences_.size());
  stats.open_steps = open_steps_;
  return stats;
}

std::int64_t PagedStore::nbytes() const noexcept {
  std::int64_t bytes = 0;
  for (const PageGroup& group : groups_) bytes += group.stored_bytes();
  return bytes;
}

std::vector<std::int32_t> PagedStore::tokens(const PagedSequence& seq) const {
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(seq.known_tokens));
  const std::vector<std::int32_t>& blocks = seq.tables.back().pages;
  for (std::int64_t row = 0; row < seq.known_tokens; ++row) {
    const std::int32_t block = blocks[static_cast<std::size_t>(row / page_size())];
    ids.push_back(token_slots(block)[row % page_size()]);
  }
  return ids;
}

}  // namespace kvcache::internal
