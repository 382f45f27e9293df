#include "tensor/codecs/fp8.h"

#include <limits>

#include "tensor/codecs/scale.h"
#include "tensor/codecs/stretches.h"

namespace kvcache::internal {
namespace {

std::uint16_t scale_bits(const float* row, std::int64_t count) noexcept {
  std::uint32_t most = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(row[i]) & 0x7fffffffu;
    if (magnitude < kInfinityBits) most = std::max(most, magnitude);
  }
  return scale_above(std::bit_cast<float>(most) / 448.0f);
}

}  // namespace

std::uint8_t f32_to_e4m3(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal: rebias the exponent and round the 20 bits that go; a carry into it is right.
  const std::uint32_t normal =
      (magnitude - (120u << 23) + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  // Below 2^-6 codes are whole numbers of 2^-9: a float of exponent 14 has these as its last bits.
  const std::uint32_t denormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 16384.0f) & 15u;
  const std::uint32_t code = magnitude < (121u << 23)                 ? denormal
                             : magnitude > std::uint32_t{0x43e80000u} ? 0x7fu
                                                                      : normal;
  return static_cast<std::uint8_t>((bits >> 24 & 0x80u) | code);
}

float e4m3_to_f32(std::uint8_t code) noexcept {
  const std::uint32_t magnitude = code & 0x7fu;
  float value = magnitude < 8u ? static_cast<float>(magnitude) * 0x1p-9f
                               : std::bit_cast<float>((magnitude << 20) + (120u << 23));
  if (magnitude == 0x7fu) value = std::numeric_limits<float>::quiet_NaN();
  return (code & 0x80u) != 0 ? -value : value;
}

bool encode_fp8(const float* row, std::int64_t elements, const CodedRow& to) noexcept {
  const auto fits = [row](std::int64_t, std::int64_t begin, std::int64_t count) {
    return scale_bits(row + begin, count) < kHalfInfinity;
  };
  if (!for_each_stretch(RowFormat::kFp8E4M3, elements, fits)) return false;
  return for_each_stretch(RowFormat::kFp8E4M3, elements,
                          [&](std::int64_t g, std::int64_t begin, std::int64_t count) {
                            const std::uint16_t scale = scale_bits(row + begin, count);
                            const float by = inverse_of_scale(f16_to_f32(scale));
                            put_scale(to, g, scale);
                            for (std::int64_t i = begin; i < begin + count; ++i) {
                              to.codes[i] = static_cast<std::byte>(f32_to_e4m3(row[i] * by));
                            }
                            return true;
                          });
}

void decode_fp8(const ConstCodedRow& from, std::int64_t elements, float* row) noexcept {
  for_each_stretch(RowFormat::kFp8E4M3, elements,
                   [&](std::int64_t g, std::int64_t begin, std::int64_t count) {
                     const float scale = scale_of(from, g);
                     for (std::int64_t i = begin; i < begin + count; ++i) {
                       row[i] = scale * e4m3_to_f32(static_cast<std::uint8_t>(from.codes[i]));
                     }
                     return true;
                   });
}

}  // namespace kvcache::internal
