#include "tensor/codecs/int4.h"

#include "kvcache/row_format.h"
#include "tensor/codecs/nibbles.h"
#include "tensor/codecs/scale.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kGroup = RowFormat::kGroup;

struct Range {
  float low = 0, high = 0;
  std::uint16_t scale = 0;
};

Range range_of(const float* group) noexcept {
  Range range;
  if (largest_magnitude(group, kGroup) >= kInfinityBits) {
    range.scale = kHalfInfinity;
    return range;
  }
  for (std::int64_t i = 0; i < kGroup; ++i) {
    range.low = std::min(range.low, group[i]);
    range.high = std::max(range.high, group[i]);
  }
  range.scale = scale_above((range.high - range.low) / 15.0f);
  return range;
}

}  // namespace

bool encode_int4(const float* row, std::int64_t elements, const CodedRow& to) noexcept {
  for (std::int64_t begin = 0; begin < elements; begin += kGroup) {
    if (range_of(row + begin).scale >= kHalfInfinity) return false;
  }
  for (std::int64_t g = 0; g < elements / kGroup; ++g) {
    const float* const group = row + g * kGroup;
    const Range range = range_of(group);
    const float by = inverse_of_scale(f16_to_f32(range.scale));
    const float zero = round_even(-range.low * by);
    std::uint8_t codes[kGroup];
    for (std::int64_t i = 0; i < kGroup; ++i) {
      const float code = round_even(group[i] * by) + zero;
      codes[i] = static_cast<std::uint8_t>(std::clamp(code, 0.0f, 15.0f));
    }
    put_scale(to, g, range.scale);
    to.zeros[g * (to.scale_stride / 2)] = static_cast<std::byte>(zero);
    pack_nibbles(codes, kGroup, to.codes + g * (kGroup / 2));
  }
  return true;
}

void decode_int4(const ConstCodedRow& from, std::int64_t elements, float* row) noexcept {
  for (std::int64_t g = 0; g < elements / kGroup; ++g) {
    std::uint8_t codes[kGroup];
    unpack_nibbles(from.codes + g * (kGroup / 2), kGroup, codes);
    const float scale = scale_of(from, g);
    const int zero = static_cast<int>(from.zeros[g * (from.scale_stride / 2)]);
    for (std::int64_t i = 0; i < kGroup; ++i) {
      row[g * kGroup + i] = scale * static_cast<float>(codes[i] - zero);
    }
  }
}

}  // namespace kvcache::internal
