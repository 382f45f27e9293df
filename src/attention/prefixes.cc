#include "attention/prefixes.h"

#include <algorithm>

#include "attention/problem.h"
#include "attention/units.h"

namespace kvcache::internal {
namespace {

int sign_of(std::int64_t difference) { return difference < 0 ? -1 : difference > 0 ? 1 : 0; }

// Orders sequences by where unit `index` of theirs lies; 0: in the same rows.
int compare_rows(const KvView& kv, std::int32_t a, std::int32_t b, std::int32_t index, Path path) {
  const Unit unit = unit_at(kv, a, index, path);
  const Unit other = unit_at(kv, b, index, path);
  if (unit.part != other.part) return sign_of(unit.part - other.part);
  if (unit.begin != other.begin) return sign_of(unit.begin - other.begin);
  if (unit.end != other.end) return sign_of(unit.end - other.end);
  if (unit.begin == unit.end) return 0;
  const KvPart& part = kv.parts[unit.part];
  const std::int64_t index_gap = first_index_of(part, a) - first_index_of(part, b);
  if (index_gap != 0) return sign_of(index_gap);
  const std::int64_t visible_gap = first_visible_of(part, a) - first_visible_of(part, b);
  if (visible_gap != 0) return sign_of(visible_gap);
  if (part.block_table == nullptr || part.positions != nullptr || part.hole_pages != nullptr) {
    return sign_of(a - b);
  }
  const std::int64_t first_page = unit.begin / part.page_size;
  const std::int64_t last_page = (unit.end - 1) / part.page_size;
  const std::int32_t* pages = part.block_table + a * part.block_table_stride;
  const std::int32_t* others = part.block_table + b * part.block_table_stride;
  const auto [page, from] =
      std::mismatch(pages + first_page, pages + last_page + 1, others + first_page);
  return page == pages + last_page + 1 ? 0 : *page < *from ? -1 : 1;
}

// The sequences of a batch as find() asks about them.
struct Batch {
  const KvView& kv;
  std::span<const std::int32_t> qo_indptr;
  const SharingRules& rules;

  std::int64_t num_queries(std::int32_t seq) const { return qo_indptr[seq + 1] - qo_indptr[seq]; }

  Path path(std::int32_t seq) const { return path_of(num_queries(seq), rules.reproducible); }
  Unit unit(std::int32_t seq, std::int32_t index) const {
    return unit_at(kv, seq, index, path(seq));
  }

  // Whether unit `index` is there and every query sees all of it but what no query may see.
  bool may_share(std::int32_t seq, std::int32_t index) const {
    const Unit unit = this->unit(seq, index);
    if (unit.begin == unit.end) return false;
    const std::int64_t seen_by_first = total_length(kv, seq) - num_queries(seq) + 1;
    return !rules.causal || unit.part_row + unit.end <= seen_by_first;
  }

  int compare(std::int32_t a, std::int32_t b, std::int32_t index) const {
    const bool a_shares = may_share(a, index);
    const bool b_shares = may_share(b, index);
    if (a_shares != b_shares) return a_shares ? 1 : -1;
    if (path(a) != path(b)) return path(a) < path(b) ? -1 : 1;
    return a_shares ? compare_rows(kv, a, b, index, path(a)) : sign_of(a - b);
  }

  std::int64_t visible_keys(std::int32_t seq, std::int32_t index) const {
    const Unit unit = this->unit(seq, index);
    const std::int64_t first = first_visible_of(kv.parts[unit.part], seq);
    return unit.end - std::clamp(first, unit.begin, unit.end);
  }
};

}  // namespace

bool same_rows(const KvView& kv, std::int32_t a, std::int32_t b, std::int32_t index, Path path) {
  return compare_rows(kv, a, b, index, path) == 0;
}

void SharedPrefixes::find(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                          const SharingRules& rules) {
  const Batch batch{kv, qo_indptr, rules};
  const auto num_seqs = static_cast<std::size_t>(kv.num_seqs);
  order_.clear();
  runs_.clear();
  pending_.clear();
  order_.reserve(num_seqs);
  last_run_.assign(num_seqs, -1);
  runs_.reserve(num_seqs);  // each is another set of sequences, within or apart from the others
  pending_.reserve(num_seqs);

  const auto take = [&](bool may_share) {
    for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
      const std::int64_t queries = batch.num_queries(seq);
      if (queries > 0 && (queries <= rules.queries_at_most) == may_share) order_.push_back(seq);
    }
    return static_cast<std::int32_t>(order_.size());
  };
  const std::int32_t candidates = take(true);
  take(false);
  if (rules.enabled && candidates > 1) pending_.push_back({0, candidates, 0, 0, -1, 0, 0});

  while (!pending_.empty()) {
    SharedRun run = pending_.back();
    pending_.pop_back();
    const auto first = order_.begin() + run.begin;
    const auto last = order_.begin() + run.end;
    std::int32_t unit = run.unit_begin;
    const auto all_share = [&] {
      return batch.may_share(*first, unit) && std::all_of(first + 1, last, [&](std::int32_t seq) {
               return batch.compare(*first, seq, unit) == 0;
             });
    };
    for (; all_share(); ++unit) run.keys += batch.visible_keys(*first, unit);
    std::int32_t parent = run.parent;
    if (unit > run.unit_begin) {
      run.unit_end = unit;
      parent = static_cast<std::int32_t>(runs_.size());
      runs_.push_back(run);
      std::fill(last_run_.begin() + run.begin, last_run_.begin() + run.end, parent);
    }

    // Here they part: those that go on together stand side by side.
    std::sort(first, last, [&](std::int32_t a, std::int32_t b) {
      const int order = batch.compare(a, b, unit);
      return order != 0 ? order < 0 : a < b;
    });
    for (auto begin = first; begin != last;) {
      auto end = begin + 1;
      if (batch.may_share(*begin, unit)) {
        while (end != last && batch.compare(*begin, *end, unit) == 0) ++end;
      }
      if (end - begin > 1) {
        pending_.push_back({static_cast<std::int32_t>(begin - order_.begin()),
                            static_cast<std::int32_t>(end - order_.begin()), unit, 0, parent,
                            run.keys_before + run.keys, 0});
      }
      begin = end;
    }
  }
}

}  // namespace kvcache::internal
