#include "cache/contiguous/geometry.h"

#include <algorithm>

#include "base/checked_math.h"
#include "base/memory_kinds.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kRowAlignment = 64;  // row starts are multiples of it

// An odd number of 64ths of a page, near its golden section: the phases of consecutive rows are
// spread evenly, and none repeats within 64 rows.
std::int64_t stagger_bytes() noexcept { return page_bytes() / 64 * 39; }

// Rows and bytes per token. False on overflow.
bool start_geometry(const LayerShape& shape, std::int64_t capacity, bool growing,
                    ContiguousGeometry* out) noexcept {
  *out = {};
  out->shape = shape;
  out->growing = growing;
  out->capacity = capacity;
  const bool by_head = shape.layout == Layout::kHND;
  const std::int64_t heads_in_row = by_head ? 1 : shape.heads;
  return checked_mul(shape.batch, by_head ? shape.heads : 1, &out->rows) &&
         checked_product({heads_in_row, shape.k_dim, size_of(shape.k_dtype)},
                         &out->k_token_bytes) &&
         checked_product({heads_in_row, shape.v_dim, size_of(shape.v_dtype)}, &out->v_token_bytes);
}

// *value = round_up(*value, a page). False past kMaxBytes.
bool round_to_pages(std::int64_t* value) noexcept {
  if (*value > kMaxBytes - page_bytes()) return false;
  *value = round_up(*value, page_bytes());
  return true;
}

ByteStrides strides_of(const LayerShape& shape, std::int64_t dim, DType dtype,
                       std::int64_t row_stride, std::int64_t token_bytes) noexcept {
  if (shape.layout == Layout::kHND) return {shape.heads * row_stride, row_stride, token_bytes};
  return {row_stride, dim * size_of(dtype), token_bytes};
}

}  // namespace

ByteStrides ContiguousGeometry::k_strides() const noexcept {
  return strides_of(shape, shape.k_dim, shape.k_dtype, k_row_stride, k_token_bytes);
}

ByteStrides ContiguousGeometry::v_strides() const noexcept {
  return strides_of(shape, shape.v_dim, shape.v_dtype, v_row_stride, v_token_bytes);
}

std::int64_t committed_row(std::int64_t bytes) noexcept {
  return bytes == 0 ? 0 : round_up(bytes + page_bytes() - kRowAlignment, page_bytes());
}

std::int64_t ContiguousGeometry::committed_bytes(std::int64_t length) const noexcept {
  if (!growing) return region_bytes;
  return rows * (committed_row(length * k_token_bytes) + committed_row(length * v_token_bytes));
}

std::int64_t ContiguousGeometry::covered_length(std::int64_t length) const noexcept {
  if (!growing) return capacity;
  if (length == 0) return 0;
  const auto covered = [length](std::int64_t token_bytes) {
    return (committed_row(length * token_bytes) - page_bytes() + kRowAlignment) / token_bytes;
  };
  return std::min({capacity, covered(k_token_bytes), covered(v_token_bytes)});
}

bool growing_geometry(const LayerShape& shape, std::int64_t capacity,
                      ContiguousGeometry* out) noexcept {
  if (!start_geometry(shape, capacity, true, out)) return false;
  std::int64_t stride = 0;
  if (!checked_mul(capacity, std::max(out->k_token_bytes, out->v_token_bytes), &stride) ||
      !round_to_pages(&stride) || !checked_add(stride, page_bytes() + stagger_bytes(), &stride) ||
      !checked_mul(out->rows, stride, &out->v_offset) ||
      !checked_add(out->v_offset, out->v_offset, &out->region_bytes)) {
    return false;
  }
  out->k_row_stride = out->v_row_stride = stride;
  return out->region_bytes <= kMaxBytes;
}

bool fixed_geometry(const LayerShape& shape, std::int64_t capacity,
                    ContiguousGeometry* out) noexcept {
  if (!start_geometry(shape, capacity, false, out)) return false;
  std::int64_t v_bytes = 0;
  if (!checked_mul(capacity, out->k_token_bytes, &out->k_row_stride) ||
      !checked_mul(capacity, out->v_token_bytes, &out->v_row_stride) ||
      !checked_mul(out->rows, out->k_row_stride, &out->v_offset) ||
      !checked_mul(out->rows, out->v_row_stride, &v_bytes) || !round_to_pages(&out->v_offset) ||
      !round_to_pages(&v_bytes) || !checked_add(out->v_offset, v_bytes, &out->region_bytes)) {
    return false;
  }
  return out->region_bytes <= kMaxBytes;
}

}  // namespace kvcache::internal
