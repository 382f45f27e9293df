// SIMD for x86-64 with AVX-512 F, BW, VL, BF16 and VNNI. Include it in files compiled with those
// flags only.
#ifndef KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512BF16_H_
#define KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512BF16_H_

#define KVC_SIMD avx512bf16
#define KVC_SIMD_DOT 1
#define KVC_SIMD_BYTE_DOT 1

#include "kernels/cpu/simd/avx512.h"

namespace kvcache::internal::KVC_SIMD {

using Bytes = __m512i;
using S32 = std::int32_t __attribute__((vector_size(64)));

KVC_SIMD_FN Bytes load_bytes(const char* from) { return _mm512_loadu_si512(from); }

KVC_SIMD_FN F32 dot_bf16(F32 sum, U32 a, U32 b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

KVC_SIMD_FN U32 round_pairs(F32 low, F32 high) {
  return reinterpret_cast<U32>(_mm512_cvtne2ps_pbh(high, low));
}
KVC_SIMD_FN F32 scale(F32 x, F32 n) { return _mm512_scalef_ps(x, n); }

KVC_SIMD_FN Bytes load_bytes(const char* from, std::int64_t n) {
  if (n >= 64) return load_bytes(from);
  return _mm512_maskz_loadu_epi8((std::uint64_t{1} << n) - 1, from);
}
KVC_SIMD_FN S32 dot_bytes(S32 sum, Bytes a, Bytes b) {
  return reinterpret_cast<S32>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), a, b));
}
KVC_SIMD_FN Bytes set_bytes(std::int8_t x) { return _mm512_set1_epi8(x); }
KVC_SIMD_FN Bytes repeat_word(const std::uint8_t* from) {
  std::int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return _mm512_set1_epi32(word);
}
KVC_SIMD_FN Bytes low_halves(Bytes x) { return _mm512_and_si512(x, set_bytes(15)); }
KVC_SIMD_FN Bytes high_halves(Bytes x) { return low_halves(_mm512_srli_epi16(x, 4)); }
KVC_SIMD_FN Bytes flip(Bytes x) { return _mm512_xor_si512(x, set_bytes(-128)); }
KVC_SIMD_FN Bytes repeat_table(Codes table) {
  return _mm512_broadcast_i32x4(reinterpret_cast<__m128i>(table));
}
KVC_SIMD_FN Bytes look_up(Bytes table, Bytes codes) { return _mm512_shuffle_epi8(table, codes); }

KVC_SIMD_FN void exchange_lanes(const Bytes* x, Bytes* to) {
  const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(x[0], x[1], 0xEE);
  const __m512i c = _mm512_shuffle_i32x4(x[2], x[3], 0x44);
  const __m512i d = _mm512_shuffle_i32x4(x[2], x[3], 0xEE);
  to[0] = _mm512_shuffle_i32x4(a, c, 0x88);
  to[1] = _mm512_shuffle_i32x4(a, c, 0xDD);
  to[2] = _mm512_shuffle_i32x4(b, d, 0x88);
  to[3] = _mm512_shuffle_i32x4(b, d, 0xDD);
}
template <int kHalf>
KVC_SIMD_FN void interleave(const Bytes* x, Bytes* to) {
  const __m512i a =
      kHalf == 0 ? _mm512_unpacklo_epi8(x[0], x[1]) : _mm512_unpackhi_epi8(x[0], x[1]);
  const __m512i b =
      kHalf == 0 ? _mm512_unpacklo_epi8(x[2], x[3]) : _mm512_unpackhi_epi8(x[2], x[3]);
  to[0] = _mm512_unpacklo_epi16(a, b);
  to[1] = _mm512_unpackhi_epi16(a, b);
}
KVC_SIMD_FN S32 add_neighbours(S32 a, S32 b) {
  const auto x = reinterpret_cast<__m512i>(a);
  const auto y = reinterpret_cast<__m512i>(b);
  return reinterpret_cast<S32>(_mm512_unpacklo_epi32(x, y)) +
         reinterpret_cast<S32>(_mm512_unpackhi_epi32(x, y));
}
KVC_SIMD_FN F32 to_float(S32 x) { return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(x)); }
KVC_SIMD_FN S32 to_nearest(F32 x) { return reinterpret_cast<S32>(_mm512_cvtps_epi32(x)); }
KVC_SIMD_FN void store_low_bytes(std::uint8_t* to, S32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x)));
}
// Four halves from each of four places, the first of each, then the second ..., as floats.
KVC_SIMD_FN F32 widen_four_fours(const char* const* from) {
  std::uint64_t x[4];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&x[i], from[i], sizeof(x[i]));
  const __m256i fours =
      _mm256_setr_epi64x(static_cast<long long>(x[0]), static_cast<long long>(x[1]),
                         static_cast<long long>(x[2]), static_cast<long long>(x[3]));
  const __m256i order = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_cvtph_ps(_mm256_permutexvar_epi16(order, fours));
}

}  // namespace kvcache::internal::KVC_SIMD

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512BF16_H_
