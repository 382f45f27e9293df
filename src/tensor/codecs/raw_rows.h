// Rows as they are stored, byte for byte, between a view and dense arrays.
#ifndef KVCACHE_SRC_TENSOR_CODECS_RAW_ROWS_H_
#define KVCACHE_SRC_TENSOR_CODECS_RAW_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "kvcache/kv_view.h"
#include "kvcache/layer_spec.h"

namespace kvcache::internal {

// Rows of one buffer: codes (or plain elements) [heads, rows, code_bytes], scales [heads, groups,
// rows] of 2 bytes and zeros likewise of 1, where the form has them.
struct RawRows {
  std::byte* codes = nullptr;
  std::byte* scales = nullptr;
  std::byte* zeros = nullptr;
  std::int64_t rows = 0;
};

// Copies `count` rows of all heads, from `slot` of a page of the view on: to rows `at` .. of `raw`,
// or (kIntoView) from there. REQUIRES: heads and elements of `spec`, the form of the view; memory
// that may be written.
template <bool kIntoView>
void move_raw(const RowsView& view, const BufferSpec& spec, std::int64_t page, std::int64_t slot,
              std::int64_t count, const RawRows& raw, std::int64_t at) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_RAW_ROWS_H_
