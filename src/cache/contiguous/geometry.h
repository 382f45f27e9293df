// Where each byte of a layer's contiguous storage lies, and what it costs. Pure arithmetic, shared
// by the storage and by plan_memory, so that a plan is equal to the byte.
//
// One region of memory holds a whole layer: all rows of one buffer, then all of the next (K, then
// V). A storage row is what is contiguous over tokens: one batch row and head in HND, one batch row
// in NHD.
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
//   reserved bytes of a layer = rows * sum over buffers of committed_row(length * token_bytes)
//
// A fixed layer commits round_up(rows * capacity * token_bytes, page) for each buffer at once.
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

// One buffer of a layer within its region, in bytes.
struct BufferGeometry {
  std::int64_t token_bytes = 0;  // of one token in one storage row
  std::int64_t row_stride = 0;   // the same for every buffer where rows grow
  std::int64_t offset = 0;       // of the first row from the start of the region
};

struct ContiguousGeometry {
  LayerShape shape;
  bool growing = true;
  std::int64_t capacity = 0;  // tokens
  std::int64_t rows = 0;      // storage rows of each buffer
  BufferGeometry buffers[LayerSpec::kMaxBuffers];
  std::int64_t region_bytes = 0;

  std::span<const BufferGeometry> used() const noexcept {
    return {buffers, static_cast<std::size_t>(shape.spec.num_buffers)};
  }
  ByteStrides strides(std::int32_t buffer) const noexcept;

  // Bytes of one token in one storage row of every buffer; of the largest and smallest buffer.
  std::int64_t token_bytes() const noexcept;
  std::int64_t most_token_bytes() const noexcept;
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
