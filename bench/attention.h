// Attention over cold rows, against what the machine allows.
#ifndef KVCACHE_BENCH_ATTENTION_H_
#define KVCACHE_BENCH_ATTENTION_H_

#include <cstdint>

#include "bench/attention_shape.h"
#include "bench/case.h"
#include "bench/meter.h"
#include "kvcache/status.h"

namespace kvcache::bench {

struct AttentionRun {
  int repeats = 0;       // medians of so many; 0: what fits `seconds`, at least 5
  double seconds = 0.6;  // of a case
  Clock clock = Clock::kWall;
  std::int64_t ring_bytes = std::int64_t{1} << 30;  // of memory for rows, at most
  std::uint64_t seed = 0;                           // of the rows and queries
};

// One case. The answer is checked against the reference first, over poisoned results, and must come
// out the same, bit for bit, after the measurement. Then roof and case take turns over a ring of
// rows that no cache holds: read, compute and conversion roof, the case, the case over rows that
// fit the second level of cache. `achieved` and `roof` are medians, in GB/s of rows for one query a
// sequence and in GFLOP/s for more; the roof is the bound of count_attention() by the rates of the
// same turn, and `ratio` the median of the turns. Where a prefix is shared, the same attention with
// sharing off takes its turn too, and must give the same bits.
// Errors: kInvalidArgument, kUnavailable, kOutOfMemory.
Result<Case> run_attention(const AttentionShape& shape, const AttentionRun& run);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_ATTENTION_H_
