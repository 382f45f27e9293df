// What attention asks of a CPU: one cut of keys for a tile of query rows, over plain structs. The
// algorithm is written once (attention.inl) and compiled per instruction set.
//
// The pieces of the algorithm:
//   block  64 keys. Of many rows: in order, one step of the online softmax, or a fourth of one. Of
//          few rows: from all parts of a cut
//   cut    keys whose index in the sequence lies in a range of 512, or 2048, fixed once for all
//          (attention/units.h): a partial result (max, sum, acc) of its own, whoever computes it.
//          Cuts are merged in ascending order, so that results depend on no split
//   tile   the query rows of one KV head that share one pass over its keys
#ifndef KVCACHE_SRC_KERNELS_CPU_CUT_H_
#define KVCACHE_SRC_KERNELS_CPU_CUT_H_

#include <cstdint>

#include "kernels/backend.h"
#include "kvcache/row_format.h"
#include "kvcache/types.h"

namespace kvcache::internal {

inline constexpr std::int64_t kBlockKeys = 64;
inline constexpr std::int64_t kCutKeys = 512;
inline constexpr std::int64_t kLongCutKeys = 2048;  // the most

// Rows of scratch are padded with zeros to a multiple of this many floats: the widest vector.
inline constexpr std::int64_t kRowPadding = 16;

// One part of one sequence for one KV head. Row r lies in slot r % page_size of page
// block_table[r / page_size], but for the pages of a hole, which the table does not list.
struct KvRows {
  RowsView k, v;  // their offsets are those of this head
  std::int64_t page_size = 0;
  const std::int32_t* block_table = nullptr;    // null: all rows lie in page 0
  std::int64_t hole_begin = 0, hole_pages = 0;  // in pages; no row of them is asked for
  std::int64_t first_row = 0, num_rows = 0;     // of the part: those that may be prefetched
  std::int64_t first_index = 0;                 // of row 0 in the sequence
  const std::int32_t* positions = nullptr;      // of each row; null: first_index + row
};

// What decode asks for ahead: nothing, the first lines of runs of rows (of pages), or whole rows,
// into this level of cache.
enum class Prefetch : std::uint8_t { kNone, kRuns, kL1, kL2, kL3 };

// Query rows of one KV head: row r is query r / group, head r % group of the group. The queries are
// those of a sequence, or of several that see all rows of the cut alike (no window, chunk or mask).
struct QueryTile {
  std::int32_t num_queries = 0;
  std::int32_t group = 0;
  std::int32_t k_dim = 0;
  std::int32_t v_dim = 0;
  Path path = Path::kPrefill;
  bool exact = false;  // no rounding of queries and weights, as a backend's prefill may do
  Prefetch prefetch = Prefetch::kNone;
  const float* q = nullptr;  // [num_queries * group, k_dim up to kRowPadding] times the scale
  const std::int64_t* position = nullptr;  // [num_queries]

  float softcap = 0;                    // 0: none
  const float* alibi_slopes = nullptr;  // [group]; null: none
  std::int64_t window = 0;              // 0: none
  std::int64_t sink_tokens = 0;
  std::int64_t chunk = 0;         // 0: none
  std::int64_t chunk_origin = 0;  // the position that a chunk begins at

  // mask[head of the group][query][row of the sequence]; null: none. Strides count elements.
  const float* mask = nullptr;
  std::int64_t mask_head_stride = 0, mask_query_stride = 0, mask_key_stride = 0;
};

// Unfinished attention of a tile: out = acc / sum, lse = max + ln(sum). A row that saw no key has
// max -inf and sum 0.
struct PartialRows {
  float* max = nullptr;  // [rows]
  float* sum = nullptr;  // [rows]
  float* acc = nullptr;  // [rows, v_dim up to kRowPadding]
};

// A cut: keys first .. first + keys of the sequence, by their index.
struct Cut {
  std::int64_t first = 0;
  std::int64_t keys = kCutKeys;
};

// Rows begin .. end of a part, all of one cut.
struct CutTask {
  const QueryTile* tile = nullptr;
  const KvRows* rows = nullptr;
  std::int64_t begin = 0, end = 0;
  Cut cut;
  Cut next{0, 0};  // of the same part, read after this one if known: rows that may be prefetched
  // Query i sees rows before causal_end + i. What is below every row or above all: not causal.
  std::int64_t causal_end = 0;
  std::int64_t mask_key = 0;  // row of the sequence that row 0 of the part is
  PartialRows partial;        // written
  void* scratch = nullptr;    // scratch_bytes(), aligned to 64 bytes
};

struct AttentionKernels {
  // Scores, softmax and weighted values of one cut for a tile. A row of the result does not depend
  // on the other rows of the tile. Rows that no query sees are not read.
  void (*attend_cut)(const CutTask& task);

  // into = into merged with `next`, the partial of later keys. Both [rows, v_dim].
  void (*merge)(const PartialRows& into, const PartialRows& next, std::int64_t rows,
                std::int64_t v_dim);

  // Scratch of attend_cut for tiles of up to `rows` rows.
  std::int64_t (*scratch_bytes)(std::int64_t rows, std::int64_t k_dim, std::int64_t v_dim);
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_KERNELS_CPU_CUT_H_
