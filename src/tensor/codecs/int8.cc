#include "tensor/codecs/int8.h"

#include "tensor/codecs/scale.h"
#include "tensor/codecs/stretches.h"

namespace kvcache::internal {
namespace {

std::uint16_t scale_bits(const float* row, std::int64_t count) noexcept {
  const std::uint32_t most = largest_magnitude(row, count);
  return most >= kInfinityBits ? kHalfInfinity : scale_above(std::bit_cast<float>(most) / 127.0f);
}

}  // namespace

bool encode_int8(const float* row, std::int64_t elements, const CodedRow& to) noexcept {
  const auto fits = [row](std::int64_t, std::int64_t begin, std::int64_t count) {
    return scale_bits(row + begin, count) < kHalfInfinity;
  };
  if (!for_each_stretch(RowFormat::kInt8, elements, fits)) return false;
  return for_each_stretch(RowFormat::kInt8, elements,
                          [&](std::int64_t g, std::int64_t begin, std::int64_t count) {
                            const std::uint16_t scale = scale_bits(row + begin, count);
                            const float by = inverse_of_scale(f16_to_f32(scale));
                            put_scale(to, g, scale);
                            for (std::int64_t i = begin; i < begin + count; ++i) {
                              const float code = round_even(row[i] * by);
                              to.codes[i] = static_cast<std::byte>(static_cast<std::int8_t>(code));
                            }
                            return true;
                          });
}

void decode_int8(const ConstCodedRow& from, std::int64_t elements, float* row) noexcept {
  for_each_stretch(RowFormat::kInt8, elements,
                   [&](std::int64_t g, std::int64_t begin, std::int64_t count) {
                     const float scale = scale_of(from, g);
                     for (std::int64_t i = begin; i < begin + count; ++i) {
                       row[i] = scale * static_cast<float>(static_cast<std::int8_t>(from.codes[i]));
                     }
                     return true;
                   });
}

}  // namespace kvcache::internal
