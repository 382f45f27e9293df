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

// Rows, strips and bytes per token. False on overflow.
bool start_geometry(const LayerShape& shape, std::int64_t capacity, bool growing,
                    ContiguousGeometry* out) noexcept {
  *out = {};
  out->shape = shape;
  out->growing = growing;
  out->capacity = capacity;
  const bool by_head = shape.layout == Layout::kHND;
  for (std::int32_t b = 0; b < shape.spec.num_buffers; ++b) {
    const BufferSpec& spec = shape.spec.buffers[b];
    StripGeometry& strip = out->strips[out->num_strips++];
    strip.per_batch = by_head ? spec.heads : 1;
    const bool is_coded = spec.format.is_coded();
    const std::int64_t elements = is_coded ? spec.format.code_bytes(spec.dim) : spec.dim;
    if (!checked_product(
            {by_head ? 1 : spec.heads, elements, is_coded ? 1 : size_of(spec.format.dtype)},
            &strip.token_bytes)) {
      return false;
    }
  }
  for (std::int32_t b = 0; b < shape.spec.num_buffers; ++b) {
    const BufferSpec& spec = shape.spec.buffers[b];
    const std::int64_t groups = spec.format.num_scales(spec.dim);
    if (groups == 0) continue;
    StripGeometry strip;
    strip.token_bytes = 2;
    if (!checked_mul(spec.heads, groups, &strip.per_batch)) return false;
    out->scales[b] = out->num_strips;
    out->strips[out->num_strips++] = strip;
    if (!spec.format.has_zeros()) continue;
    strip.token_bytes = 1;
    out->zeros[b] = out->num_strips;
    out->strips[out->num_strips++] = strip;
  }
  return checked_mul(shape.batch, by_head ? shape.heads() : 1, &out->rows);
}

// Places a strip's rows, or those of scales and zeros together, behind what the region holds: those
// of a batch row are `stride` apart, where zeros have half of what scales have. False on overflow.
bool place(ContiguousGeometry* out, StripGeometry* strip, StripGeometry* zeros,
           std::int64_t stride) noexcept {
  std::int64_t batch = 0, bytes = 0;
  if (!checked_mul(strip->per_batch, stride, &batch) ||
      (zeros != nullptr && !checked_add(batch, batch / 2, &batch)) ||
      !checked_mul(batch, out->shape.batch, &bytes)) {
    return false;
  }
  strip->row_stride = stride;
  strip->batch_stride = batch;
  strip->offset = out->region_bytes;
  if (zeros != nullptr) {
    zeros->row_stride = stride / 2;
    zeros->batch_stride = batch;
    zeros->offset = strip->offset + strip->per_batch * stride;
  }
  return checked_add(out->region_bytes, bytes, &out->region_bytes);
}

// Places all strips, `stride_of(strip)` bytes between the rows of one; what follows a buffer's
// codes, or its scales and zeros, begins at a multiple of `unit`. False on overflow.
template <typename StrideOf>
bool place_all(ContiguousGeometry* out, StrideOf&& stride_of, std::int64_t unit) noexcept {
  const auto strip_at = [out](std::int32_t s) { return s < 0 ? nullptr : &out->strips[s]; };
  const auto place_at = [&](StripGeometry* strip, StripGeometry* zeros) {
    std::int64_t stride = 0;
    if (strip == nullptr) return true;
    if (!stride_of(*strip, zeros != nullptr, &stride) || !place(out, strip, zeros, stride) ||
        out->region_bytes > kMaxBytes - unit) {
      return false;
    }
    out->region_bytes = round_up(out->region_bytes, unit);
    return true;
  };
  for (std::int32_t b = 0; b < out->shape.spec.num_buffers; ++b) {
    if (!place_at(&out->strips[b], nullptr)) return false;
  }
  for (std::int32_t b = 0; b < out->shape.spec.num_buffers; ++b) {
    if (!place_at(strip_at(out->scales[b]), strip_at(out->zeros[b]))) return false;
  }
  return out->region_bytes <= kMaxBytes;
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
  const StripGeometry& strip = strips[buffer];
  const bool by_head = shape.layout == Layout::kHND;
  return {strip.batch_stride, by_head ? strip.row_stride : spec.format.code_bytes(spec.dim),
          strip.token_bytes};
}

std::int64_t ContiguousGeometry::token_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const StripGeometry& strip : used()) {
    bytes += strip.per_batch / rows_per_batch() * strip.token_bytes;
  }
  return bytes;
}

std::int64_t ContiguousGeometry::most_token_bytes() const noexcept {
  std::int64_t most = 0;
  for (const StripGeometry& strip : used()) most = std::max(most, strip.token_bytes);
  return most;
}

std::int64_t ContiguousGeometry::most_scale_bytes() const noexcept {
  std::int64_t most = 0;
  for (const StripGeometry& strip :
       used().subspan(static_cast<std::size_t>(shape.spec.num_buffers))) {
    most = std::max(most, strip.token_bytes);
  }
  return most;
}

std::int64_t ContiguousGeometry::code_rows() const noexcept {
  std::int64_t count = 0;
  for (const StripGeometry& strip :
       used().first(static_cast<std::size_t>(shape.spec.num_buffers))) {
    count += shape.batch * strip.per_batch;
  }
  return count;
}

std::int64_t ContiguousGeometry::least_token_bytes() const noexcept {
  std::int64_t least = strips[0].token_bytes;
  for (const StripGeometry& strip : used()) least = std::min(least, strip.token_bytes);
  return least;
}

std::int64_t committed_row(std::int64_t bytes) noexcept {
  return bytes == 0 ? 0 : round_up(bytes + page_bytes() - kRowAlignment, page_bytes());
}

std::int64_t ContiguousGeometry::committed_bytes(std::int64_t length) const noexcept {
  if (!growing) return region_bytes;
  std::int64_t bytes = 0;
  for (const StripGeometry& strip : used()) {
    bytes += shape.batch * strip.per_batch * committed_row(length * strip.token_bytes);
  }
  return bytes;
}

std::int64_t ContiguousGeometry::covered_length(std::int64_t length) const noexcept {
  if (!growing) return capacity;
  if (length == 0) return 0;
  std::int64_t covered = capacity;
  for (const StripGeometry& strip : used()) {
    const std::int64_t bytes = committed_row(length * strip.token_bytes);
    covered = std::min(covered, (bytes - page_bytes() + kRowAlignment) / strip.token_bytes);
  }
  return covered;
}

bool growing_geometry(const LayerShape& shape, std::int64_t capacity,
                      ContiguousGeometry* out) noexcept {
  if (!start_geometry(shape, capacity, true, out)) return false;
  std::int64_t stride = 0;
  if (!checked_mul(capacity, out->most_token_bytes(), &stride) || !round_to_pages(&stride) ||
      !checked_add(stride, page_bytes() + stagger_bytes(), &stride)) {
    return false;
  }
  // Everything lies at multiples of one stride, so that it grows as rows of one kind.
  const auto stride_of = [stride](const StripGeometry&, bool zeros, std::int64_t* apart) {
    return checked_mul(stride, zeros ? 2 : 1, apart);
  };
  return place_all(out, stride_of, 1);
}

bool fixed_geometry(const LayerShape& shape, std::int64_t capacity,
                    ContiguousGeometry* out) noexcept {
  if (!start_geometry(shape, capacity, false, out)) return false;
  const auto stride_of = [capacity](const StripGeometry& strip, bool, std::int64_t* apart) {
    return checked_mul(capacity, strip.token_bytes, apart);
  };
  return place_all(out, stride_of, page_bytes());
}

}  // namespace kvcache::internal
