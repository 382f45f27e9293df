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
KVC_SIMD_FN Bytes in_register(Bytes x) {
  asm("" : "+v"(x));
  return x;
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
KVC_SIMD_FN F32 add_neighbours(F32 a, F32 b) {
  return _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
}
KVC_SIMD_FN Bytes load_four(const char* a, const char* b, const char* c, const char* d) {
  const auto at = [](const char* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  };
  Bytes x = _mm512_castsi128_si512(at(a));
  x = _mm512_inserti32x4(x, at(b), 1);
  x = _mm512_inserti32x4(x, at(c), 2);
  return _mm512_inserti32x4(x, at(d), 3);
}
KVC_SIMD_FN S32 add_lanes(const S32* x) {
  Bytes from[4];
  Bytes to[4];
  for (int i = 0; i < 4; ++i) from[i] = reinterpret_cast<Bytes>(x[i]);
  exchange_lanes(from, to);
  return (reinterpret_cast<S32>(to[0]) + reinterpret_cast<S32>(to[1])) +
         (reinterpret_cast<S32>(to[2]) + reinterpret_cast<S32>(to[3]));
}
KVC_SIMD_FN S32 add_within_lanes(S32 x) {
  auto sum = reinterpret_cast<__m512i>(x);
  sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_BADC));
  return reinterpret_cast<S32>(_mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB)));
}
KVC_SIMD_FN U32 max(U32 a, U32 b) {
  return reinterpret_cast<U32>(
      _mm512_max_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
KVC_SIMD_FN U32 largest_everywhere(U32 x) {
  auto top = reinterpret_cast<__m512i>(x);
  top = _mm512_max_epu32(top, _mm512_shuffle_i32x4(top, top, 0x4E));
  top = _mm512_max_epu32(top, _mm512_shuffle_i32x4(top, top, 0xB1));
  top = _mm512_max_epu32(top, _mm512_shuffle_epi32(top, _MM_PERM_BADC));
  return reinterpret_cast<U32>(_mm512_max_epu32(top, _mm512_shuffle_epi32(top, _MM_PERM_CDAB)));
}
template <bool kSigned>
KVC_SIMD_FN void split_planes(const S32* x, Bytes* to) {
  __m512i high[2];
  __m512i low[2];
  for (int i = 0; i < 2; ++i) {
    const auto a = reinterpret_cast<__m512i>(x[2 * i]);
    const auto b = reinterpret_cast<__m512i>(x[2 * i + 1]);
    const __m512i words = kSigned ? _mm512_packs_epi32(a, b) : _mm512_packus_epi32(a, b);
    high[i] = kSigned ? _mm512_srai_epi16(words, 8) : _mm512_srli_epi16(words, 8);
    low[i] = _mm512_and_si512(words, _mm512_set1_epi16(255));
  }
  to[0] = kSigned ? _mm512_packs_epi16(high[0], high[1]) : _mm512_packus_epi16(high[0], high[1]);
  to[1] = _mm512_packus_epi16(low[0], low[1]);
}
KVC_SIMD_FN void spread_fours(Bytes x, Bytes* to) {
  to[0] = _mm512_shuffle_epi32(x, _MM_PERM_AAAA);
  to[1] = _mm512_shuffle_epi32(x, _MM_PERM_BBBB);
  to[2] = _mm512_shuffle_epi32(x, _MM_PERM_CCCC);
  to[3] = _mm512_shuffle_epi32(x, _MM_PERM_DDDD);
}
KVC_SIMD_FN Bytes fours_by_lane(Bytes x) {
  return _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
}
KVC_SIMD_FN U32 first_of_fours() { return U32{0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12}; }
KVC_SIMD_FN S32 in_first_of_fours(std::int32_t x) {
  return reinterpret_cast<S32>(_mm512_maskz_set1_epi32(0x1111, x));
}
KVC_SIMD_FN F32 to_float(S32 x) { return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(x)); }
KVC_SIMD_FN S32 to_nearest(F32 x) { return reinterpret_cast<S32>(_mm512_cvtps_epi32(x)); }
KVC_SIMD_FN void widen_four_fours(const char* const* from, F32* to) {
  std::uint64_t x[4];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&x[i], from[i], sizeof(x[i]));
  const __m256i fours =
      _mm256_setr_epi64x(static_cast<long long>(x[0]), static_cast<long long>(x[1]),
                         static_cast<long long>(x[2]), static_cast<long long>(x[3]));
  const __m256i order = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  *to = _mm512_cvtph_ps(_mm256_permutexvar_epi16(order, fours));
}

}  // namespace kvcache::internal::KVC_SIMD

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512BF16_H_
