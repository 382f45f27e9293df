// SIMD for x86-64 with AVX-512 F, BW and VL. Include it in files compiled with those flags only.
#ifndef KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512_H_
#define KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512_H_

#include <immintrin.h>

#ifndef KVC_SIMD  // avx512bf16.h
#define KVC_SIMD avx512
#endif
#define KVC_SIMD_BYTES 64
#define KVC_SIMD_FUSED 1
#define KVC_SIMD_TABLE 1

#include "kernels/cpu/simd/common.inl"

namespace kvcache::internal::KVC_SIMD {

KVC_SIMD_FN F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
KVC_SIMD_FN F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
KVC_SIMD_FN F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }

KVC_SIMD_FN F32 choose(std::uint32_t bits, F32 a, F32 b) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), b, a);
}

KVC_SIMD_FN F32 widen_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
KVC_SIMD_FN F32 load_bf16(const std::uint16_t* from) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
KVC_SIMD_FN F32 load_f16(const std::uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

KVC_SIMD_FN void store_f16(std::uint16_t* to, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

KVC_SIMD_FN F32 load_n(const float* from, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), from);
}
KVC_SIMD_FN F32 load_f16_n(const std::uint16_t* from, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), from));
}
KVC_SIMD_FN F32 load_bf16_n(const std::uint16_t* from, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), from));
}

KVC_SIMD_FN void widen_codes(Codes codes, F32* to) {
  to[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(codes)));
}
KVC_SIMD_FN Codes narrow_codes(const S32* x) {
  return reinterpret_cast<Codes>(_mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x[0])));
}
KVC_SIMD_FN F32 repeat_f16(const std::uint16_t* from) {
  std::int16_t half;
  __builtin_memcpy(&half, from, sizeof(half));
  return _mm512_cvtph_ps(_mm256_set1_epi16(half));
}
KVC_SIMD_FN void widen_halves(const Words& halves, F32* to) {
  to[0] = _mm512_cvtph_ps(reinterpret_cast<__m256i>(halves));
}
KVC_SIMD_FN U32 bytes_of(const char* from) {
  return reinterpret_cast<U32>(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
KVC_SIMD_FN F32 pick(F32 table, U32 lanes) {
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(lanes), table);
}
KVC_SIMD_FN Codes look_up(Codes table, Codes codes) {
  return reinterpret_cast<Codes>(
      _mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(codes)));
}

}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/simd/math.inl"

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512_H_
