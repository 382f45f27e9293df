// Where each byte of a layer's contiguous storage lies, and what it costs. Pure arithmetic, shared
// by the storage and by plan_memory, so that a plan is equal to the byte.
//
// One region of memory holds a whole layer: all rows of K, then all rows of V. A storage row is
// what is contiguous over tokens: one batch row and head in HND, one batch row in NHD.
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
//   reserved bytes of a layer = rows * (committed_row(length * k_token_bytes) +
//                                       committed_row(length * v_token_bytes))
//
// A fixed layer commits round_up(rows * capacity * token_bytes, page) for K and for V at once.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_GEOMETRY_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_GEOMETRY_H_

#include <cstdint>

#include "kvcache/types.h"

namespace kvcache::internal {

// What a layer stores: everything but its length.
struct LayerShape {
  std::int64_t batch = 0, heads = 0, k_dim = 0, v_dim = 0;
  DType k_dtype = DType::kF32, v_dtype = DType::kF32;
  Layout layout = Layout::kHND;

  friend constexpr bool operator==(const LayerShape&, const LayerShape&) = default;
};

// Steps in bytes from one batch row, head or token to the next.
struct ByteStrides {
  std::int64_t batch = 0, head = 0, token = 0;
};

struct ContiguousGeometry {
  LayerShape shape;
  bool growing = true;
  std::int64_t capacity = 0;       // tokens
  std::int64_t rows = 0;           // storage rows of K; as many of V
  std::int64_t k_token_bytes = 0;  // of one token in one storage row
  std::int64_t v_token_bytes = 0;
  std::int64_t k_row_stride = 0;  // bytes; equal to v_row_stride where rows grow
  std::int64_t v_row_stride = 0;
  std::int64_t v_offset = 0;  // of V's first row from the start of the region
  std::int64_t region_bytes = 0;

  ByteStrides k_strides() const noexcept;
  ByteStrides v_strides() const noexcept;

  // Bytes of `length` tokens.
  std::int64_t stored_bytes(std::int64_t length) const noexcept {
    return rows * length * (k_token_bytes + v_token_bytes);
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
