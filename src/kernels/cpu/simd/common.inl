// Vectors of floats over the compiler's vector extension: what every instruction set shares.
// Included by portable.h and the others, which set KVC_SIMD (their namespace) and
// KVC_SIMD_BYTES first; everything has internal linkage, so that no code for one instruction set
// can be linked in the place of another's.
//
// What a header offers (F32 holds kLanes floats, U32 as many std::uint32_t; both take + - * / ):
//   load, store, set1, zero             unaligned memory
//   load_f16, load_bf16                 widening loads of kLanes 16-bit floats, exact
//   load_n, load_f16_n, load_bf16_n     the first n < kLanes elements, the others 0; reads no more
//   fma(a, b, c)                        a * b + c: one rounding where the instructions exist
//   max(a, b)                           b where one is NaN
//   choose(bits, a, b)                  lane i of a if bit i is set, else of b
//   reduce_add                          in a fixed order
//   load_bf16_pairs                     2 kLanes elements, the even and the odd ones
//   fold(x)                             lane i: the sum of x[i], i < kLanes
//   in_register(x)                      x, kept from being read from memory at each use
//   transpose(x)                        kLanes vectors as a matrix
//   round_pair(low, high)               two floats as bf16, to nearest even
//   dot_bf16(sum, a, b)                 sum + a0 b0 + a1 b1 of pairs of bf16; where KVC_SIMD_DOT
//   exp, tanh, reduce_max               math.inl
#include <cstdint>

#ifndef KVC_SIMD_DOT
#define KVC_SIMD_DOT 0
#endif

#define KVC_SIMD_FN [[gnu::always_inline]] static inline

