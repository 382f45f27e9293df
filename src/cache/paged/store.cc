#include "cache/paged/store.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"

namespace kvcache::internal {
namespace {

// Buffers start at pages of the system, so that neighbours never share one.
constexpr std::int64_t kBufferAlignment = 4096;

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
  store->groups_.resize(store->layout_.groups.size());
  store->token_ids_ = make_lazy_ints(num_pages * store->layout_.page_size);
  if (store->token_ids_ == nullptr) return out_of_memory();
  for (std::size_t g = 0; g < store->groups_.size(); ++g) {
    const PagedGroup& shape = store->layout_.groups[g];
    Group& group = store->groups_[g];
    KVC_RETURN_IF_ERROR(group.pool.init(num_pages));
    group.k_buffer_bytes = round_up(num_pages * shape.k_page_bytes, kBufferAlignment);
    group.v_buffer_bytes = round_up(num_pages * shape.v_page_bytes, kBufferAlignment);
    std::int64_t bytes = 0;
    if (!checked_mul(shape.num_layers(), group.k_buffer_bytes + group.v_buffer_bytes, &bytes)) {
      return out_of_memory();
    }
    KVC_ASSIGN_OR_RETURN(group.region, memory.reserve(bytes));
  }
  return store;
}

PagedStore::~PagedStore() {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (groups_[g].region.data == nullptr) continue;
    memory_.release(groups_[g].region, groups_[g].pool.touched() * layout_.groups[g].page_bytes);
  }
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
  const std::size_t count = sequences_.size() + 1;
  if (tails_.capacity() < count) {
    const std::lock_guard lock(tails_mutex_);
    tails_.reserve(std::max(count, 2 * tails_.capacity()));
  }
  seq->id = next_id();
  PagedSequence* const raw = seq.get();
  sequences_.emplace(static_cast<std::int64_t>(seq->id), std::move(seq));
  return raw;
}

Result<SequenceId> PagedStore::open() {
  KVC_RETURN_IF_ERROR(check_budget(1, 0));
  auto seq = std::make_unique<PagedSequence>();
  seq->tables.resize(groups_.size());
  KVC_ASSIGN_OR_RETURN(const PagedSequence* opened, insert(std::move(seq)));
  return opened->id;
}

void PagedStore::shorten(PagedSequence& seq, std::int64_t pages) noexcept {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    std::vector<std::int32_t>& table = seq.tables[g];
    while (static_cast<std::int64_t>(table.size()) > pages) {
      groups_[g].pool.drop(table.back());
      table.pop_back();
      --table_entries_;
    }
  }
}

Status PagedStore::release(SequenceId id) {
  KVC_ASSIGN_OR_RETURN(PagedSequence * seq, find_idle(id));
  shorten(*seq, 0);
  sequences_.erase(static_cast<std::int64_t>(id));
  return {};
}

Result<SequenceId> PagedStore::fork(SequenceId id, std::int64_t length) {
  KVC_ASSIGN_OR_RETURN(const PagedSequence* parent, find_idle(id));
  if (length < 0 || length > parent->length) {
    return refusal(StatusCode::kOutOfRange, "length", length,
                   "0 .. " + std::to_string(parent->length));
  }
  const std::int64_t pages = pages_for(length, page_size());
  const std::int64_t entries = pages * layout_.num_groups();
  KVC_RETURN_IF_ERROR(check_budget(1, entries));
  auto seq = std::make_unique<PagedSequence>();
  seq->length = length;
  seq->known_tokens = std::min(parent->known_tokens, length);
  seq->tables.resize(groups_.size());
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::vector<std::int32_t>& from = parent->tables[g];
    seq->tables[g].assign(from.begin(), from.begin() + pages);
  }
  KVC_ASSIGN_OR_RETURN(const PagedSequence* child, insert(std::move(seq)));
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    for (const std::int32_t page : child->tables[g]) groups_[g].pool.hold(page);
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
  shorten(*seq, pages_for(length, page_size()));
  seq->length = length;
  seq->known_tokens = std::min(seq->known_tokens, length);
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
    PagedSequence becomes;
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
    changes.push_back({seqs[i], source});
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      entries += static_cast<std::int64_t>(source.tables[g].size());
      entries -= static_cast<std::int64_t>(seqs[i]->tables[g].size());
    }
  }
  KVC_RETURN_IF_ERROR(check_budget(0, entries));
  // All references are taken before any is dropped, so that no page is freed on the way.
  for (const Change& change : changes) {
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      for (const std::int32_t page : change.becomes.tables[g]) groups_[g].pool.hold(page);
    }
  }
  for (Change& change : changes) {
    shorten(*change.seq, 0);
    change.seq->tables.swap(change.becomes.tables);
    change.seq->length = change.becomes.length;
    change.seq->known_tokens = change.becomes.known_tokens;
    for (const auto& table : change.seq->tables) {
      table_entries_ += static_cast<std::int64_t>(table.size());
    }
  }
  return {};
}

