// SIMD for x86-64 with AVX2, FMA and F16C. Include it in files compiled with those flags only.
#ifndef KVCACHE_SRC_KERNELS_CPU_SIMD_AVX2_H_
#define KVCACHE_SRC_KERNELS_CPU_SIMD_AVX2_H_

#include <immintrin.h>

#define KVC_SIMD avx2
#define KVC_SIMD_BYTES 32

#include "kernels/cpu/simd/common.inl"

namespace kvcache::internal::KVC_SIMD {

KVC_SIMD_FN F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
KVC_SIMD_FN F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }

KVC_SIMD_FN __m256i lane_mask(std::uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return _mm256_cmpeq_epi32(set, lane);
}
KVC_SIMD_FN F32 choose(std::uint32_t bits, F32 a, F32 b) {
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(lane_mask(bits)));
}

KVC_SIMD_FN F32 load_bf16(const std::uint16_t* from) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
KVC_SIMD_FN F32 load_f16(const std::uint16_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

KVC_SIMD_FN void store_f16(std::uint16_t* to, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

KVC_SIMD_FN F32 load_n(const float* from, int n) {
  return _mm256_maskload_ps(from, lane_mask((1u << n) - 1));
}
KVC_SIMD_FN F32 load_f16_n(const std::uint16_t* from, int n) {
  std::uint16_t lanes[kLanes] = {};
  __builtin_memcpy(lanes, from, static_cast<unsigned long>(n) * sizeof(std::uint16_t));
  return load_f16(lanes);
}
KVC_SIMD_FN F32 load_bf16_n(const std::uint16_t* from, int n) {
  std::uint16_t lanes[kLanes] = {};
  __builtin_memcpy(lanes, from, static_cast<unsigned long>(n) * sizeof(std::uint16_t));
  return load_bf16(lanes);
}

KVC_SIMD_FN void widen_codes(Codes codes, F32* to) {
  const __m128i x = reinterpret_cast<__m128i>(codes);
  to[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
  to[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)));
}
KVC_SIMD_FN Codes look_up(Codes table, Codes codes) {
  return reinterpret_cast<Codes>(
      _mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(codes)));
}

}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/simd/math.inl"

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_AVX2_H_
