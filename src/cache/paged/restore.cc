// Sequences that were stored elsewhere: room for them, and their place among the others.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/expect.h"
#include "cache/paged/store.h"

namespace kvcache::internal {

// What can be seen of it without pages: that all a query behind it sees is there. Fills the tables'
// holes.
Status PagedStore::check_restored(const RestoredSequence& from, PagedSequence& seq) const {
  const std::int64_t slots =
      layout_.is_bounded() ? std::numeric_limits<std::int32_t>::max() : num_pages_ * page_size();
  if (from.length > slots) {
    return refusal(StatusCode::kNeverFits, "length", from.length,
                   "at most " + std::to_string(slots) + " tokens in all");
  }
  for (std::size_t g = 0; !is_blocks(g); ++g) {
    const GroupLayout& group = layout_.groups[g];
    GroupTable& table = seq.tables[g];
    std::int64_t length = from.length;
    if (is_codes(g) || group.rule.is_tail()) {
      for (const LayerLayout& layer : group.layers) {
        const std::int64_t first = from.first[static_cast<std::size_t>(layer.layer)];
        if (first == 0) continue;
        return refusal(StatusCode::kCorrupt, "layers[" + std::to_string(layer.layer) + "].first",
                       first, "0, as it keeps all tokens");
      }
      if (is_codes(g)) length = from.coded;
      if (group.rule.is_tail()) table.first = from.coded;
    } else {
      const auto layer = static_cast<std::size_t>(group.layers.front().layer);
      const std::int64_t first = from.first[layer];
      for (const LayerLayout& other : group.layers) {
        const std::int64_t its = from.first[static_cast<std::size_t>(other.layer)];
        if (its == first) continue;
        return refusal(StatusCode::kCorrupt, "layers[" + std::to_string(other.layer) + "].first",
                       its, std::to_string(first) + ", that of layer " + std::to_string(layer));
      }
      const std::int64_t most = group.rule.seen(length);
      if (first > most) {
        return refusal(StatusCode::kCorrupt, "layers[" + std::to_string(layer) + "].first", first,
                       "at most " + std::to_string(most) + ", which the next query sees");
      }
      if (group.coded_buffers > 0 && from.coded < from.length) {
        return refusal("residual_tokens", 0,
                       "more: the newest " + std::to_string(from.length - from.coded) +
                           " rows of layer " + std::to_string(layer) + " are plain");
      }
      table.first = std::max(first, group.rule.first(length));
      // Pages of which rows are missing are not for others.
      const std::int64_t sinks = groups_[g].sink_rows(table);
      if (table.first % page_size() != 0) table.torn = table.first / page_size();
      if (sinks % page_size() != 0 && sinks < table.first) table.torn_sinks = sinks / page_size();
    }
    const LivePages live =
        live_pages(table.first, length, group.rule.life.sink_tokens, page_size());
    table.hole_begin = live.sinks;
    table.hole_pages = live.begin - live.sinks;
  }
  return {};
}

std::int64_t PagedStore::pages_of_restored(std::size_t group, const RestoredSequence& from,
                                           const PagedSequence& seq) const noexcept {
  const auto known = static_cast<std::int64_t>(from.tokens.size());
  const std::int64_t length = is_blocks(group) ? known : is_codes(group) ? from.coded : from.length;
  return live_pages(seq.tables[group].first, length, groups_[group].rule().life.sink_tokens,
                    page_size())
      .count();
}

bool PagedStore::has_in_hand(const RestoredSequence& from) const {
  const auto seq = make_sequence();
  if (!check_restored(from, *seq).ok()) return false;
  std::int64_t entries = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::int64_t pages = pages_of_restored(g, from, *seq);
    if (pages > groups_[g].pool().free()) return false;
    entries += pages;
  }
  return tables_with({1, entries}) <= tables_bytes_;
}

