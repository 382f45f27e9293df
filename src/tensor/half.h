// Scalar conversions between float and the two 16-bit types: the definition that every vector
// version is tested against.
//
// The bit tricks have no branches that matter, so loops over them vectorise (after Fabian Giesen,
// "half <-> float conversions", https://gist.github.com/rygorous/2156668, public domain).
#ifndef KVCACHE_SRC_TENSOR_HALF_H_
#define KVCACHE_SRC_TENSOR_HALF_H_

#include <bit>
#include <cstdint>

namespace kvcache::internal {

// Exact; a signalling NaN becomes quiet and keeps its payload, as vcvtph2ps does.
inline float f16_to_f32(std::uint16_t half) noexcept {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = magnitude & 0x0f800000u;
  const std::uint32_t normal = magnitude + (112u << 23);
  // Infinity and NaN: the exponent becomes 255; NaN is made quiet.
  const std::uint32_t special =
      (magnitude + (224u << 23)) | (magnitude > 0x0f800000u ? 0x00400000u : 0u);
  // Denormal: 2^-14 * (1 + m) - 2^-14 lets the float unit normalise it.
  const float denormal =
      std::bit_cast<float>(magnitude + (113u << 23)) - std::bit_cast<float>(113u << 23);
  const std::uint32_t bits = exponent == 0             ? std::bit_cast<std::uint32_t>(denormal)
                             : exponent == 0x0f800000u ? special
                                                       : normal;
  return std::bit_cast<float>(bits | sign);
}

// Round to nearest, ties to even; denormals kept, overflow to infinity, NaN quiet with the upper
// payload bits kept, as vcvtps2ph does.
inline std::uint16_t f32_to_f16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  // Normal: rebias the exponent and round the 13 bits that go; a carry into the exponent is right,
  // also up to infinity.
  const std::uint32_t normal =
      (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 0.5 puts the last bit of a half denormal at the last bit of the float, and
  // the float unit rounds.
  const std::uint32_t denormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t special =
      magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u;
  const std::uint32_t half = magnitude >= (143u << 23)  ? special
                             : magnitude < (113u << 23) ? denormal
                                                        : normal;
  return static_cast<std::uint16_t>(half | sign);
}

// Exact: the upper half of the float (a signalling NaN keeps its bits; arithmetic quiets it).
inline float bf16_to_f32(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Round to nearest, ties to even; float denormals kept (vcvtneps2bf16 flushes them); NaN quiet.
inline std::uint16_t f32_to_bf16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x0040u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_HALF_H_
