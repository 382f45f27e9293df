// SIMD by the compiler's vector extension alone: any processor, as wide as the build's baseline.
#ifndef KVCACHE_SRC_KERNELS_CPU_SIMD_PORTABLE_H_
#define KVCACHE_SRC_KERNELS_CPU_SIMD_PORTABLE_H_

#ifndef KVC_SIMD  // a test may ask for another width
#define KVC_SIMD portable
#if defined(__AVX512F__)
#define KVC_SIMD_BYTES 64
#elif defined(__AVX__)
#define KVC_SIMD_BYTES 32
#else
#define KVC_SIMD_BYTES 16
#endif
#endif

#include "kernels/cpu/simd/common.inl"

namespace kvcache::internal::KVC_SIMD {

KVC_SIMD_FN F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
KVC_SIMD_FN F32 max(F32 a, F32 b) { return a > b ? a : b; }
KVC_SIMD_FN F32 min(F32 a, F32 b) { return a < b ? a : b; }

KVC_SIMD_FN F32 choose(std::uint32_t bits, F32 a, F32 b) {
  U32 lane = {};
  for (int i = 0; i < kLanes; ++i) lane[i] = 1u << i;
  return (set1_u32(bits) & lane) != set1_u32(0) ? a : b;
}

KVC_SIMD_FN U32 load_u16(const std::uint16_t* from) {
  U16 x;
  __builtin_memcpy(&x, from, sizeof(x));
  return __builtin_convertvector(x, U32);
}
KVC_SIMD_FN F32 load_bf16(const std::uint16_t* from) { return from_bits(load_u16(from) << 16); }

// See f16_to_f32 in tensor/half.h, lane by lane.
KVC_SIMD_FN F32 widen_f16(U32 half) {
  const U32 magnitude = (half & set1_u32(0x7fffu)) << 13;
  const U32 sign = (half & set1_u32(0x8000u)) << 16;
  const U32 exponent = magnitude & set1_u32(0x0f800000u);
  const U32 normal = magnitude + set1_u32(112u << 23);
  const U32 quiet = magnitude > set1_u32(0x0f800000u) ? set1_u32(0x00400000u) : set1_u32(0);
  const U32 special = (magnitude + set1_u32(224u << 23)) | quiet;
  const F32 denormal =
      from_bits(magnitude + set1_u32(113u << 23)) - from_bits(set1_u32(113u << 23));
  U32 bits = exponent == set1_u32(0x0f800000u) ? special : normal;
  bits = exponent == set1_u32(0) ? bits_of(denormal) : bits;
  return from_bits(bits | sign);
}
KVC_SIMD_FN F32 load_f16(const std::uint16_t* from) { return widen_f16(load_u16(from)); }

// See f32_to_f16 in tensor/half.h, lane by lane.
KVC_SIMD_FN void store_f16(std::uint16_t* to, F32 x) {
  const U32 magnitude = bits_of(x) & set1_u32(0x7fffffffu);
  const U32 sign = (bits_of(x) >> 16) & set1_u32(0x8000u);
  const U32 odd = (magnitude >> 13) & set1_u32(1);
  const U32 normal = (magnitude - set1_u32(112u << 23) + set1_u32(0x0fffu) + odd) >> 13;
  const U32 denormal = bits_of(from_bits(magnitude) + set1(0.5f)) - set1_u32(0x3f000000u);
  const U32 nan = set1_u32(0x7e00u) | ((magnitude >> 13) & set1_u32(0x3ffu));
  const U32 special = magnitude > set1_u32(0x7f800000u) ? nan : set1_u32(0x7c00u);
  U32 half = magnitude < set1_u32(113u << 23) ? denormal : normal;
  half = magnitude >= set1_u32(143u << 23) ? special : half;
  store_u16(to, half | sign);
}

KVC_SIMD_FN F32 load_n(const float* from, int n) {
  float lanes[kLanes] = {};
  __builtin_memcpy(lanes, from, static_cast<unsigned long>(n) * sizeof(float));
  return load(lanes);
}
KVC_SIMD_FN U32 load_u16_n(const std::uint16_t* from, int n) {
  std::uint16_t lanes[kLanes] = {};
  __builtin_memcpy(lanes, from, static_cast<unsigned long>(n) * sizeof(std::uint16_t));
  return load_u16(lanes);
}
KVC_SIMD_FN F32 load_f16_n(const std::uint16_t* from, int n) {
  return widen_f16(load_u16_n(from, n));
}
KVC_SIMD_FN F32 load_bf16_n(const std::uint16_t* from, int n) {
  return from_bits(load_u16_n(from, n) << 16);
}

KVC_SIMD_FN void widen_codes(Codes codes, F32* to) {
  float x[16];
  for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(codes[i]);
  for (int i = 0; i < 16 / kLanes; ++i) to[i] = load(x + i * kLanes);
}
KVC_SIMD_FN Codes narrow_codes(const S32* x) {
#if KVC_SIMD_BYTES == 16
  using Short = std::int16_t __attribute__((vector_size(16)));
  const auto even = [](S32 a, S32 b) __attribute__((always_inline)) {
    return reinterpret_cast<Codes>(__builtin_shufflevector(
        reinterpret_cast<Short>(a), reinterpret_cast<Short>(b), 0, 2, 4, 6, 8, 10, 12, 14));
  };
  return __builtin_shufflevector(even(x[0], x[1]), even(x[2], x[3]), 0, 2, 4, 6, 8, 10, 12, 14, 16,
                                 18, 20, 22, 24, 26, 28, 30);
#else
  Codes codes;
  for (int i = 0; i < 16; ++i) codes[i] = static_cast<signed char>(x[i / kLanes][i % kLanes]);
  return codes;
#endif
}
KVC_SIMD_FN F32 repeat_f16(const std::uint16_t* from) { return set1(load_f16_n(from, 1)[0]); }
KVC_SIMD_FN void widen_halves(const Words& halves, F32* to) {
  std::uint16_t x[16];
  __builtin_memcpy(x, &halves, sizeof(x));
#pragma GCC unroll 4
  for (int i = 0; i < 16 / kLanes; ++i) to[i] = load_f16(x + i * kLanes);
}
KVC_SIMD_FN Codes look_up(Codes table, Codes codes) {
  Codes found;
  for (int i = 0; i < 16; ++i) found[i] = table[codes[i]];
  return found;
}

}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/simd/math.inl"

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_PORTABLE_H_
