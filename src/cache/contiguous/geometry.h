// Where each byte of a layer's contiguous storage lies, and what it costs. Pure arithmetic, shared
// by the storage and by plan_memory, so that a plan is equal to the byte.
//
// One region of memory holds a whole layer: all rows of one buffer, then all of the next (K, then
// V). A storage row is what is contiguous over tokens: one batch row and head in HND, one batch row
// in NHD. A coded buffer is up to three strips of such rows: its codes, which lie as plain elements
// would, and behind the codes of all buffers its scales and its zeros, a storage row for each batch
// row, head and group of elements (RowsView). Zeros lie at half the strides of scales.
//
//   growing  | K row 0 ~~~~~~ | K row 1 ~~~~~~ | ... | V row 0 ~~~~~~ | ...   ~ reserved only
//   fixed    | K row 0 | K row 1 | ... pad | V row 0 | V row 1 | ... pad |    all committed
//
// Growing rows lie `row_stride` apart: their capacity in whole pages, one page more, so that no two
// rows share a page and each can be moved or returned alone, and a stagger. The stagger is a
// constant below one page: without it all rows would reach their next page at the same token, and
// the page faults of a step would come in one burst. It keeps strides equal modulo a page, so
// growth can move pages.
//
// What is committed for n bytes of a growing row is the most pages that n bytes can touch wherever
// a row starts (starts are multiples of 64 bytes):
//
//   committed_row(0) = 0        committed_row(n) = round_up(n + page - 64, page)
//   reserved bytes of a layer = sum over strips of rows * committed_row(length * token_bytes)
//
// A fixed layer commits round_up(rows * capacity * token_bytes, page) at once, for each buffer's
// elements or codes, and for its scales and zeros together.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_GEOMETRY_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_GEOMETRY_H_

#include <cstdint>
#include <span>

#include "kvcache/layer_spec.h"
#include "kvcache/types.h"

namespace kvcache::internal {

// What a layer stores: everything but its length.
struct LayerShape {
  std::int64_t batch = 0;
  LayerSpec spec;
  Layout layout = Layout::kHND;

  const BufferSpec& key() const noexcept { return spec.key(); }
  const BufferSpec& value() const noexcept { return spec.value(); }
  std::int64_t heads() const noexcept { return spec.key().heads; }

  friend constexpr bool operator==(const LayerShape&, const LayerShape&) = default;
};

// Steps in bytes from one batch row, head or token to the next.
struct ByteStrides {
  std::int64_t batch = 0, head = 0, token = 0;
};

// Storage rows that lie alike within the region of a layer, in bytes.
struct StripGeometry {
  std::int64_t token_bytes = 0;   // of one token in one storage row
  std::int64_t per_batch = 0;     // storage rows of a batch row
  std::int64_t row_stride = 0;    // from one of them to the next
  std::int64_t batch_stride = 0;  // from those of a batch row to those of the next
  std::int64_t offset = 0;        // of the first row from the start of the region
};

struct ContiguousGeometry {
  LayerShape shape;
  bool growing = true;
  std::int64_t capacity = 0;  // tokens
  std::int64_t rows = 0;      // storage rows of the elements or codes of each buffer
  // Strip b holds the elements or codes of buffer b; the others are scales and zeros.
  StripGeometry strips[3 * LayerSpec::kMaxBuffers];
  std::int32_t num_strips = 0;
  std::int32_t scales[LayerSpec::kMaxBuffers] = {-1, -1, -1};  // strips of a buffer; -1: none
  std::int32_t zeros[LayerSpec::kMaxBuffers] = {-1, -1, -1};
  std::int64_t region_bytes = 0;

  std::span<const StripGeometry> used() const noexcept {
    return {strips, static_cast<std::size_t>(num_strips)};
  }
  // Of a buffer's elements or codes.
  ByteStrides strides(std::int32_t buffer) const noexcept;

  std::int64_t rows_per_batch() const noexcept { return rows / shape.batch; }
  // Storage rows of elements or codes, which lie before those of scales and zeros.
  std::int64_t code_rows() const noexcept;

  // Calls fn(strip, i, offset) for the storage rows of every strip that belong to row 0 .. rows - 1
  // of the codes: row i of them begins at `offset` in the region. Their order depends on the spec
  // and layout alone.
  template <typename Fn>
  void for_each_row(std::int64_t row, Fn&& fn) const noexcept {
    for (std::int32_t s = 0; s < num_strips; ++s) {
      const std::int64_t each = strips[s].per_batch / rows_per_batch();
      for (std::int64_t i = 0; i < each; ++i) fn(s, i, row_offset(s, row, i));
    }
  }
  std::int64_t row_offset(std::int32_t s, std::int64_t row, std::int64_t i) const noexcept {
    const StripGeometry& strip = strips[s];
    const std::int64_t each = strip.per_batch / rows_per_batch();
    return strip.offset + row / rows_per_batch() * strip.batch_stride +
           (row % rows_per_batch() * each + i) * strip.row_stride;
  }

  // Bytes of one token in a storage row and all that belong to it; in one of the largest and of the
  // smallest strip.
  std::int64_t token_bytes() const noexcept;
  std::int64_t most_token_bytes() const noexcept;
  std::int64_t most_scale_bytes() const noexcept;  // of scales and zeros; 0: there are none
  std::int64_t least_token_bytes() const noexcept;

  // Bytes of `length` tokens.
  std::int64_t stored_bytes(std::int64_t length) const noexcept {
    return rows * length * token_bytes();
  }

  // Bytes held for the first `length` tokens: see above. Of a fixed layer, all of it.
  std::int64_t committed_bytes(std::int64_t length) const noexcept;

  // The most tokens, at most the capacity, that `committed_bytes(length)` has room for.
  std::int64_t covered_length(std::int64_t length) const noexcept;
};

// Committed bytes of one growing row that holds `bytes` of content.
std::int64_t committed_row(std::int64_t bytes) noexcept;

// Storage that can grow, with address space for `capacity` tokens; and storage of exactly
// `capacity` tokens. False if the bytes exceed 2^62. REQUIRES: all sizes >= 1.
bool growing_geometry(const LayerShape& shape, std::int64_t capacity,
                      ContiguousGeometry* out) noexcept;
bool fixed_geometry(const LayerShape& shape, std::int64_t capacity,
                    ContiguousGeometry* out) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_GEOMETRY_H_
