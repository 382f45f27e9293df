#include "tensor/codecs/ggml.h"

#include "kvcache/row_format.h"
#include "tensor/codecs/nibbles.h"
#include "tensor/codecs/scale.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kGroup = RowFormat::kGroup;

// The element of the largest magnitude, the first of these; infinity where one is not finite.
float extreme_of(const float* block) noexcept {
  std::uint32_t most = 0;
  float extreme = block[0];
  for (std::int64_t i = 0; i < kGroup; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(block[i]) & 0x7fffffffu;
    if (magnitude <= most) continue;
    most = magnitude;
    extreme = block[i];
  }
  return most >= kInfinityBits ? std::bit_cast<float>(kInfinityBits) : extreme;
}

float q8_0_delta(const float* block) noexcept { return std::abs(extreme_of(block)) / 127.0f; }
float q4_0_delta(const float* block) noexcept { return extreme_of(block) / -8.0f; }

bool deltas_fit(const float* row, std::int64_t elements, float (*delta)(const float*)) noexcept {
  for (std::int64_t begin = 0; begin < elements; begin += kGroup) {
    if ((f32_to_f16(delta(row + begin)) & 0x7fffu) >= kHalfInfinity) return false;
  }
  return true;
}

float inverse_of(float delta) noexcept {
  const float inverse = delta == 0 ? 0.0f : 1.0f / delta;
  return std::isinf(inverse) ? 0.0f : inverse;
}

void put_delta(float delta, std::byte* block) noexcept {
  const std::uint16_t bits = f32_to_f16(delta);
  std::memcpy(block, &bits, sizeof(bits));
}

float delta_of(const std::byte* block) noexcept {
  std::uint16_t bits = 0;
  std::memcpy(&bits, block, sizeof(bits));
  return f16_to_f32(bits);
}

}  // namespace

bool encode_q8_0(const float* row, std::int64_t elements, std::byte* blocks) noexcept {
  if (!deltas_fit(row, elements, q8_0_delta)) return false;
  for (std::int64_t begin = 0; begin < elements; begin += kGroup, blocks += kQ8_0Bytes) {
    const float delta = q8_0_delta(row + begin);
    const float inverse = inverse_of(delta);
    put_delta(delta, blocks);
    for (std::int64_t i = 0; i < kGroup; ++i) {
      const float code = std::round(row[begin + i] * inverse);
      blocks[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(code));
    }
  }
  return true;
}

bool encode_q4_0(const float* row, std::int64_t elements, std::byte* blocks) noexcept {
  if (!deltas_fit(row, elements, q4_0_delta)) return false;
  for (std::int64_t begin = 0; begin < elements; begin += kGroup, blocks += kQ4_0Bytes) {
    const float delta = q4_0_delta(row + begin);
    const float inverse = inverse_of(delta);
    put_delta(delta, blocks);
    std::uint8_t codes[kGroup];
    for (std::int64_t i = 0; i < kGroup; ++i) {
      const float code = std::fma(row[begin + i], inverse, 8.5f);
      codes[i] = static_cast<std::uint8_t>(std::min(15, static_cast<int>(code)));
    }
    pack_nibbles(codes, kGroup, blocks + 2);
  }
  return true;
}

void decode_q8_0(const std::byte* blocks, std::int64_t elements, float* row) noexcept {
  for (std::int64_t begin = 0; begin < elements; begin += kGroup, blocks += kQ8_0Bytes) {
    const float delta = delta_of(blocks);
    for (std::int64_t i = 0; i < kGroup; ++i) {
      row[begin + i] = delta * static_cast<float>(static_cast<std::int8_t>(blocks[2 + i]));
    }
  }
}

void decode_q4_0(const std::byte* blocks, std::int64_t elements, float* row) noexcept {
  for (std::int64_t begin = 0; begin < elements; begin += kGroup, blocks += kQ4_0Bytes) {
    const float delta = delta_of(blocks);
    std::uint8_t codes[kGroup];
    unpack_nibbles(blocks + 2, kGroup, codes);
    for (std::int64_t i = 0; i < kGroup; ++i) {
      row[begin + i] = delta * static_cast<float>(codes[i] - 8);
    }
  }
}

}  // namespace kvcache::internal
