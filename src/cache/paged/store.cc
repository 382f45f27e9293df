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

std::atomic<std::int64_t> last_sequence_id{0};

std::string number(SequenceId id) { return std::to_string(static_cast<std::int64_t>(id)); }

}  // namespace

SequenceId next_sequence_id() noexcept { return SequenceId{++last_sequence_id}; }

std::int64_t most_sequence_id() noexcept {
  constexpr std::int64_t kAhead = std::int64_t{1} << 48;
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  return std::min(kMost, last_sequence_id + kAhead);
}

void skip_sequence_id(SequenceId id) noexcept {
  const auto wanted = static_cast<std::int64_t>(id);
  for (std::int64_t last = last_sequence_id; last < wanted;) {
    if (last_sequence_id.compare_exchange_weak(last, wanted)) break;
  }
}

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
  std::byte* at = tables_.data;
  for (std::size_t g = 0; g <= layout_.groups.size(); ++g) {
    const GroupLayout* const layout = is_blocks(g) ? nullptr : &layout_.groups[g];
    groups_.emplace_back(layout, page_size(), num_pages_, memory_, at);
    at += round_up(PageGroup::table_bytes(layout, num_pages_), alignof(std::max_align_t));
  }
  token_ids_ = reinterpret_cast<std::int32_t*>(at);
  if (layout_.prefix_bytes > 0) {
    at += num_pages_ * page_size() * kTokenBytes;
    at += -reinterpret_cast<std::uintptr_t>(at) % kPrefixAlignment;
    prefix_memory_ = at;
  }
  return {};
}

PagedStore::~PagedStore() {
  groups_.clear();
  if (tables_.data != nullptr) memory_.release(tables_, tables_bytes_);
}

void PagedStore::set_keeper(PageKeeper* keeper) noexcept {
  keeper_ = keeper;
  std::int32_t number = 0;
  for (PageGroup& group : groups_) group.set_keeper(keeper, number++);
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
  seq->id = next_sequence_id();
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
  KVC_RETURN_IF_ERROR(grow_tables({1, 0}));
  const SettleTables settle{*this};
  KVC_ASSIGN_OR_RETURN(const PagedSequence* opened, insert(make_sequence()));
  return opened->id;
}

void PagedStore::shorten(PagedSequence& seq, std::int64_t length) noexcept {
  seq.length = length;
  seq.coded = std::min(seq.coded, length);
  seq.known_tokens = std::min(seq.known_tokens, length);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    table_entries_ -= groups_[g].shorten(seq.tables[g], length_in(g, seq));
  }
}

void PagedStore::clear(PagedSequence& seq) noexcept {
  seq.length = seq.coded = seq.known_tokens = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    table_entries_ -= groups_[g].clear(seq.tables[g]);
  }
}

Status PagedStore::check_held(const PagedSequence& seq, std::int64_t length) const {
  if (length == seq.length) return {};
  for (std::size_t g = 0; !is_blocks(g); ++g) {
    const KeepRule& rule = groups_[g].rule();
    const std::int64_t needed = rule.seen(length);
    if (rule.is_tail() || needed >= seq.tables[g].first) continue;
    return refusal(StatusCode::kOutOfRange,
                   "layer " + std::to_string(layout_.groups[g].layers.front().layer),
                   "position " + std::to_string(seq.tables[g].first) + " the first held",
                   std::to_string(needed) + ", for a return to length " + std::to_string(length));
  }
  return {};
}

Status PagedStore::release(SequenceId id) {
  KVC_ASSIGN_OR_RETURN(PagedSequence * seq, find_idle(id));
  if (keeper_ != nullptr) keeper_->leaving(*seq);
  clear(*seq);
  handles_ -= seq->is_handle ? 1 : 0;
  sequences_.erase(static_cast<std::int64_t>(id));
  settle_tables();
  return {};
}

Status PagedStore::reaches(SequenceId id, std::int64_t length) const {
  KVC_ASSIGN_OR_RETURN(const PagedSequence* seq, find(id));
  if (length < 0 || length > seq->length) {
    return refusal(StatusCode::kOutOfRange, "length", length,
                   "0 .. " + std::to_string(seq->length));
  }
  return check_held(*seq, length);
}

