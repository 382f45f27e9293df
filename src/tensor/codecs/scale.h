// What scales and codes have in common.
#ifndef KVCACHE_SRC_TENSOR_CODECS_SCALE_H_
#define KVCACHE_SRC_TENSOR_CODECS_SCALE_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tensor/codecs/coded_row.h"
#include "tensor/half.h"

namespace kvcache::internal {

inline constexpr std::uint32_t kInfinityBits = 0x7f800000u;
inline constexpr std::uint16_t kHalfInfinity = 0x7c00u;

// The largest |x| of a row, as bits: those order as the values do, and a result of kInfinityBits or
// more says that an element is not finite.
inline std::uint32_t largest_magnitude(const float* row, std::int64_t count) noexcept {
  std::uint32_t most = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    most = std::max(most, std::bit_cast<std::uint32_t>(row[i]) & 0x7fffffffu);
  }
  return most;
}

// The least f16 that is not below `value` >= 0; kHalfInfinity where there is none.
inline std::uint16_t scale_above(float value) noexcept {
  const std::uint16_t nearest = f32_to_f16(value);
  return f16_to_f32(nearest) < value ? static_cast<std::uint16_t>(nearest + 1) : nearest;
}

// 1 / s, what elements are multiplied by; rows of scale 0 are zeros. Finite: the least f16 is
// 2^-24.
inline float inverse_of_scale(float s) noexcept { return s == 0 ? 1.0f : 1.0f / s; }

// The nearest whole number, ties to even.
inline float round_even(float x) noexcept { return std::nearbyint(x); }

inline void put_scale(const CodedRow& to, std::int64_t group, std::uint16_t scale) noexcept {
  std::memcpy(to.scales + group * to.scale_stride, &scale, sizeof(scale));
}
inline float scale_of(const ConstCodedRow& from, std::int64_t group) noexcept {
  std::uint16_t scale = 0;
  std::memcpy(&scale, from.scales + group * from.scale_stride, sizeof(scale));
  return f16_to_f32(scale);
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_SCALE_H_
