#include "attention/visible.h"

#include <algorithm>

namespace kvcache::internal {
namespace {

std::int64_t rows_before(const KvView& kv, std::int32_t part_index, std::int32_t seq) {
  std::int64_t rows = 0;
  for (std::int32_t p = 0; p < part_index; ++p) rows += length_of(kv.parts[p], seq);
  return rows;
}

// Positions in any order: ask every row behind the sinks, of which a bound on such rows has none.
std::int64_t count_one_by_one(const KvView& kv, std::int32_t part_index, std::int32_t seq,
                              std::int64_t num_queries, const VisibleRows& bound,
                              const VisibilityRules& rules) {
  const KvPart& part = kv.parts[part_index];
  const std::int64_t first_query_row = total_length(kv, seq) - num_queries;
  const std::int64_t part_begin = rows_before(kv, part_index, seq);
  const std::int64_t origin = chunk_origin(kv, seq);
  std::int64_t count = 0;
  for (std::int64_t row = bound.window_begin; row < bound.end; ++row) {
    const std::int64_t position = position_of(part, seq, row);
    bool seen = rules.window > 0 && position < rules.sink_tokens;
    std::int64_t query =
        rules.causal ? std::max<std::int64_t>(0, part_begin + row - first_query_row) : 0;
    for (; query < num_queries && !seen; ++query) {
      const std::int64_t asked_at = position_in_view(kv, seq, first_query_row + query);
      if (rules.chunk > 0) {
        const std::int64_t first = chunk_begin(asked_at, origin, rules.chunk);
        seen = position >= first && position < first + rules.chunk;
      } else {
        seen = asked_at - position < rules.window;
      }
    }
    count += seen ? 1 : 0;
  }
  return count;
}

}  // namespace

VisibleRows visible_rows(const KvView& kv, std::int32_t part_index, std::int32_t seq,
                         std::int64_t num_queries, std::int64_t first, std::int64_t last,
                         const VisibilityRules& rules) {
  const KvPart& part = kv.parts[part_index];
  const std::int64_t first_query_row = total_length(kv, seq) - num_queries;
  VisibleRows rows;
  rows.end = length_of(part, seq);
  if (rules.causal) {
    rows.end = std::min(rows.end, first_query_row + last + 1 - rows_before(kv, part_index, seq));
  }
  rows.end = std::max<std::int64_t>(rows.end, 0);
  rows.begin = std::min(first_visible_of(part, seq), rows.end);
  rows.sink_end = rows.begin;
  rows.window_begin = rows.begin;
  if (rules.window > 0 && part.positions == nullptr) {
    const std::int64_t first_index = first_index_of(part, seq);
    const std::int64_t position = position_in_view(kv, seq, first_query_row + first);
    rows.sink_end = std::clamp(rules.sink_tokens - first_index, rows.begin, rows.end);
    rows.window_begin =
        std::clamp(position - rules.window + 1 - first_index, rows.sink_end, rows.end);
  }
  if (rules.chunk > 0 && part.positions == nullptr) {
    const std::int64_t first_index = first_index_of(part, seq);
    const std::int64_t origin = chunk_origin(kv, seq);
    const auto chunk_at = [&](std::int64_t query) {
      const std::int64_t position = position_in_view(kv, seq, first_query_row + query);
      return chunk_begin(position, origin, rules.chunk) - first_index;
    };
    rows.window_begin = std::clamp(chunk_at(first), rows.begin, rows.end);
    rows.end = std::clamp(chunk_at(last) + rules.chunk, rows.window_begin, rows.end);
  }
  return rows;
}

std::int64_t count_visible_rows(const KvView& kv, std::int32_t seq, std::int64_t num_queries,
                                const VisibilityRules& rules) {
  if (num_queries == 0) return 0;
  std::int32_t parts = 0;  // that have rows of the sequence
  for (std::int32_t p = 0; p < kv.num_parts; ++p) parts += length_of(kv.parts[p], seq) > 0 ? 1 : 0;
  std::int64_t count = 0;
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const VisibleRows rows = visible_rows(kv, p, seq, num_queries, 0, num_queries - 1, rules);
    // Between chunks that queries of several parts see there may be others.
    const bool exact =
        !rules.local() || (kv.parts[p].positions == nullptr && (rules.chunk == 0 || parts == 1));
    count += exact ? rows.count() : count_one_by_one(kv, p, seq, num_queries, rows, rules);
  }
  return count;
}

}  // namespace kvcache::internal
