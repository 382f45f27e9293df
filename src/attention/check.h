// Arguments of attention at the door. Messages read "name: found X, expected Y".
#ifndef KVCACHE_SRC_ATTENTION_CHECK_H_
#define KVCACHE_SRC_ATTENTION_CHECK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "attention/problem.h"
#include "attention/visible.h"
#include "kvcache/attention.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// All may throw bad_alloc while they build a message: call them inside at_door.

// Everything in the view that can be told without reading a row: shapes, formats, lengths, and
// page ids that are not negative (how many pages there are, a view does not say).
// Errors: kInvalidArgument; kUnsupported for a row format, kUnavailable for a device
// that is not here.
Status check_view(const KvView& kv);

// [num_seqs + 1], starting at 0, not decreasing.
Status check_qo_indptr(std::span<const std::int32_t> qo_indptr, std::int32_t num_seqs);

// As many rows of a packed or dense q as there are queries.
Status check_query_rows(const TensorView& q, std::span<const std::int32_t> qo_indptr);

// The qo_indptr of a dense q [B, num_heads, L, D]: multiples of L. REQUIRES: q.rank == 4.
Status dense_qo_indptr(const TensorView& q, std::int32_t num_seqs,
                       std::vector<std::int32_t>* qo_indptr);

// num_heads against the view, and the scalars of the options.
Status check_heads(std::int64_t num_heads, const KvView& kv);
Status check_options(const AttentionOptions& options);

// What the queries see by `rules` against what the view's parts have dropped.
// REQUIRES: the checks above passed.
Status check_held(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                  const VisibilityRules& rules);

// The mask's shape against the longest sequence and the most queries of the batch.
Status check_mask(const TensorView& mask, const KvView& kv, std::span<const std::int32_t> qo_indptr,
                  std::int64_t num_heads);

// Shapes and types of q, out and lse, and that nothing is written to that is read (out may be q);
// then fills `problem`, which points to what it is given.
// REQUIRES: the checks above passed.
Status bind_problem(const TensorView& q, std::span<const std::int32_t> qo_indptr, const KvView& kv,
                    const MutableTensorView& out, const MutableTensorView& lse,
                    std::int64_t num_heads, const AttentionOptions& options,
                    AttentionProblem* problem);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_CHECK_H_
