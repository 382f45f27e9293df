// Whether an answer of attention is right: rows of it against the definition in float64.
#ifndef KVCACHE_BENCH_ATTENTION_CHECK_H_
#define KVCACHE_BENCH_ATTENTION_CHECK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"

namespace kvcache::bench {

// What an attention call was given, and what it wrote: causal, the default scale, `queries` of each
// sequence. `view` has one part.
struct AttentionAnswer {
  KvView view;
  std::int64_t queries = 1;
  std::int64_t heads = 1;
  std::span<const float> q;    // [num_seqs * queries, heads, k_head_dim]
  std::span<const float> out;  // [num_seqs * queries, heads, v_head_dim]
};

// Relative root mean square of the answer against backend "reference" over the same rows: of all of
// it where that is little work, else of the first and the last query and of random ones, all heads
// being as likely. Infinite if any element of the answer is not finite.
// Errors: what the reference reports.
Result<double> check_attention(const AttentionAnswer& answer, std::uint64_t seed,
                               const ExecContext& context);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_ATTENTION_CHECK_H_
