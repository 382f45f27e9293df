// One attention call after its arguments were checked: the tensors by (sequence, query, head), and
// which keys a query may see. Shared by the definition (reference.cc) and the plan.
#ifndef KVCACHE_SRC_ATTENTION_PROBLEM_H_
#define KVCACHE_SRC_ATTENTION_PROBLEM_H_

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kvcache/kv_view.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"

namespace kvcache::internal {

// q, out or lse, packed [total_q, num_heads, dim] or dense [B, num_heads, L, dim]. Strides count
// elements. lse has no dim. `Byte` is const std::byte or std::byte.
template <typename Byte>
struct RowTensor {
  Byte* data = nullptr;  // null: not wanted
  DType dtype = DType::kF32;
  std::int64_t seq_stride = 0;  // dense; a packed tensor finds its sequences through qo_indptr
  std::int64_t query_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t dim_stride = 1;
};

inline Path path_of(std::int64_t num_queries, bool reproducible) {
  return reproducible || num_queries > kDecodeQueries ? Path::kPrefill : Path::kDecode;
}

struct AttentionProblem {
  KvView kv;
  const std::int32_t* qo_indptr = nullptr;  // [num_seqs + 1]
  std::int64_t num_heads = 0;

  RowTensor<const std::byte> q;
  RowTensor<std::byte> out;
  RowTensor<std::byte> lse;  // [.., num_heads] float32
  bool dense = false;        // of q, out and lse alike

  float scale = 1;
  float softcap = 0;
  bool causal = true;
  bool reproducible = false;  // one path for every number of queries
  std::int64_t window = 0;
  std::int64_t sink_tokens = 0;
  std::int64_t chunk = 0;
  const float* alibi_slopes = nullptr;  // [num_heads]
  const float* sinks = nullptr;         // [num_heads]; null as well for partial results
  TensorView mask;                      // [B or 1, num_heads or 1, L, S_max]; may be undefined

  std::int64_t group() const { return num_heads / kv.num_kv_heads; }
  std::int64_t num_queries(std::int32_t seq) const { return qo_indptr[seq + 1] - qo_indptr[seq]; }
  Path path(std::int32_t seq) const { return path_of(num_queries(seq), reproducible); }
};

// Where the row of (seq, query, head) starts.
template <typename Byte>
Byte* row_of(const RowTensor<Byte>& tensor, const AttentionProblem& problem, std::int32_t seq,
             std::int64_t query, std::int64_t head) {
  const std::int64_t first =
      problem.dense ? seq * tensor.seq_stride : problem.qo_indptr[seq] * tensor.query_stride;
  return tensor.data +
         (first + query * tensor.query_stride + head * tensor.head_stride) * size_of(tensor.dtype);
}

inline float& lse_of(const AttentionProblem& problem, std::int32_t seq, std::int64_t query,
                     std::int64_t head) {
  return *reinterpret_cast<float*>(row_of(problem.lse, problem, seq, query, head));
}

// Address of mask[seq, head, query, 0]. REQUIRES: problem.mask.defined().
inline const float* mask_row(const AttentionProblem& problem, std::int32_t seq, std::int64_t query,
                             std::int64_t head) {
  const TensorView& mask = problem.mask;
  return static_cast<const float*>(mask.data) + (mask.shape[0] == 1 ? 0 : seq * mask.strides[0]) +
         (mask.shape[1] == 1 ? 0 : head * mask.strides[1]) + query * mask.strides[2];
}

// --- Rows of a part. ---

// Whether rows are stored rotated: then queries are turned as well, and results back. All parts of
// a view are alike.
inline bool rotates_keys(const KvView& kv) {
  return kv.num_parts > 0 && kv.parts[0].k.format.rotate;
}
inline bool rotates_values(const KvView& kv) {
  return kv.num_parts > 0 && kv.parts[0].v.format.rotate;
}

inline std::int64_t length_of(const KvPart& part, std::int32_t seq) { return part.lengths[seq]; }

// Index in the sequence of the part's row 0: rows dropped before it are counted. Cuts and blocks
// are multiples of constants of this index, so that dropping rows moves no boundary.
inline std::int64_t first_index_of(const KvPart& part, std::int32_t seq) {
  return part.first_position == nullptr ? 0 : part.first_position[seq];
}

inline std::int64_t first_visible_of(const KvPart& part, std::int32_t seq) {
  return part.first_visible == nullptr ? 0 : part.first_visible[seq];
}

inline std::int64_t position_of(const KvPart& part, std::int32_t seq, std::int64_t row) {
  if (part.positions != nullptr) return part.positions[seq * part.positions_stride + row];
  return first_index_of(part, seq) + row;
}

// Position of row `row` of the sequence, counted over all parts. Rows outside the sequence (there
// are more queries than keys) continue the count of the row next to them.
std::int64_t position_in_view(const KvView& kv, std::int32_t seq, std::int64_t row);

// Where chunks of positions are counted from: the first visible position of the sequence, 0 if no
// row is hidden.
std::int64_t chunk_origin(const KvView& kv, std::int32_t seq);

// The first position of the chunk that `position` is in.
inline std::int64_t chunk_begin(std::int64_t position, std::int64_t origin, std::int64_t chunk) {
  const std::int64_t within = (position - origin) % chunk;
  return position - (within < 0 ? within + chunk : within);
}

// --- Pages of a part with a table. Those of its hole have no entry. ---

inline std::int64_t hole_begin_of(const KvPart& part, std::int32_t seq) {
  return part.hole_pages == nullptr ? 0 : part.hole_begin[seq];
}
inline std::int64_t hole_pages_of(const KvPart& part, std::int32_t seq) {
  return part.hole_pages == nullptr ? 0 : part.hole_pages[seq];
}
inline std::int64_t first_held_of(const KvPart& part, std::int32_t seq) {
  return part.first_held == nullptr ? 0 : part.first_held[seq];
}

// Entries of the table that hold the sequence's rows.
inline std::int64_t num_entries(const KvPart& part, std::int32_t seq) {
  return (length_of(part, seq) + part.page_size - 1) / part.page_size - hole_pages_of(part, seq);
}

// Where a row of the part lies. Without a table sequence s is page s. REQUIRES: no row of a hole.
struct RowPlace {
  std::int64_t page, slot;
};
inline RowPlace place_of(const KvPart& part, std::int32_t seq, std::int64_t row) {
  std::int64_t page = seq;
  if (part.block_table != nullptr) {
    std::int64_t entry = row / part.page_size;
    if (entry >= hole_begin_of(part, seq)) entry -= hole_pages_of(part, seq);
    page = part.block_table[seq * part.block_table_stride + entry];
  }
  return {page, row % part.page_size};
}

// A row of the part's K or V.
inline const std::byte* row_of(const KvPart& part, const RowsView& rows, std::int32_t seq,
                               std::int64_t row, std::int64_t kv_head) {
  const RowPlace at = place_of(part, seq, row);
  return rows.row_at(at.page, kv_head, at.slot);
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_PROBLEM_H_
