#include "tensor/codecs/lm4.h"

#include "tensor/codecs/nibbles.h"
#include "tensor/codecs/scale.h"
#include "tensor/codecs/stretches.h"

namespace kvcache::internal {
namespace {

float add_lanes(float* lanes) noexcept {
  for (int half = kLm4Lanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The codes that are nearest for this unit, and the unit that is best for these codes.
float choose(const float* row, std::int64_t count, float unit, std::uint8_t* codes) noexcept {
  const float inverse = 1.0f / unit;
  float products[kLm4Lanes] = {};
  std::int32_t squares = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float magnitude = std::abs(row[i]) * inverse;
    int up = 0;
    for (const float bound : kLm4Bounds) up += magnitude >= bound ? 1 : 0;
    codes[i] = static_cast<std::uint8_t>(std::signbit(row[i]) ? 7 - up : 8 + up);
    const int level = kLm4Levels[codes[i]];
    products[i % kLm4Lanes] += row[i] * static_cast<float>(level);
    squares += level * level;
  }
  return add_lanes(products) / static_cast<float>(squares);
}

// Codes of a stretch, and its scale: kHalfInfinity where there is none.
std::uint16_t encode_stretch(const float* row, std::int64_t count, std::uint8_t* codes) noexcept {
  if (largest_magnitude(row, count) >= kInfinityBits) return kHalfInfinity;
  float squares[kLm4Lanes] = {};
  for (std::int64_t i = 0; i < count; ++i) squares[i % kLm4Lanes] += row[i] * row[i];
  float unit = std::sqrt(add_lanes(squares) / static_cast<float>(count)) * kLm4Unit;
  std::uint16_t scale = 0;
  if (unit >= kLm4LeastUnit) {
    for (int pass = 0; pass < kLm4Passes; ++pass) unit = choose(row, count, unit, codes);
    scale = f32_to_f16(unit);
  }
  if (scale == 0) std::fill_n(codes, count, std::uint8_t{0});
  return scale;
}

}  // namespace

bool encode_lm4(const float* row, std::int64_t elements, const CodedRow& to) noexcept {
  std::uint8_t codes[kMaxCodedElements];
  std::uint16_t scales[kMaxCodedElements / RowFormat::kStretch];
  const auto encode = [&](std::int64_t g, std::int64_t begin, std::int64_t count) {
    scales[g] = encode_stretch(row + begin, count, codes + begin);
    return scales[g] < kHalfInfinity;
  };
  if (!for_each_stretch(RowFormat::kLm4, elements, encode)) return false;
  pack_nibbles(codes, elements, to.codes);
  const std::int64_t count = RowFormat{RowFormat::kLm4}.num_scales(elements);
  for (std::int64_t g = 0; g < count; ++g) put_scale(to, g, scales[g]);
  return true;
}

void decode_lm4(const ConstCodedRow& from, std::int64_t elements, float* row) noexcept {
  std::uint8_t codes[kMaxCodedElements];
  unpack_nibbles(from.codes, elements, codes);
  for_each_stretch(RowFormat::kLm4, elements,
                   [&](std::int64_t g, std::int64_t begin, std::int64_t count) {
                     const float scale = scale_of(from, g);
                     for (std::int64_t i = begin; i < begin + count; ++i) {
                       row[i] = scale * static_cast<float>(kLm4Levels[codes[i]]);
                     }
                     return true;
                   });
}

}  // namespace kvcache::internal
