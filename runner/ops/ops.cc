#include "runner/ops/ops.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "runner/ops/product.h"

namespace kvcache::runner {

void rms_norm(const float* x, std::int64_t rows, std::int64_t width, const float* weight,
              float epsilon, float* y) {
  for (std::int64_t r = 0; r < rows; ++r, x += width, y += width) {
    double squares = 0;
    for (std::int64_t i = 0; i < width; ++i) squares += static_cast<double>(x[i]) * x[i];
    const float scale =
        static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(width) + epsilon));
    for (std::int64_t i = 0; i < width; ++i) y[i] = weight[i] * (x[i] * scale);
  }
}

void silu_multiply(float* gate, const float* up, std::int64_t count) {
  products().silu_multiply(gate, up, count);
}

void add_in_place(float* x, const float* y, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) x[i] += y[i];
}

void widen(const void* source, DType dtype, std::int64_t count, float* destination) {
  const auto* halves = static_cast<const std::uint16_t*>(source);
  switch (dtype) {
    case DType::kBF16:
      for (std::int64_t i = 0; i < count; ++i) {
        destination[i] = std::bit_cast<float>(static_cast<std::uint32_t>(halves[i]) << 16);
      }
      break;
    case DType::kF16:
      for (std::int64_t i = 0; i < count; ++i) destination[i] = to_float(Float16{halves[i]});
      break;
    default:
      std::memcpy(destination, source, static_cast<std::size_t>(count) * sizeof(float));
  }
}

void narrow(const float* source, DType dtype, std::int64_t count, void* destination) {
  auto* halves = static_cast<std::uint16_t*>(destination);
  switch (dtype) {
    case DType::kBF16:
      for (std::int64_t i = 0; i < count; ++i) halves[i] = to_bfloat16(source[i]).bits;
      break;
    case DType::kF16:
      for (std::int64_t i = 0; i < count; ++i) halves[i] = to_float16(source[i]).bits;
      break;
    default:
      std::memcpy(destination, source, static_cast<std::size_t>(count) * sizeof(float));
  }
}

void rope_angles(std::span<const std::int64_t> positions,
                 std::span<const float> inverse_frequencies, std::vector<float>& cosines,
                 std::vector<float>& sines) {
  cosines.resize(positions.size() * inverse_frequencies.size());
  sines.resize(cosines.size());
  std::size_t at = 0;
  for (const std::int64_t position : positions) {
    for (const float frequency : inverse_frequencies) {
      // The angle is a float32 product, as in the checkpoints' own code, so that long positions
      // round the same way.
      const float angle = static_cast<float>(position) * frequency;
      cosines[at] = std::cos(angle);
      sines[at] = std::sin(angle);
      ++at;
    }
  }
}

void rope_rotate(float* x, std::int64_t heads, std::int64_t head_dim, const float* cosines,
                 const float* sines) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t h = 0; h < heads; ++h, x += head_dim) {
    for (std::int64_t i = 0; i < half; ++i) {
      const float low = x[i];
      const float high = x[i + half];
      x[i] = low * cosines[i] - high * sines[i];
      x[i + half] = high * cosines[i] + low * sines[i];
    }
  }
}

}  // namespace kvcache::runner
