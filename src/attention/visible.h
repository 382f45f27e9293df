// Which rows of a part a run of queries may see, by arithmetic on causality, window, chunk and the
// first visible key. Masks are looked at by the kernels alone.
#ifndef KVCACHE_SRC_ATTENTION_VISIBLE_H_
#define KVCACHE_SRC_ATTENTION_VISIBLE_H_

#include <cstdint>

#include "attention/problem.h"

namespace kvcache::internal {

struct VisibilityRules {
  bool causal = true;
  std::int64_t window = 0;
  std::int64_t sink_tokens = 0;
  std::int64_t chunk = 0;

  // Whether a row's place decides who sees it, beside causality.
  bool local() const { return window > 0 || chunk > 0; }
};

// Rows [begin, sink_end) and [window_begin, end) of a part; sink_end <= window_begin. A bound, not
// the exact set, where the part has positions of its own.
struct VisibleRows {
  std::int64_t begin = 0;
  std::int64_t sink_end = 0;
  std::int64_t window_begin = 0;
  std::int64_t end = 0;

  std::int64_t count() const { return sink_end - begin + end - window_begin; }

  // Whether any of the rows from .. to is among them.
  bool touches(std::int64_t from, std::int64_t to) const {
    return (begin < sink_end && from < sink_end && to > begin) ||
           (window_begin < end && from < end && to > window_begin);
  }
};

// What queries first .. last (inclusive) of a sequence see of part `part_index`, together.
VisibleRows visible_rows(const KvView& kv, std::int32_t part_index, std::int32_t seq,
                         std::int64_t num_queries, std::int64_t first, std::int64_t last,
                         const VisibilityRules& rules);

// Rows of a sequence that at least one of its queries sees, over all parts.
std::int64_t count_visible_rows(const KvView& kv, std::int32_t seq, std::int64_t num_queries,
                                const VisibilityRules& rules);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_VISIBLE_H_
