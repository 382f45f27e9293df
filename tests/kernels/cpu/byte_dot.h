// Vectors of 64 bytes and their dot products, element by element: what simd/common.inl says of
// them. Part of vectors_512_dot_test.cc.
#ifndef KVCACHE_TESTS_KERNELS_CPU_BYTE_DOT_H_
#define KVCACHE_TESTS_KERNELS_CPU_BYTE_DOT_H_

#include <cmath>
#include <cstdint>
#include <cstring>

namespace kvcache::internal::KVC_SIMD {

using Bytes = unsigned char __attribute__((vector_size(64)));

// The signed byte of a vector.
KVC_SIMD_FN int signed_at(const Bytes& x, int i) { return static_cast<signed char>(x[i]); }

KVC_SIMD_FN Bytes load_bytes(const char* from) {
  Bytes x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
KVC_SIMD_FN Bytes load_bytes(const char* from, std::int64_t n) {
  if (n >= 64) return load_bytes(from);
  Bytes x = {};
  std::memcpy(&x, from, static_cast<std::size_t>(n));
  return x;
}
KVC_SIMD_FN Bytes set_bytes(std::int8_t x) { return static_cast<unsigned char>(x) - Bytes{}; }
KVC_SIMD_FN Bytes repeat_word(const std::uint8_t* from) {
  Bytes x;
  for (int i = 0; i < 64; ++i) x[i] = from[i % 4];
  return x;
}
KVC_SIMD_FN Bytes repeat_table(Codes table) {
  Bytes x;
  for (int i = 0; i < 64; ++i) x[i] = static_cast<unsigned char>(table[i % 16]);
  return x;
}
KVC_SIMD_FN Bytes load_four(const char* a, const char* b, const char* c, const char* d) {
  Bytes x;
  const char* const from[] = {a, b, c, d};
  for (int i = 0; i < 64; ++i) x[i] = static_cast<unsigned char>(from[i / 16][i % 16]);
  return x;
}
KVC_SIMD_FN Bytes low_halves(Bytes x) { return x & set_bytes(15); }
KVC_SIMD_FN Bytes high_halves(Bytes x) { return x >> 4; }
KVC_SIMD_FN Bytes flip(Bytes x) { return x ^ set_bytes(-128); }
KVC_SIMD_FN Bytes look_up(Bytes table, Bytes codes) {
  Bytes found;
  for (int i = 0; i < 64; ++i) found[i] = table[i / 16 * 16 + codes[i]];
  return found;
}

KVC_SIMD_FN Bytes in_register(Bytes x) { return x; }
KVC_SIMD_FN S32 dot_bytes(S32 sum, Bytes a, Bytes b) {
  for (int i = 0; i < 64; ++i) sum[i / 4] += a[i] * signed_at(b, i);
  return sum;
}

KVC_SIMD_FN void exchange_lanes(const Bytes* x, Bytes* to) {
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 64; ++i) to[j][i] = x[i / 16][j * 16 + i % 16];
  }
}
template <int kHalf>
KVC_SIMD_FN void interleave(const Bytes* x, Bytes* to) {
  for (int i = 0; i < 64; ++i) {
    const int place = i % 16 / 4 + i / 16 * 16 + kHalf * 8;
    for (int v = 0; v < 2; ++v) to[v][i] = x[i % 4][place + v * 4];
  }
}
KVC_SIMD_FN void spread_fours(Bytes x, Bytes* to) {
  for (int v = 0; v < 4; ++v) {
    for (int i = 0; i < 64; ++i) to[v][i] = x[i / 16 * 16 + v * 4 + i % 4];
  }
}
KVC_SIMD_FN Bytes fours_by_lane(Bytes x) {
  Bytes to;
  for (int i = 0; i < 64; ++i) to[i] = x[i % 16 / 4 * 16 + i / 16 * 4 + i % 4];
  return to;
}
template <bool kSigned>
KVC_SIMD_FN void split_planes(const S32* x, Bytes* to) {
  constexpr int kLeast = kSigned ? -32768 : 0;
  constexpr int kMost = kSigned ? 32767 : 65535;
  for (int lane = 0; lane < 4; ++lane) {
    for (int i = 0; i < 16; ++i) {
      int word = x[i / 4][lane * 4 + i % 4];
      word = word > kMost ? kMost : word;
      word = word < kLeast ? kLeast : word;
      to[0][lane * 16 + i] = static_cast<unsigned char>(word >> 8);
      to[1][lane * 16 + i] = static_cast<unsigned char>(word);
    }
  }
}

template <typename V>
KVC_SIMD_FN V add_neighbours_of(V a, V b) {
  V sum;
  for (int i = 0; i < kLanes; ++i) {
    const int first = i / 4 * 4 + i % 4 / 2;
    sum[i] = i % 2 == 0 ? a[first] + a[first + 2] : b[first] + b[first + 2];
  }
  return sum;
}
KVC_SIMD_FN S32 add_neighbours(S32 a, S32 b) { return add_neighbours_of(a, b); }
KVC_SIMD_FN F32 add_neighbours(F32 a, F32 b) { return add_neighbours_of(a, b); }
KVC_SIMD_FN S32 add_lanes(const S32* x) {
  S32 sum = {};
  for (int i = 0; i < kLanes; ++i) {
    for (int lane = 0; lane < 4; ++lane) sum[i] += x[i / 4][lane * 4 + i % 4];
  }
  return sum;
}
KVC_SIMD_FN S32 add_within_lanes(S32 x) {
  S32 sum = {};
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < 4; ++j) sum[i] += x[i / 4 * 4 + j];
  }
  return sum;
}
KVC_SIMD_FN U32 max(U32 a, U32 b) { return a > b ? a : b; }
KVC_SIMD_FN U32 largest_everywhere(U32 x) {
  U32 top = {};
  for (int i = 0; i < kLanes; ++i) top = max(top, set1_u32(x[i]));
  return top;
}
KVC_SIMD_FN U32 first_of_fours() {
  U32 x;
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<std::uint32_t>(i / 4 * 4);
  return x;
}
KVC_SIMD_FN S32 in_first_of_fours(std::int32_t x) {
  S32 to = {};
  for (int i = 0; i < kLanes; i += 4) to[i] = x;
  return to;
}

KVC_SIMD_FN F32 to_float(S32 x) { return __builtin_convertvector(x, F32); }
// Beyond whole numbers, and NaN: the least, as the instruction has it.
KVC_SIMD_FN S32 to_nearest(F32 x) {
  S32 whole;
  for (int i = 0; i < kLanes; ++i) {
    const bool fits = std::abs(x[i]) < 2147483648.0f;
    whole[i] = fits ? static_cast<std::int32_t>(std::nearbyint(x[i])) : INT32_MIN;
  }
  return whole;
}
KVC_SIMD_FN void widen_four_fours(const char* const* from, F32* to) {
  std::uint16_t halves[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&halves[i], from[i % 4] + i / 4 * 2, 2);
  *to = load_f16(halves);
}

KVC_SIMD_FN U32 bytes_of(const char* from) {
  U32 x;
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<unsigned char>(from[i]);
  return x;
}
KVC_SIMD_FN F32 pick(F32 table, U32 lanes) {
  F32 x;
  for (int i = 0; i < kLanes; ++i) x[i] = table[lanes[i] % 16];
  return x;
}

}  // namespace kvcache::internal::KVC_SIMD

#endif  // KVCACHE_TESTS_KERNELS_CPU_BYTE_DOT_H_