Result<std::unique_ptr<PagedStep>> PagedStore::reserve_restored(const RestoredSequence& from) {
  const auto id = static_cast<std::int64_t>(from.id);
  if (id < 0 || id > most_sequence_id() || sequences_.contains(id)) {
    return refusal("id", id,
                   sequences_.contains(id) ? "one that is not open here"
                                           : "1 .. " + std::to_string(most_sequence_id()));
  }
  auto made = make_sequence();
  PagedSequence& seq = *made;
  KVC_RETURN_IF_ERROR(check_restored(from, seq));
  seq.id = id > 0 ? from.id : next_sequence_id();
  seq.cursor.space = from.space;
  auto step = std::make_unique<PagedStep>();
  step->seqs.push_back({&seq, 0, -1});
  step->restored.emplace(static_cast<std::int64_t>(seq.id), std::move(made));
  if (sequences_.size() + 1 >= sequences_.bucket_count()) {  // an empty map has one that holds none
    sequences_.reserve(2 * sequences_.size() + 1);           // so that opening it allocates nothing
  }
  const Announced announced(keeper_, *step);
  step->rooms.resize(groups_.size());
  auto known = static_cast<std::int64_t>(from.tokens.size());
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    std::int64_t pages = pages_of_restored(g, from, seq);
    if (is_blocks(g) && pages > groups_[g].available()) pages = known = 0;
    step->rooms[g].seqs = {{0, false}, {pages, false}};
  }
  std::int64_t entries = 0;
  KVC_RETURN_IF_ERROR(check_room(*step, &entries));
  reserve_tables(*step);
  step->tokens.assign(from.tokens.begin(), from.tokens.begin() + known);
  KVC_RETURN_IF_ERROR(grant_memory(*step, entries));
  step->high_water_before = pages_high_water_;
  take(*step);
  seq.length = from.length;
  seq.coded = layout_.tail.tokens > 0 ? from.coded : 0;
  seq.holds_rows = true;  // until it is open: a step that is rolled back lets go of nothing
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::vector<std::int32_t>& pages = step->rooms[g].pages;
    seq.tables[g].pages.assign(pages.begin(), pages.end());  // there is room: reserve_tables()
  }
  return step;  // tables are settled when it ends
}

SequenceId PagedStore::open_restored(PagedStep& step) noexcept {
  PagedSequence& seq = *step.restored.begin()->second;
  skip_sequence_id(seq.id);
  seq.holds_rows = false;
  seq.step = nullptr;
  seq.known_tokens = static_cast<std::int64_t>(step.tokens.size());
  for (std::int64_t row = 0; row < seq.known_tokens; ++row) {
    const std::int32_t block = seq.tables.back().pages[static_cast<std::size_t>(row / page_size())];
    token_slots(block)[row % page_size()] = step.tokens[static_cast<std::size_t>(row)];
  }
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].adopt(seq.tables[g], length_in(g, seq), false);
  }
  sequences_.merge(step.restored);  // there is room
  if (keeper_ != nullptr && seq.cursor.space != nullptr) keeper_->grown(seq, step, 0, 0);
  end_step();
  return seq.id;
}

Result<std::unique_ptr<PagedStep>> PagedStore::reserve_pages(const std::vector<bool>& wanted) {
  auto made = make_sequence();
  made->holds_rows = true;
  auto step = std::make_unique<PagedStep>();
  step->seqs.push_back({made.get(), 0, -1});
  step->restored.emplace(0, std::move(made));
  step->rooms.resize(groups_.size());
  bool fits = true;
  std::int64_t entries = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::int64_t pages = is_blocks(g) || wanted[g] ? 1 : 0;
    step->rooms[g].seqs = {{0, false}, {pages, false}};
    entries += pages;
    const PagePool& pool = groups_[g].pool();
    fits = fits && pages <= groups_[g].available() && pool.evicted_among(pages) == 0;
  }
  if (!fits || (budget_bytes_ > 0 && bytes_with(growth_of(*step, entries)) > budget_bytes_)) {
    return std::unique_ptr<PagedStep>();
  }
  reserve_tables(*step);
  KVC_RETURN_IF_ERROR(grant_memory(*step, entries));
  step->high_water_before = pages_high_water_;
  take(*step);
  return step;
}

void PagedStore::hold_pages(PagedStep& step) noexcept {
  PagedSequence& seq = *step.seqs.front().seq;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const std::vector<std::int32_t>& pages = step.rooms[g].pages;
    seq.tables[g].pages.assign(pages.begin(), pages.end());  // there is room: reserve_tables()
    groups_[g].pin(seq.tables[g]);
  }
}

void PagedStore::drop_pages(PagedStep& step) noexcept {
  PagedSequence& seq = *step.seqs.front().seq;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    table_entries_ -= groups_[g].clear(seq.tables[g]);
  }
  step.restored.clear();
  end_step();
}

}  // namespace kvcache::internal
