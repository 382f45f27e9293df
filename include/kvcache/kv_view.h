// KvView: all that attention knows of a cache. Plain data over rows that somebody else owns.
#ifndef KVCACHE_KV_VIEW_H_
#define KVCACHE_KV_VIEW_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "kvcache/row_format.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// Consecutive keys and values of every sequence of a view, stored in pages. Row `r` of sequence
// `s` lies in slot r % page_size of page block_table[s][r / page_size]; RowsView says where that
// is. A contiguous cache is a part with one page per sequence: page_size >= every length, no table.
// V may alias K's storage.
//
// A part may have a hole: whole pages of rows that are gone, which its table does not list. Rows,
// lengths and masks count on as if they were there, so that a result has the bits it would have
// over all rows under the same window. A call that would see a row that is gone is refused.
struct KvPart {
  RowsView k;
  RowsView v;

  std::int32_t page_size = 0;                 // tokens
  const std::int32_t* block_table = nullptr;  // [num_seqs, block_table_stride] page ids, -1 unused;
                                              // null: sequence s is page s, and has no other
  std::int64_t block_table_stride = 0;

  const std::int32_t* lengths = nullptr;         // [num_seqs] rows of this part
  const std::int32_t* first_position = nullptr;  // [num_seqs] position of row 0; null: all 0
  const std::int32_t* first_visible = nullptr;   // [num_seqs] rows before it do not exist; null: 0
  const std::int32_t* positions = nullptr;       // [num_seqs, positions_stride] position of each
  std::int64_t positions_stride = 0;             // row where not first_position + row; may be null

  // Pages hole_begin .. hole_begin + hole_pages of a sequence have no entry in its table: those
  // behind them follow those before. [num_seqs] each; null: no holes.
  const std::int32_t* hole_begin = nullptr;
  const std::int32_t* hole_pages = nullptr;

  // What was dropped: rows held_sink_tokens .. first_held, whether or not their pages are still
  // there. held_window and held_chunk: the widest window or chunk that a call may have over the
  // part, 0: any. A wider one, or none, is kInvalidArgument at plan().
  const std::int32_t* first_held = nullptr;  // [num_seqs]; null: all 0
  std::int32_t held_window = 0;
  std::int32_t held_sink_tokens = 0;
  std::int32_t held_chunk = 0;
};

// One layer of a list of sequences: parts in key order. Attention over a view is the ordered merge
// of attention over its parts. Valid until its owner says (see OwnedKvView and the caches).
struct KvView {
  Device device;
  std::int32_t num_seqs = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t k_head_dim = 0;
  std::int32_t v_head_dim = 0;
  std::int32_t num_parts = 0;
  const KvPart* parts = nullptr;  // [num_parts]
};

// Rows of sequence `seq` over all parts, hidden ones included.
inline std::int64_t total_length(const KvView& view, std::int32_t seq) noexcept {
  std::int64_t rows = 0;
  for (std::int32_t p = 0; p < view.num_parts; ++p) rows += view.parts[p].lengths[seq];
  return rows;
}

// A KvView together with its tables. Move-only; what a cache's view() returns. The tables live as
// long as this object, the rows as long as the cache promises.
class OwnedKvView {
 public:
  OwnedKvView(const KvView& view, std::shared_ptr<const void> tables) noexcept
      : view_(view), tables_(std::move(tables)) {}
  OwnedKvView(OwnedKvView&&) noexcept = default;
  OwnedKvView& operator=(OwnedKvView&&) noexcept = default;

  const KvView& get() const noexcept { return view_; }
  operator const KvView&() const noexcept { return view_; }  // NOLINT: implicit

 private:
  KvView view_;
  std::shared_ptr<const void> tables_;
};

// Rows of anybody's, [B, H, S, D] in the axis order of `layout`, as a part: pointers, formats and
// strides, one page of S tokens a sequence. Lengths and positions are the caller's to set.
// REQUIRES: floating tensors of rank 4 whose rows are dense.
KVC_API KvPart dense_part(const KeyValueView& rows, Layout layout) noexcept;

// The same as a view of B sequences of S rows each; row 0 is at `first_position`. The rows must
// outlive it. Errors: kInvalidArgument for tensors that are not floating, not of rank 4, not dense
// in their last axis, or that differ in more than head size; kUnavailable for another device;
// kOutOfRange for sizes and positions past int32; kOutOfMemory.
KVC_API Result<OwnedKvView> dense_view(const KeyValueView& rows, Layout layout,
                                       std::int64_t first_position = 0);

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_KV_VIEW_H_