std::byte* PagedStore::k_rows(std::int64_t layer) const noexcept {
  const LayerPlace at = place(layer);
  const Group& group = groups_[static_cast<std::size_t>(at.group)];
  return group.region.data + at.index * (group.k_buffer_bytes + group.v_buffer_bytes);
}

std::byte* PagedStore::v_rows(std::int64_t layer) const noexcept {
  return k_rows(layer) + groups_[static_cast<std::size_t>(place(layer).group)].k_buffer_bytes;
}

std::int64_t PagedStore::bytes_with(std::int64_t sequences, std::int64_t entries,
                                    std::int64_t page_bytes) const noexcept {
  std::int64_t bytes = page_bytes;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    bytes += groups_[g].pool.touched() * layout_.groups[g].page_bytes;
  }
  return bytes + layout_.table_bytes(num_pages_,
                                     static_cast<std::int64_t>(sequences_.size()) + sequences,
                                     table_entries_ + entries);
}

// Pages alone always fit, num_pages being chosen so: what a budget refuses is tables of very many
// empty sequences, or of very many sharers of the same pages.
Status PagedStore::check_budget(std::int64_t sequences, std::int64_t entries) const {
  if (budget_bytes_ == 0) return {};
  const std::int64_t bytes = bytes_with(sequences, entries, 0);
  if (bytes <= budget_bytes_ || bytes <= reserved_bytes()) return {};
  return refusal(StatusCode::kRetryLater, "budget_bytes", std::to_string(bytes) + " needed",
                 "at most " + std::to_string(budget_bytes_));
}

std::int64_t PagedStore::free_pages(std::int64_t group) const noexcept {
  if (group < 0 || group >= layout_.num_groups()) return 0;
  const std::int64_t available = groups_[static_cast<std::size_t>(group)].pool.available();
  if (budget_bytes_ == 0) return available;
  const auto fits = [this](std::int64_t count) {
    std::int64_t page_bytes = 0;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      page_bytes += groups_[g].pool.fresh_among(count) * layout_.groups[g].page_bytes;
    }
    return bytes_with(0, count * layout_.num_groups(), page_bytes) <= budget_bytes_;
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
  for (const Group& group : groups_) {
    stats.pages_total += group.pool.num_pages();
    stats.pages_held += group.pool.held();
    stats.pages_reserved += group.pool.reserved();
  }
  stats.pages_high_water = pages_high_water_;
  stats.pages_copied = pages_copied_;
  stats.rows_copied = rows_copied_;
  stats.sequences = static_cast<std::int64_t>(sequences_.size());
  stats.open_steps = open_steps_;
  return stats;
}

// A held page is full, unless every sequence that names it ends within it; then the longest counts.
std::int64_t PagedStore::nbytes() const noexcept {
  const std::lock_guard lock(tails_mutex_);
  std::int64_t bytes = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    tails_.clear();
    for (const auto& [id, seq] : sequences_) {
      const std::int64_t rows = seq->length % page_size();
      if (rows != 0) tails_.emplace_back(seq->tables[g].back(), rows);
    }
    std::sort(tails_.begin(), tails_.end());
    std::int64_t rows = groups_[g].pool.held() * page_size();
    for (std::size_t begin = 0, end = 0; begin < tails_.size(); begin = end) {
      const std::int32_t page = tails_[begin].first;
      while (end < tails_.size() && tails_[end].first == page) ++end;
      if (static_cast<std::int32_t>(end - begin) < groups_[g].pool.references(page)) continue;
      rows -= page_size() - tails_[end - 1].second;
    }
    bytes += rows * layout_.groups[g].row_bytes();
  }
  return bytes;
}

std::vector<std::int32_t> PagedStore::tokens(const PagedSequence& seq) const {
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(seq.known_tokens));
  for (std::int64_t row = 0; row < seq.known_tokens; ++row) {
    const std::int32_t page = seq.tables[0][static_cast<std::size_t>(row / page_size())];
    ids.push_back(token_slots(page)[row % page_size()]);
  }
  return ids;
}

}  // namespace kvcache::internal
