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
  for (std::int32_t b = 0; b < shape.spec.num_buffers; ++b) {
    const BufferSpec& spec = shape.spec.buffers[b];
    if (!checked_product({by_head ? 1 : spec.heads, spec.dim, size_of(spec.format.dtype)},
                         &out->buffers[b].token_bytes)) {
      return false;
    }
  }
  return checked_mul(shape.batch, by_head ? shape.heads() : 1, &out->rows);
}

// *value = round_up(*value, a page). False past kMaxBytes.
bool round_to_pages(std::int64_t* value) noexcept {
  if (*value > kMaxBytes - page_bytes()) return false;
  *value = round_up(*value, page_bytes());
  return true;
}

}  // namespace

ByteStrides ContiguousGeometry::strides(std::int32_t buffer) const noexcept {
  const BufferSpec& spec = shape.spec.buffers[buffer];
  const auto& [token_bytes, row_stride, offset] = buffers[buffer];
  if (shape.layout == Layout::kHND) return {spec.heads * row_stride, row_stride, token_bytes};
  return {row_stride, spec.format.bytes(spec.dim), token_bytes};
}

std::int64_t ContiguousGeometry::token_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const BufferGeometry& buffer : used()) bytes += buffer.token_bytes;
  return bytes;
}

std::int64_t ContiguousGeometry::most_token_bytes() const noexcept {
  std::int64_t most = 0;
  for (const BufferGeometry& buffer : used()) most = std::max(most, buffer.token_bytes);
  return most;
}

std::int64_t ContiguousGeometry::least_token_bytes() const noexcept {
  std::int64_t least = buffers[0].token_bytes;
  for (const BufferGeometry& buffer : used()) least = std::min(least, buffer.token_bytes);
  return least;
}

std::int64_t committed_row(std::int64_t bytes) noexcept {
  return bytes == 0 ? 0 : round_up(bytes + page_bytes() - kRowAlignment, page_bytes());
}

std::int64_t ContiguousGeometry::committed_bytes(std::int64_t length) const noexcept {
  if (!growing) return region_bytes;
  std::int64_t bytes = 0;
  for (const BufferGeometry& buffer : used()) bytes += committed_row(length * buffer.token_bytes);
  return rows * bytes;
}

std::int64_t ContiguousGeometry::covered_length(std::int64_t length) const noexcept {
  if (!growing) return capacity;
  if (length == 0) return 0;
  std::int64_t covered = capacity;
  for (const auto& [token_bytes, row_stride, offset] : used()) {
    covered =
        std::min(covered, (committed_row(length * token_bytes) - page_bytes() + kRowAlignment) /
                              token_bytes);
  }
  return covered;
}

bool growing_geometry(const LayerShape& shape, std::int64_t capacity,
                      ContiguousGeometry* out) noexcept {
  if (!start_geometry(shape, capacity, true, out)) return false;
  std::int64_t stride = 0;
  std::int64_t bytes = 0;
  if (!checked_mul(capacity, out->most_token_bytes(), &stride) || !round_to_pages(&stride) ||
      !checked_add(stride, page_bytes() + stagger_bytes(), &stride) ||
      !checked_mul(out->rows, stride, &bytes)) {
    return false;
  }
  for (std::int32_t b = 0; b < shape.spec.num_buffers; ++b) {
    out->buffers[b].row_stride = stride;
    out->buffers[b].offset = out->region_bytes;
    if (!checked_add(out->region_bytes, bytes, &out->region_bytes)) return false;
  }
  return out->region_bytes <= kMaxBytes;
}

bool fixed_geometry(const LayerShape& shape, std::int64_t capacity,
                    ContiguousGeometry* out) noexcept {
  if (!start_geometry(shape, capacity, false, out)) return false;
  for (std::int32_t b = 0; b < shape.spec.num_buffers; ++b) {
    BufferGeometry& buffer = out->buffers[b];
    std::int64_t bytes = 0;
    buffer.offset = out->region_bytes;
    if (!checked_mul(capacity, buffer.token_bytes, &buffer.row_stride) ||
        !checked_mul(out->rows, buffer.row_stride, &bytes) || !round_to_pages(&bytes) ||
        !checked_add(out->region_bytes, bytes, &out->region_bytes)) {
      return false;
    }
  }
  return out->region_bytes <= kMaxBytes;
}

}  // namespace kvcache::internal
