// Rows that are turned: bit for bit what tensor/codecs/rotate.h defines, in vectors. Part of
// rows.inl.
#include "tensor/codecs/rotate.h"

namespace kvcache::internal::KVC_SIMD {
namespace {

// Lane i gets lane i ^ kDistance.
template <int kDistance>
KVC_SIMD_FN F32 partner(F32 x) {
#define KVC_LANE(i) ((i) ^ kDistance)
#define KVC_LANES_4(i) KVC_LANE(i), KVC_LANE((i) + 1), KVC_LANE((i) + 2), KVC_LANE((i) + 3)
#if KVC_SIMD_BYTES == 16
  return __builtin_shufflevector(x, x, KVC_LANES_4(0));
#elif KVC_SIMD_BYTES == 32
  return __builtin_shufflevector(x, x, KVC_LANES_4(0), KVC_LANES_4(4));
#else
  return __builtin_shufflevector(x, x, KVC_LANES_4(0), KVC_LANES_4(4), KVC_LANES_4(8),
                                 KVC_LANES_4(12));
#endif
#undef KVC_LANES_4
#undef KVC_LANE
}

// The butterflies of a distance below kLanes: lane i of a pair gets a + b, its partner a - b.
template <int kDistance>
KVC_SIMD_FN F32 butterfly(F32 x) {
  F32 signs;
  for (int l = 0; l < kLanes; ++l) signs[l] = (l & kDistance) != 0 ? -1.0f : 1.0f;
  return fma(x, signs, partner<kDistance>(x));
}

// The butterflies within a vector.
KVC_SIMD_FN F32 turn_lanes(F32 x) {
  x = butterfly<1>(x);
  x = butterfly<2>(x);
#if KVC_SIMD_BYTES >= 32
  x = butterfly<4>(x);
#endif
#if KVC_SIMD_BYTES >= 64
  x = butterfly<8>(x);
#endif
  return x;
}

// kVecs vectors, which stay in registers.
template <int kVecs>
KVC_SIMD_FN void turn_vectors(float* row, F32 by) {
  F32 x[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) x[v] = turn_lanes(load(row + v * kLanes));
#pragma GCC unroll 3
  for (int distance = 1; distance < kVecs; distance *= 2) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      if ((v & distance) != 0) continue;
      const F32 a = x[v];
      const F32 b = x[v + distance];
      x[v] = a + b;
      x[v + distance] = a - b;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) store(row + v * kLanes, x[v] * by);
}

// More vectors than registers hold: by eights, and from one eight to another by way of memory.
KVC_SIMD_FN void turn_eights(float* row, std::int64_t block, F32 by) {
  constexpr std::int64_t kEight = 8 * kLanes;
  for (std::int64_t i = 0; i < block; i += kEight) turn_vectors<8>(row + i, set1(1.0f));
  for (std::int64_t distance = kEight; distance < block; distance *= 2) {
    const F32 factor = 2 * distance == block ? by : set1(1.0f);
    for (std::int64_t begin = 0; begin < block; begin += 2 * distance) {
      for (std::int64_t i = begin; i < begin + distance; i += kLanes) {
        const F32 a = load(row + i);
        const F32 b = load(row + i + distance);
        store(row + i, (a + b) * factor);
        store(row + i + distance, (a - b) * factor);
      }
    }
  }
}

// REQUIRES: blocks of at least 16.
KVC_SIMD_FN void turn(float* row, std::int64_t elements) {
  const std::int64_t block = elements & -elements;
  float factor = 1;  // rotation_factor()
  for (std::int64_t n = block; n >= 2; n /= 4) factor *= n == 2 ? 0.70710678118654752f : 0.5f;
  const F32 by = set1(factor);
  for (float* const end = row + elements; row < end; row += block) {
    switch (block / kLanes) {
      case 1:
        turn_vectors<1>(row, by);
        break;
      case 2:
        turn_vectors<2>(row, by);
        break;
      case 4:
        turn_vectors<4>(row, by);
        break;
      case 8:
        turn_vectors<8>(row, by);
        break;
      default:
        turn_eights(row, block, by);
    }
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
