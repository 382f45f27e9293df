// Attention over a KvView: in place, ragged, without a dense copy.
//
// Per query row and head h, over the keys j it sees (Vaswani et al. 2017; online softmax: Milakov
// and Gimelshein 2018; partial results and their merge: Dao 2023):
//   s_j = scale * q.k_j                               scale
//   s_j = softcap * tanh(s_j / softcap)               softcap
//   s_j = s_j - slope_h * (pos_q - pos_k)             ALiBi
//   s_j = s_j + mask[seq, h, i, j]                    additive mask, -inf: unseen
//   out = sum_j exp(s_j) v_j / sum_j exp(s_j),        lse = ln sum_j exp(s_j)
// Query head h reads KV head h / (num_heads / num_kv_heads). A row that sees no key gives 0 and
// lse = -inf. Scores and sums are float32 whatever the storage; a NaN or infinite row reaches only
// the queries that see it. The sum of exp(s_j - max_j s_j) v_j is taken before it is divided:
// values within a factor of S of the largest float32 (3.4e38) can make it infinite.
#ifndef KVCACHE_ATTENTION_H_
#define KVCACHE_ATTENTION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

struct AttentionOptions {
  std::optional<float> scale;  // default 1 / sqrt(k_head_dim)
  float softcap = 0;           // 0: none

  // Bottom-right causal by row order: with L queries over S keys, query i sees key j if
  // j <= i + (S - L).
  bool causal = true;

  // pos_q - pos_k < window, the query's own key included, or pos_k < sink_tokens. 0: no window.
  // The position of a sequence's query i is that of its row S - L + i.
  std::int32_t window = 0;
  std::int32_t sink_tokens = 0;

  // (pos_k - v) / chunk == (pos_q - v) / chunk in whole numbers, v being the position of a
  // sequence's first visible key, 0 where none is hidden: attention within chunks of that many
  // positions. 0: none. Goes with neither window nor sink_tokens.
  std::int32_t chunk = 0;

  const float* alibi_slopes = nullptr;  // [num_heads]
  const float* sinks = nullptr;         // [num_heads] learned sink logits z: finished results are
                                        // out / (1 + exp(z - lse)); lse is without them

  // float32 [B or 1, num_heads or 1, L, S_max]: row i is a sequence's i-th query, column j its
  // row j. L and S_max are at least the longest of the batch.
  TensorView mask;

  bool partial = false;  // leave the sinks to finish(), because results will be merged
  // One path for every query count, so that any split gives the same bits. Also exact on backends
  // whose prefill over bf16 rows otherwise rounds queries and weights to bf16 (avx512bf16: within
  // 5e-3, denormals count as 0).
  bool reproducible = false;

  // Sequences whose block tables begin with the same pages read these together, in whole cuts: of
  // 512 rows up to row 2048, and in decode (1 to 8 new tokens) of 2048 behind it. The bits of a
  // result are the same either way. With a window or chunk nothing is shared.
  bool share_prefixes = true;

  const char* backend = nullptr;  // a name of backends(); null: KVCACHE_BACKEND, else the best
};

// The split of a step's attention into work items, with its workspace. One plan serves all layers
// of a group: plan once per step, run once per layer.
//
// Results depend on a query, the keys it sees, the options, the storage format, the backend and
// the path of its sequence (decode: 1-8 queries, prefill: more), never on threads, the rest of the
// batch, page size, placement, holes or whether a prefix is read once for many. Cuts of keys that
// no query sees by window, chunk and causality are no part of the plan.
//
// Thread safety: distinct plans are independent; one plan is used by one thread at a time.
class KVC_API AttentionPlan {
 public:
  AttentionPlan() noexcept;
  AttentionPlan(AttentionPlan&&) noexcept;
  AttentionPlan& operator=(AttentionPlan&&) noexcept;
  ~AttentionPlan();

  // Plans for views with the sequences, lengths, heads and formats of `like` (its rows are not
  // read). Queries of sequence i are rows qo_indptr[i] .. qo_indptr[i + 1] of a packed tensor:
  // [num_seqs + 1], starting at 0, not decreasing. Allocates only where a shape grew.
  // Errors: kInvalidArgument, kUnavailable for a backend that is not here, kOutOfMemory; the plan
  // then is as before.
  Status plan(const KvView& like, std::span<const std::int32_t> qo_indptr, std::int64_t num_heads,
              const AttentionOptions& options = {}, const ExecContext& context = {});

  // Whether the plan is one for `kv`, these queries, options and threads: what plan() would make of
  // them, but for shared prefixes, which are read one by one where they are others than the
  // planned. So a host that is called layer by layer, and not told where a step begins, plans once
  // a step.
  bool fits(const KvView& kv, std::span<const std::int32_t> qo_indptr, std::int64_t num_heads,
            const AttentionOptions& options = {}, const ExecContext& context = {}) const noexcept;

  // q [total_q, num_heads, k_head_dim], out [total_q, num_heads, v_head_dim], lse
  // [total_q, num_heads] float32 or undefined. A dense q [B, num_heads, L, D] (out likewise, lse
  // [B, num_heads, L]) is taken where every sequence has L queries. q and out may be f32, f16 or
  // bf16. out may lie on q, row on row; apart from that out and lse share no memory with each
  // other, with themselves (as broadcast tensors do) or with anything that is read. Allocates
  // nothing. `options` are those of plan(), but pointers and scale may differ. Errors:
  // kInvalidArgument if the view, the shapes or the options are not the planned ones, if memory is
  // shared, or if the executor runs more at once than that of plan().
  Status run(const TensorView& q, const KvView& kv, const MutableTensorView& out,
             const MutableTensorView& lse = {}, const AttentionOptions& options = {},
             const ExecContext& context = {});

  // K/V token rows one run reads: per sequence, those that at least one of its queries sees by
  // causality, window, chunk and first visible key; each counted once, whatever the heads, and rows
  // that several sequences share (share_prefixes) once for all of them.
  std::int64_t rows_read() const noexcept;

  // Name of the backend in use; "" before plan().
  const char* backend() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// plan() and run() in one call. An empty qo_indptr goes with a dense q [B, num_heads, L, D].
KVC_API Status attend(const TensorView& q, std::span<const std::int32_t> qo_indptr,
                      const KvView& kv, const MutableTensorView& out,
                      const MutableTensorView& lse = {}, const AttentionOptions& options = {},
                      const ExecContext& context = {});

// Joins attention over two disjoint sets of keys into attention over their union:
//   lse = ln(exp(lse_a) + exp(lse_b)),  out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b.
// out [..., D] float32 and lse [...] float32 with the same leading axes; two empty parts give
// (0, -inf). out and lse may lie on those of either part, row on row, and share no memory
// otherwise. Errors: kInvalidArgument.
KVC_API Status merge(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                     const TensorView& lse_b, const MutableTensorView& out,
                     const MutableTensorView& lse);

// Applies learned sinks to merged parts, in place: out / (1 + exp(sink - lse)).
// out [total_q, num_heads, D] float32, lse [total_q, num_heads] float32, sinks [num_heads], none in
// the memory of another. Errors: kInvalidArgument.
KVC_API Status finish(const MutableTensorView& out, const TensorView& lse,
                      std::span<const float> sinks);

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_ATTENTION_H_