Result<SequenceId> PagedStore::fork(SequenceId id, std::int64_t length, bool is_handle) {
  KVC_ASSIGN_OR_RETURN(const PagedSequence* parent, find_idle(id));
  KVC_RETURN_IF_ERROR(reaches(id, length));
  auto seq = make_sequence();
  seq->length = length;
  seq->coded = std::min(parent->coded, length);
  seq->known_tokens = std::min(parent->known_tokens, length);
  seq->cursor = parent->cursor;
  seq->is_handle = is_handle;
  seq->holds_rows = parent->holds_rows;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].list(parent->tables[g], length_in(g, *seq), seq->tables[g]);
  }
  KVC_ASSIGN_OR_RETURN(const PagedSequence* child, assemble(std::move(seq), true));
  return child->id;
}

Result<PagedSequence*> PagedStore::assemble(std::unique_ptr<PagedSequence> seq, bool is_held) {
  std::int64_t entries = 0;
  for (const GroupTable& table : seq->tables) {
    entries += static_cast<std::int64_t>(table.pages.size());
  }
  KVC_RETURN_IF_ERROR(grow_tables({1, entries}, seq.get()));
  const SettleTables settle{*this};
  KVC_ASSIGN_OR_RETURN(PagedSequence * opened, insert(std::move(seq)));
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].adopt(opened->tables[g], length_in(g, *opened), is_held);
  }
  table_entries_ += entries;
  handles_ += opened->is_handle ? 1 : 0;
  return opened;
}

Status PagedStore::charge_records(std::int64_t count) {
  KVC_RETURN_IF_ERROR(grow_tables({count, 0}));
  const SettleTables settle{*this};
  records_ += count;
  return {};
}

std::vector<std::int64_t> PagedStore::handles() const {
  std::vector<std::int64_t> ids;
  for (const auto& [id, seq] : sequences_) {
    if (seq->is_handle) ids.push_back(id);
  }
  return ids;
}

std::vector<SequenceId> PagedStore::sequences() const {
  std::vector<SequenceId> ids;
  for (const auto& [id, seq] : sequences_) {
    if (!seq->is_handle) ids.push_back(SequenceId{id});
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

void PagedStore::forget_prefixes() noexcept {
  for (const auto& [id, seq] : sequences_) seq->cursor = {};
}

Status PagedStore::hold_rows(SequenceId id, bool hold) {
  KVC_RETURN_IF_ERROR(find(id).status());
  PagedSequence& seq = *sequences_.find(static_cast<std::int64_t>(id))->second;
  seq.holds_rows = hold;
  if (hold || seq.step != nullptr) return {};  // a step lets go when it ends
  let_go(seq);
  settle_tables();
  return {};
}

void PagedStore::let_go(PagedSequence& seq) noexcept {
  for (std::size_t g = 0; !is_blocks(g); ++g) {
    table_entries_ -= groups_[g].let_go(seq.tables[g], seq.length);
  }
}

Status PagedStore::truncate(SequenceId id, std::int64_t length) {
  KVC_ASSIGN_OR_RETURN(PagedSequence * seq, find_idle(id));
  if (length < 0) {
    return refusal("n", length, "at least 0");
  }
  if (length >= seq->length) return {};
  KVC_RETURN_IF_ERROR(check_held(*seq, length));
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
  // The first that becomes what a sequence was which changes too takes its tables over; the others
  // copy them.
  struct Change {
    PagedSequence* seq;
    PagedSequence* source;
    std::unique_ptr<PagedSequence> becomes;
    bool takes;
  };
  std::vector<Change> changes;
  changes.reserve(seqs.size());
  std::vector<bool> taken(seqs.size());
  std::int64_t entries = 0;
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    const std::int64_t beam = beam_idx[i];
    if (beam < 0 || beam >= static_cast<std::int64_t>(seqs.size())) {
      return refusal(StatusCode::kOutOfRange, "beam_idx[" + std::to_string(i) + "]", beam,
                     "0 .. " + std::to_string(seqs.size() - 1));
    }
    const auto from = static_cast<std::size_t>(beam);
    PagedSequence& source = *seqs[from];
    if (from == i) continue;
    const bool takes = beam_idx[from] != beam && !taken[from];
    if (takes) taken[from] = true;
    changes.push_back({seqs[i], &source, make_sequence(), takes});
    PagedSequence& becomes = *changes.back().becomes;
    becomes.length = source.length;
    becomes.coded = source.coded;
    becomes.known_tokens = source.known_tokens;
    becomes.cursor = source.cursor;
    becomes.holds_rows = source.holds_rows;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      if (!takes) groups_[g].list(source.tables[g], length_in(g, source), becomes.tables[g]);
      entries += static_cast<std::int64_t>(source.tables[g].pages.size());
      entries -= static_cast<std::int64_t>(seqs[i]->tables[g].pages.size());
    }
  }
  KVC_RETURN_IF_ERROR(grow_tables({0, entries}));
  // All references are taken before any is dropped, so that no page is freed on the way.
  for (const Change& change : changes) {
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      if (change.takes) continue;
      groups_[g].adopt(change.becomes->tables[g], length_in(g, *change.becomes), true);
      table_entries_ += static_cast<std::int64_t>(change.becomes->tables[g].pages.size());
    }
  }
  for (const Change& change : changes) {
    for (std::size_t g = 0; change.takes && g < groups_.size(); ++g) {
      groups_[g].hand_over(change.source->tables[g], change.becomes->tables[g]);
    }
  }
  for (const Change& change : changes) clear(*change.seq);
  for (const Change& change : changes) {
    change.seq->length = change.becomes->length;
    change.seq->coded = change.becomes->coded;
    change.seq->known_tokens = change.becomes->known_tokens;
    change.seq->cursor = std::move(change.becomes->cursor);
    change.seq->holds_rows = change.becomes->holds_rows;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      groups_[g].hand_over(change.becomes->tables[g], change.seq->tables[g]);
    }
  }
  settle_tables();
  return {};
}

