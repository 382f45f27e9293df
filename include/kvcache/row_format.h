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
// contiguous elements of `dtype`; it is the only form whose rows are handed out as tensors. The
// others are *coded*: a row is its codes, one after the other, and scales (f16) that lie elsewhere
// or, in ggml's blocks, among the codes. src/tensor/codecs/ has the formulas.
struct RowFormat {
  enum Kind : std::uint8_t {
    kStrided = 0,
    kInt8 = 1,     // x = s q, q = -127 .. 127
    kFp8E4M3 = 2,  // x = s q, q in OCP E4M3, whose largest is 448
    kInt4 = 3,     // x = s (q - z), q and z = 0 .. 15, by groups of 32
    kLm4 = 4,      // x = s level[q]: 16 levels for a normal distribution; always rotated
    kQ8_0 = 5,     // ggml's blocks of 32, byte for byte
    kQ4_0 = 6,
  };
  static constexpr std::int64_t kGroup = 32;     // elements of a group of int4 and of ggml's blocks
  static constexpr std::int64_t kStretch = 128;  // of a scale in rows of more than kOneScale
  static constexpr std::int64_t kOneScale = 256;

  Kind kind = kStrided;
  DType dtype = DType::kF32;  // of coded rows: of the decoded copies that caches hand out
  bool rotate = false;  // rows are stored turned by a Hadamard matrix (tensor/codecs/rotate.h)

  constexpr bool is_coded() const noexcept { return kind != kStrided; }

  // Elements that share a scale beside the codes, and how many scales a row has; 0: none.
  constexpr std::int64_t scale_elements(std::int64_t elements) const noexcept {
    if (kind == kStrided || kind == kQ8_0 || kind == kQ4_0) return 0;
    if (kind == kInt4) return kGroup;
    return elements > kOneScale ? kStretch : elements;
  }
  constexpr std::int64_t num_scales(std::int64_t elements) const noexcept {
    const std::int64_t shared = scale_elements(elements);
    return shared == 0 ? 0 : (elements + shared - 1) / shared;
  }
  constexpr bool has_zeros() const noexcept { return kind == kInt4; }

  // Bytes of a row of `elements` elements: of its codes, of its scales and zeros, of both.
  constexpr std::int64_t code_bytes(std::int64_t elements) const noexcept {
    switch (kind) {
      case kInt8:
      case kFp8E4M3:
        return elements;
      case kInt4:
      case kLm4:
        return elements / 2;
      case kQ8_0:
        return elements / kGroup * 34;
      case kQ4_0:
        return elements / kGroup * 18;
      default:
        return elements * size_of(dtype);
    }
  }
  constexpr std::int64_t scale_bytes(std::int64_t elements) const noexcept {
    return num_scales(elements) * (has_zeros() ? 3 : 2);
  }
  constexpr std::int64_t bytes(std::int64_t elements) const noexcept {
    return code_bytes(elements) + scale_bytes(elements);
  }

  friend constexpr bool operator==(const RowFormat&, const RowFormat&) = default;
};

// "plain", "int8", "fp8_e4m3", "int4", "lm4", "q8_0", "q4_0"; "?" for a value that is none of them.
KVC_API const char* name_of(RowFormat::Kind kind) noexcept;

constexpr RowFormat plain(DType dtype) noexcept { return {RowFormat::kStrided, dtype, false}; }

// A coded form: rotated on request, lm4 always. Without a word of it int4 is rotated too, and the
// others are not.
constexpr RowFormat coded(RowFormat::Kind kind, bool rotate, DType dtype = DType::kF32) noexcept {
  return {kind, dtype, rotate || kind == RowFormat::kLm4};
}
constexpr RowFormat coded(RowFormat::Kind kind) noexcept {
  return coded(kind, kind == RowFormat::kInt4);
}

// Rows of one buffer of a layer (its keys, or its values), in pages. Plain data over memory that
// somebody else owns. The codes (or plain elements) of KV head `head` in slot `slot` of page `page`
// start at
//
//   start(page) + offset + head * head_stride + slot * token_stride                       bytes
//
// where the pages lie in one array, start(page) = data + page * page_stride; or, in chunks of
// 2^chunk_shift pages each, start(page) = chunks[page >> chunk_shift] +
// (page mod 2^chunk_shift) * page_stride. A pool that grows adds chunks: no page ever moves.
//
// Scales lie in pages of their own, at scale_offset and scale_page_stride in place of offset and
// page_stride. Those of a head and of the same group of elements follow one another in the order of
// slots, so that a kernel loads those of many keys at once: group `g` of a row has its scale at
// scales_at(page, head) + g * scale_group_stride + slot * 2. Zeros (int4) lie likewise, a byte for
// each scale and so at half its strides, from zero_offset on. No alignment is promised.
struct RowsView {
  const void* data = nullptr;                // of page 0; unused where there are chunks
  const std::byte* const* chunks = nullptr;  // null: one array
  std::int32_t chunk_shift = 0;
  std::int64_t offset = 0;       // bytes
  std::int64_t page_stride = 0;  // bytes, as are the others
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
  RowFormat format;

  // Of coded rows whose scales are beside the codes.
  std::int64_t scale_offset = 0, zero_offset = 0;
  std::int64_t scale_page_stride = 0;   // of zeros too
  std::int64_t scale_head_stride = 0;   // even; of zeros: half of it
  std::int64_t scale_group_stride = 0;  // even; of zeros: half of it

  const std::byte* page_at(std::int64_t page) const noexcept {
    return start(page, page_stride) + offset;
  }
  const std::byte* row_at(std::int64_t page, std::int64_t head, std::int64_t slot) const noexcept {
    return page_at(page) + head * head_stride + slot * token_stride;
  }
  const std::byte* scales_at(std::int64_t page, std::int64_t head) const noexcept {
    return start(page, scale_page_stride) + scale_offset + head * scale_head_stride;
  }
  const std::byte* zeros_at(std::int64_t page, std::int64_t head) const noexcept {
    return start(page, scale_page_stride) + zero_offset + head * (scale_head_stride / 2);
  }

  const std::byte* start(std::int64_t page, std::int64_t stride) const noexcept {
    if (chunks == nullptr) return static_cast<const std::byte*>(data) + page * stride;
    const std::int64_t in_chunk = page & ((std::int64_t{1} << chunk_shift) - 1);
    return chunks[page >> chunk_shift] + in_chunk * stride;
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