namespace kvcache::internal::KVC_SIMD {

using F32 = float __attribute__((vector_size(KVC_SIMD_BYTES)));
using U32 = std::uint32_t __attribute__((vector_size(KVC_SIMD_BYTES)));

inline constexpr int kLanes = KVC_SIMD_BYTES / 4;

// Vectors that the processor holds in registers.
#if defined(__aarch64__) || KVC_SIMD_BYTES == 64
inline constexpr int kRegisters = 32;
#else
inline constexpr int kRegisters = 16;
#endif

KVC_SIMD_FN F32 zero() { return F32{}; }
KVC_SIMD_FN F32 set1(float x) { return x - F32{}; }
KVC_SIMD_FN U32 set1_u32(std::uint32_t x) { return x - U32{}; }

KVC_SIMD_FN F32 load(const float* from) {
  F32 x;
  __builtin_memcpy(&x, from, sizeof(x));
  return x;
}
KVC_SIMD_FN void store(float* to, F32 x) { __builtin_memcpy(to, &x, sizeof(x)); }

KVC_SIMD_FN U32 bits_of(F32 x) {
  U32 bits;
  __builtin_memcpy(&bits, &x, sizeof(x));
  return bits;
}
KVC_SIMD_FN F32 from_bits(U32 bits) {
  F32 x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

KVC_SIMD_FN U32 load_u32(const std::uint32_t* from) {
  U32 x;
  __builtin_memcpy(&x, from, sizeof(x));
  return x;
}
KVC_SIMD_FN void store_u32(std::uint32_t* to, U32 x) { __builtin_memcpy(to, &x, sizeof(x)); }

// `low` in the low half. See f32_to_bf16 in tensor/half.h.
KVC_SIMD_FN std::uint32_t round_bf16(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;  // NaN stays NaN
  return (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
}
KVC_SIMD_FN std::uint32_t round_pair(float low, float high) {
  return round_bf16(low) | round_bf16(high) << 16;
}

// The 2 * kLanes bf16 elements from `from` on: the even ones and the odd ones. (Little-endian.)
KVC_SIMD_FN void load_bf16_pairs(const std::uint16_t* from, F32* even, F32* odd) {
  U32 pairs;
  __builtin_memcpy(&pairs, from, sizeof(pairs));
  *even = from_bits(pairs << 16);
  *odd = from_bits(pairs & set1_u32(0xffff0000u));
}

// For operands of several operations: compilers fold loads into each of them.
KVC_SIMD_FN F32 in_register(F32 x) {
#if defined(__aarch64__) && KVC_SIMD_BYTES == 16
  asm("" : "+w"(x));
#elif defined(__AVX512F__) || (defined(__AVX__) && KVC_SIMD_BYTES <= 32)
  asm("" : "+v"(x));
#endif
  return x;
}

// The upper `half` lanes in the place of the lower ones; the others are of no use.
template <int half>
KVC_SIMD_FN F32 upper(F32 x) {
#if KVC_SIMD_BYTES == 16
  if constexpr (half == 2) return __builtin_shufflevector(x, x, 2, 3, 2, 3);
  return __builtin_shufflevector(x, x, 1, 1, 3, 3);
#elif KVC_SIMD_BYTES == 32
  if constexpr (half == 4) return __builtin_shufflevector(x, x, 4, 5, 6, 7, 4, 5, 6, 7);
  if constexpr (half == 2) return __builtin_shufflevector(x, x, 2, 3, 2, 3, 6, 7, 6, 7);
  return __builtin_shufflevector(x, x, 1, 1, 3, 3, 5, 5, 7, 7);
#else
  if constexpr (half == 8) {
    return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14,
                                   15);
  }
  if constexpr (half == 4) {
    return __builtin_shufflevector(x, x, 4, 5, 6, 7, 4, 5, 6, 7, 12, 13, 14, 15, 12, 13, 14, 15);
  }
  if constexpr (half == 2) {
    return __builtin_shufflevector(x, x, 2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15);
  }
  return __builtin_shufflevector(x, x, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15);
#endif
}

// Halves are folded onto each other.
KVC_SIMD_FN float reduce_add(F32 x) {
#if KVC_SIMD_BYTES >= 64
  x = x + upper<8>(x);
#endif
#if KVC_SIMD_BYTES >= 32
  x = x + upper<4>(x);
#endif
  x = x + upper<2>(x);
  x = x + upper<1>(x);
  return x[0];
}
// Elements of a and b in turn: the lower halves, the upper halves.
#if KVC_SIMD_BYTES == 16
KVC_SIMD_FN F32 zip_low(F32 a, F32 b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
KVC_SIMD_FN F32 zip_high(F32 a, F32 b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#elif KVC_SIMD_BYTES == 32
KVC_SIMD_FN F32 zip_low(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
KVC_SIMD_FN F32 zip_high(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
KVC_SIMD_FN F32 zip_low(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
KVC_SIMD_FN F32 zip_high(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}
#endif

// The same within each 16 bytes.
#if KVC_SIMD_BYTES == 16
KVC_SIMD_FN F32 quad_low(F32 a, F32 b) { return zip_low(a, b); }
KVC_SIMD_FN F32 quad_high(F32 a, F32 b) { return zip_high(a, b); }
#elif KVC_SIMD_BYTES == 32
KVC_SIMD_FN F32 quad_low(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
}
KVC_SIMD_FN F32 quad_high(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
#else
KVC_SIMD_FN F32 quad_low(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
KVC_SIMD_FN F32 quad_high(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
#endif

// x[i][j] <-> x[j][i]. Zipping row i with row i + kLanes / 2 rotates the bits of the element's
// address (row, column) by one; log2(kLanes) rotations exchange row and column.
KVC_SIMD_FN void transpose(F32 (&x)[kLanes]) {
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    F32 y[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      y[2 * i] = zip_low(x[i], x[i + kLanes / 2]);
      y[2 * i + 1] = zip_high(x[i], x[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[i] = y[i];
  }
}

// Lane i of the result is the sum of the lanes of x[i], in the same order for every i.
KVC_SIMD_FN F32 fold(const F32* x) {
  // Within 16 bytes: four vectors become one, x[4 i + j] in the lanes j.
  F32 quads[kLanes / 4];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes / 4; ++i) {
    const F32 a = quad_low(x[4 * i], x[4 * i + 2]) + quad_high(x[4 * i], x[4 * i + 2]);
    const F32 b = quad_low(x[4 * i + 1], x[4 * i + 3]) + quad_high(x[4 * i + 1], x[4 * i + 3]);
    quads[i] = quad_low(a, b) + quad_high(a, b);
  }
#if KVC_SIMD_BYTES == 16
  return quads[0];
#elif KVC_SIMD_BYTES == 32
  return __builtin_shufflevector(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
  F32 pairs[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    pairs[i] = __builtin_shufflevector(quads[2 * i], quads[2 * i + 1], 0, 1, 2, 3, 16, 17, 18, 19,
                                       8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(quads[2 * i], quads[2 * i + 1], 4, 5, 6, 7, 20, 21, 22, 23,
                                       12, 13, 14, 15, 28, 29, 30, 31);
  }
  return __builtin_shufflevector(pairs[0], pairs[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21,
                                 22, 23) +
         __builtin_shufflevector(pairs[0], pairs[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27,
                                 28, 29, 30, 31);
#endif
}

}  // namespace kvcache::internal::KVC_SIMD