bool PagedStore::owns(const TensorView& rows) const noexcept {
  const ByteSpan span = byte_span(rows);
  for (const PageGroup& group : groups_) {
    if (group.owns(span)) return true;
  }
  return false;
}

std::int64_t PagedStore::tables_with(const Growth& growth) const noexcept {
  std::int64_t touched = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const PagePool& pool = groups_[g].pool();
    touched = std::max(touched, pool.touched() + pool.fresh_among(new_pages_of(growth, g)));
  }
  return tables_of(growth, touched);
}

std::int64_t PagedStore::bytes_with(const Growth& growth) const noexcept {
  std::int64_t bytes = tables_with(growth);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    bytes += groups_[g].memory_with(new_pages_of(growth, g));
  }
  return bytes;
}

std::int64_t PagedStore::least_bytes_with(const Growth& growth) const noexcept {
  std::int64_t bytes = 0, touched = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::int64_t pages = pages_of(growth, g);
    touched = std::max(touched, groups_[g].least_touched_with(pages));
    bytes += groups_[g].least_memory_with(pages);
  }
  return bytes + tables_of(growth, touched);
}

void PagedStore::plan_room(const Growth& growth) noexcept {
  if (budget_bytes_ == 0) return;
  const auto over = [&] { return bytes_with(growth) - budget_bytes_; };
  for (std::size_t g = 0; growth.step != nullptr && g < groups_.size() && over() > 0; ++g) {
    // As few as do, and where none do as many as can.
    std::int64_t& evicts = growth.step->rooms[g].evicts;
    std::int64_t low = 0;
    std::int64_t high = std::min(
        groups_[g].evictable(),
        std::max<std::int64_t>(0, growth.step->rooms[g].num_pages() - groups_[g].pool().free()));
    while (low < high) {
      evicts = low + (high - low) / 2;
      if (over() > 0) {
        low = evicts + 1;
      } else {
        high = evicts;
      }
    }
    evicts = high;
  }
  std::int64_t bytes = over();
  for (const PageGroup& group : groups_) bytes -= group.lent_bytes();
  for (std::size_t g = 0; g < groups_.size() && bytes > 0; ++g) {
    const std::int64_t evicts = growth.step == nullptr ? 0 : growth.step->rooms[g].evicts;
    const std::int64_t free = groups_[g].pool().free() - new_pages_of(growth, g);
    bytes -= groups_[g].lend(bytes, std::max<std::int64_t>(0, free) +
                                        std::max<std::int64_t>(0, groups_[g].evictable() - evicts));
  }
}

