// Units of a sequence: one cut of one part each, what becomes one partial result. They are counted
// over the parts of the sequence.
//
// Cuts lie at fixed indices of the sequence. Those of prefill are 512 keys, which stay in the
// second level of cache for all tiles that attend to them. Decode reads a cut once, in four
// streams, and long streams are faster: its cuts are 2048 keys, but for the first 2048, which are
// four of 512, so that short texts have enough of them for many threads and short prefixes can be
// shared.
#ifndef KVCACHE_SRC_ATTENTION_UNITS_H_
#define KVCACHE_SRC_ATTENTION_UNITS_H_

#include <cstdint>

#include "attention/visible.h"
#include "kernels/cpu/cut.h"
#include "kvcache/kv_view.h"

namespace kvcache::internal {

// Rows begin .. end of a part, before visibility.
struct Unit {
  std::int32_t part = 0;
  std::int64_t part_row = 0;  // row of the sequence that row 0 of the part is
  std::int64_t begin = 0;
  std::int64_t end = 0;
  Cut cut;
};

std::int32_t num_units(const KvView& kv, std::int32_t seq, Path path);

// Units begin .. end of a sequence, but for `gap` of them from gap_begin on.
struct UnitRange {
  std::int32_t begin = 0, end = 0;
  std::int32_t gap_begin = 0, gap = 0;
};

// The units of which queries first .. last (inclusive) of a sequence see rows. Of several gaps
// between them the longest is left out, units of the others are found to be empty. The time it
// takes does not depend on how many there are.
UnitRange seen_units(const KvView& kv, std::int32_t seq, Path path, std::int64_t num_queries,
                     std::int64_t first, std::int64_t last, const VisibilityRules& rules);

// Unit `index` of a sequence; one without rows beyond the last.
Unit unit_at(const KvView& kv, std::int32_t seq, std::int32_t index, Path path);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_UNITS_H_
