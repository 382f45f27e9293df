// SIMD for x86-64 with AVX2, FMA and F16C. Include it in files compiled with those flags only.
#ifndef KVCACHE_SRC_KERNELS_CPU_SIMD_AVX2_H_
#define KVCACHE_SRC_KERNELS_CPU_SIMD_AVX2_H_

#include <immintrin.h>

#define KVC_SIMD avx2
#define KVC_SIMD_BYTES 32
#define KVC_SIMD_FUSED 1
#define KVC_SIMD_EIGHT 1
#define KVC_SIMD_WORD_DOT 1

#include "kernels/cpu/simd/common.inl"

namespace kvcache::internal::KVC_SIMD {

KVC_SIMD_FN F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
KVC_SIMD_FN F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
KVC_SIMD_FN F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }

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
KVC_SIMD_FN Codes narrow_codes(const S32* x) {
  const __m256i low = _mm256_set1_epi32(255);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(reinterpret_cast<__m256i>(x[0]), low),
                                            _mm256_and_si256(reinterpret_cast<__m256i>(x[1]), low));
  const __m256i in_order = _mm256_permute4x64_epi64(words, 0xD8);
  return reinterpret_cast<Codes>(
      _mm_packus_epi16(_mm256_castsi256_si128(in_order), _mm256_extracti128_si256(in_order, 1)));
}
KVC_SIMD_FN F32 repeat_f16(const std::uint16_t* from) {
  std::int16_t half;
  __builtin_memcpy(&half, from, sizeof(half));
  return _mm256_cvtph_ps(_mm_set1_epi16(half));
}
KVC_SIMD_FN void widen_halves(const Words& halves, F32* to) {
  const __m256i x = reinterpret_cast<__m256i>(halves);
  to[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(x));
  to[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1));
}
KVC_SIMD_FN Codes look_up(Codes table, Codes codes) {
  return reinterpret_cast<Codes>(
      _mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(codes)));
}

KVC_SIMD_FN F32 pick_eight(F32 table, U32 lanes) {
  return _mm256_permutevar8x32_ps(table, reinterpret_cast<__m256i>(lanes));
}
KVC_SIMD_FN F32 to_float(S32 x) { return _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(x)); }
KVC_SIMD_FN S32 to_nearest(F32 x) { return reinterpret_cast<S32>(_mm256_cvtps_epi32(x)); }
KVC_SIMD_FN S32 dot_words(S32 sum, Words a, Words b) {
  return sum + reinterpret_cast<S32>(
                   _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
KVC_SIMD_FN Words widen_bytes(Codes codes) {
  return reinterpret_cast<Words>(_mm256_cvtepi8_epi16(reinterpret_cast<__m128i>(codes)));
}
KVC_SIMD_FN Codes interleave_low(Codes a, Codes b) {
  return reinterpret_cast<Codes>(
      _mm_unpacklo_epi8(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
KVC_SIMD_FN Codes interleave_high(Codes a, Codes b) {
  return reinterpret_cast<Codes>(
      _mm_unpackhi_epi8(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
KVC_SIMD_FN Words repeat_pair(const std::int16_t* from) {
  std::int32_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return reinterpret_cast<Words>(_mm256_set1_epi32(pair));
}
KVC_SIMD_FN Codes repeat_pair_of_bytes(const std::int8_t* from) {
  std::int16_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return reinterpret_cast<Codes>(_mm_set1_epi16(pair));
}
KVC_SIMD_FN void store_words(std::int16_t* to, S32 a, S32 b) {
  const __m256i words =
      _mm256_packs_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(words, 0xD8));
}
KVC_SIMD_FN S32 add_lanes(__m256i a, __m256i b) {
  return reinterpret_cast<S32>(_mm256_hadd_epi32(a, b));
}
KVC_SIMD_FN S32 fold_whole(const S32* x) {
  S32 pairs[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    pairs[i] =
        add_lanes(reinterpret_cast<__m256i>(x[2 * i]), reinterpret_cast<__m256i>(x[2 * i + 1]));
  }
  const auto low = reinterpret_cast<__m256i>(
      add_lanes(reinterpret_cast<__m256i>(pairs[0]), reinterpret_cast<__m256i>(pairs[1])));
  const auto high = reinterpret_cast<__m256i>(
      add_lanes(reinterpret_cast<__m256i>(pairs[2]), reinterpret_cast<__m256i>(pairs[3])));
  return reinterpret_cast<S32>(_mm256_permute2x128_si256(low, high, 0x20)) +
         reinterpret_cast<S32>(_mm256_permute2x128_si256(low, high, 0x31));
}
KVC_SIMD_FN void widen_four_fours(const char* const* from, F32* to) {
  __m128i x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from[i]));
  const __m128i a = _mm_unpacklo_epi16(x[0], x[1]);
  const __m128i b = _mm_unpacklo_epi16(x[2], x[3]);
  to[0] = _mm256_cvtph_ps(_mm_unpacklo_epi32(a, b));
  to[1] = _mm256_cvtph_ps(_mm_unpackhi_epi32(a, b));
}

}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/simd/math.inl"

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_AVX2_H_