void PagedStore::repay() noexcept {
  for (PageGroup& group : groups_) group.repay();
}

void PagedStore::make_room(const Growth& growth) noexcept {
  if (budget_bytes_ == 0) return;
  for (std::size_t g = 0; growth.step != nullptr && g < groups_.size(); ++g) {
    GroupRoom& room = growth.step->rooms[g];
    groups_[g].evict_cached(room.num_pages() - groups_[g].pool().free() - room.bare - room.fresh);
    room.evicts = 0;
  }
  const auto over = [&] { return bytes_with(growth) - budget_bytes_; };
  const auto shed_free = [&] {
    for (std::size_t g = 0; g < groups_.size() && over() > 0; ++g) {
      groups_[g].shed_free(over(), pages_of(growth, g));
    }
  };
  shed_free();
  // What leaves may have pages in every group: no more at once than is surely too much.
  const std::int64_t most = layout_.page_bytes() + layout_.page_table_bytes();
  for (PageGroup& group : groups_) {
    while (over() > 0 && group.evict_cached(std::max<std::int64_t>(1, over() / most))) shed_free();
  }
}

Status PagedStore::grow_tables(const Growth& growth, const PagedSequence* listed) {
  if (budget_bytes_ == 0 || bytes_with(growth) <= std::max(budget_bytes_, reserved_bytes())) {
    return charge_tables(growth);
  }
  const auto each = [&](auto&& fn) {
    for (std::size_t g = 0; listed != nullptr && g < groups_.size(); ++g) {
      fn(groups_[g], listed->tables[g]);
    }
  };
  each([](PageGroup& group, const GroupTable& table) { group.pin(table); });
  Status status;
  if (const std::int64_t bytes = least_bytes_with(growth); bytes > budget_bytes_) {
    status = refusal(StatusCode::kRetryLater, "budget_bytes", std::to_string(bytes) + " needed",
                     "at most " + std::to_string(budget_bytes_));
  } else {
    plan_room(growth);
    status = charge_tables(growth);
    if (status.ok()) make_room(growth);
    repay();
  }
  each([](PageGroup& group, const GroupTable& table) { group.unpin(table); });
  return status;
}

Status PagedStore::charge_tables(const Growth& growth) {
  const std::int64_t more = tables_with(growth) - tables_bytes_;
  if (more <= 0) return {};
  KVC_RETURN_IF_ERROR(memory_.commit(tables_, more));
  tables_bytes_ += more;
  return {};
}

void PagedStore::settle_tables() noexcept {
  const std::int64_t unused = tables_bytes_ - tables_with({});
  if (unused > 0) {
    memory_.decommit(tables_, unused, 0, 0);
    tables_bytes_ -= unused;
  }
  repay();
}

std::int64_t PagedStore::free_pages(std::int64_t group) const noexcept {
  if (group < 0 || group >= layout_.num_groups()) return 0;
  const PageGroup& asked = groups_[static_cast<std::size_t>(group)];
  const std::int64_t available = asked.available();
  if (budget_bytes_ == 0) return available;
  // Each with an id in a table, and perhaps a block of token ids. Tables for as many pages as this
  // group has touched then.
  const auto fits = [&](std::int64_t count) {
    std::int64_t touched = asked.least_touched_with(count);
    std::int64_t bytes = asked.least_memory_with(count) - asked.least_memory_with(0);
    for (const PageGroup& each : groups_) {
      touched = std::max(touched, each.pool().touched());
      bytes += each.least_memory_with(0);
    }
    return bytes + tables_of({0, 2 * count}, touched) <= budget_bytes_;
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
    stats.pages_cached += pool.cached();
  }
  stats.pages_high_water = pages_high_water_;
  stats.pages_copied = pages_copied_;
  stats.rows_copied = rows_copied_;
  stats.rows_encoded = rows_encoded_;
  stats.sequences = static_cast<std::int64_t>(sequences_.size()) - handles_;
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
