// How a row of one head is stored, and how rows lie in memory.
#ifndef KVCACHE_ROW_FORMAT_H_
#define KVCACHE_ROW_FORMAT_H_

#include <cstddef>
#include <cstdint>

#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// How a stored row of one head encodes its elements. kStrided, the plain form, is head_dim
// contiguous elements of `dtype`; it is the only form whose rows are handed out as tensors.
struct RowFormat {
  enum Kind : std::uint8_t { kStrided = 0 };

  Kind kind = kStrided;
  DType dtype = DType::kF32;

  // Bytes of a row of `elements` elements.
  constexpr std::int64_t bytes(std::int64_t elements) const noexcept {
    return elements * size_of(dtype);
  }

  friend constexpr bool operator==(const RowFormat&, const RowFormat&) = default;
};

constexpr RowFormat plain(DType dtype) noexcept { return {RowFormat::kStrided, dtype}; }

// Rows of one buffer of a layer (its keys, or its values), in pages. Plain data over memory that
// somebody else owns. The row of KV head `head` in slot `slot` of page `page` starts at
//
//   start(page) + offset + head * head_stride + slot * token_stride                       bytes
//
// where the pages lie in one array, start(page) = data + page * page_stride; or, in chunks of
// 2^chunk_shift pages each, start(page) = chunks[page >> chunk_shift] +
// (page mod 2^chunk_shift) * page_stride. A pool that grows adds chunks: no page ever moves.
struct RowsView {
  const void* data = nullptr;                // of page 0; unused where there are chunks
  const std::byte* const* chunks = nullptr;  // null: one array
  std::int32_t chunk_shift = 0;
  std::int64_t offset = 0;       // bytes
  std::int64_t page_stride = 0;  // bytes, as are the others
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
  RowFormat format;

  const std::byte* page_at(std::int64_t page) const noexcept {
    if (chunks == nullptr) return static_cast<const std::byte*>(data) + page * page_stride + offset;
    const std::int64_t in_chunk = page & ((std::int64_t{1} << chunk_shift) - 1);
    return chunks[page >> chunk_shift] + in_chunk * page_stride + offset;
  }
  const std::byte* row_at(std::int64_t page, std::int64_t head, std::int64_t slot) const noexcept {
    return page_at(page) + head * head_stride + slot * token_stride;
  }
};

// Plain rows in one array, as tensors say it: strides in elements of `dtype`.
constexpr RowsView strided_rows(const void* data, DType dtype, std::int64_t page_stride,
                                std::int64_t head_stride, std::int64_t token_stride) noexcept {
  RowsView rows;
  rows.data = data;
  rows.format = plain(dtype);
  rows.page_stride = rows.format.bytes(page_stride);
  rows.head_stride = rows.format.bytes(head_stride);
  rows.token_stride = rows.format.bytes(token_stride);
  return rows;
}

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_ROW_FORMAT_H_
