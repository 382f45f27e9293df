// Vectors of floats over the compiler's vector extension: what every instruction set shares.
// Included by portable.h and the others, which set KVC_SIMD (their namespace) and
// KVC_SIMD_BYTES first; everything has internal linkage, so that no code for one instruction set
// can be linked in the place of another's.
//
// What a header offers (F32 holds kLanes floats, U32 and S32 as many whole numbers of 32 bits; all
// take + - * / ):
//   load, store, set1, zero             unaligned memory
//   load_f16, load_bf16                 widening loads of kLanes 16-bit floats, exact
//   store_f16, store_bf16               rounded to nearest even, bit for bit as tensor/half.h
//   load_n, load_f16_n, load_bf16_n     the first n < kLanes elements, the others 0; reads no more
//   fma(a, b, c)                        a * b + c, of one rounding where KVC_SIMD_FUSED
//   max(a, b), min(a, b)                b where one is NaN
//   choose(bits, a, b)                  lane i of a if bit i is set, else of b
//   reduce_add                          in a fixed order
//   load_bf16_pairs                     2 kLanes elements, the even and the odd ones
//   fold(x)                             lane i: the sum of x[i], i < kLanes; in two halves,
//   fold_four(x), fold_fours(quads)     the first over four vectors
//   in_register(x)                      x, kept from being read from memory at each use; Bytes too
//   transpose(x)                        kLanes vectors as a matrix
//   round_pair(low, high)               two floats as bf16, to nearest even
//   widen_codes(codes, x)               16 whole numbers of a byte as floats: 16 / kLanes vectors
//   narrow_codes(x)                     the low bytes of as many vectors of whole numbers
//   widen_halves(words, x)              16 halves as floats: as many vectors
//   repeat_f16(from)                    one of them in all lanes
//   look_up(table, codes)               table[code], code = 0 .. 15
// where KVC_SIMD_TABLE:
//   bytes_of(from)                      16 bytes, each in a lane
//   pick(table, lanes)                  table[lane mod 16]
// where KVC_SIMD_EIGHT:
//   pick_eight(table, lanes)            table[lane mod 8]
// and where KVC_SIMD_DOT:
//   dot_bf16(sum, a, b)                 sum + a0 b0 + a1 b1 of pairs of bf16
//   round_pairs(low, high)              neighbours as bf16 pairs, to nearest even
//   scale(x, n)                         x * 2^n for a whole n, also where that is 0
// where KVC_SIMD_BYTE_DOT or KVC_SIMD_WORD_DOT:
//   to_float(x), to_nearest(x)          from and to floats
//   widen_four_fours(from, to)          four halves from each of four places as floats: the first
//                                       of each, then the second and so on
// where KVC_SIMD_WORD_DOT, of 32 bytes:
//   dot_words(sum, a, b)                sum + a0 b0 + a1 b1 of pairs of words
//   widen_bytes(codes)                  16 signed bytes as words
//   interleave_low(a, b), .._high       bytes 0 .. 7 of both in turn, or 8 .. 15
//   repeat_pair(from)                   two words in all lanes; repeat_pair_of_bytes: two bytes
//   store_words(to, a, b)               whole numbers as words, those beyond at their bounds
//   fold_whole(x)                       as fold
// where KVC_SIMD_BYTE_DOT, Bytes holds 64 bytes:
//   dot_bytes(sum, a, b)                sum + a0 b0 + .. + a3 b3 of unsigned a and signed b
//   load_bytes(from, n)                 the first n, the others 0
//   exchange_lanes(x, to)               16-byte lane j of x[i] becomes lane i of to[j], i, j < 4
//   interleave<half>(x, to)             within each lane, bytes i of x[0] .. x[3] side by side:
//                                       those of i = 0 .. 7 or 8 .. 15, in two vectors of four
//   add_neighbours(a, b)                within a lane: a0 + a2, b0 + b2, a1 + a3, b1 + b3
//   load_four(a, b, c, d)               16 bytes of each, in a lane each
//   split_planes<signed>(x, to)         256 to[0] + to[1], of numbers of 16 bits, of which to[1] is
//                                       unsigned, and to[0] where x is: dword i of lane j has
//                                       4 j .. 4 j + 3 of x[i]
//   fours_by_lane(x)                    64 bytes in their order brought into that one, or back
//   spread_fours(x, to)                 dword i of a lane of x in all of that lane of to[i]
//   add_lanes(x)                        lane i: the sum of the lanes of x[i], i < 4
//   add_within_lanes(x)                 in all of a lane: the sum of it
//   largest_everywhere(x)               of unsigned numbers
//   first_of_fours()                    4 i in all of lane i
//   in_first_of_fours(x)                x in the first dword of each lane, else 0
// and all, by math.inl:
//   exp, tanh, reduce_max
#include <cstdint>

#ifndef KVC_SIMD_DOT
#define KVC_SIMD_DOT 0
#endif
#ifndef KVC_SIMD_FUSED
#define KVC_SIMD_FUSED 0
#endif
#ifndef KVC_SIMD_TABLE
#define KVC_SIMD_TABLE 0
#endif
#ifndef KVC_SIMD_EIGHT
#define KVC_SIMD_EIGHT 0
#endif
#ifndef KVC_SIMD_BYTE_DOT
#define KVC_SIMD_BYTE_DOT 0
#endif
#ifndef KVC_SIMD_WORD_DOT
#define KVC_SIMD_WORD_DOT 0
#endif
#define KVC_SIMD_WHOLE (KVC_SIMD_BYTE_DOT || KVC_SIMD_WORD_DOT)

#define KVC_SIMD_FN [[gnu::always_inline]] static inline

namespace kvcache::internal::KVC_SIMD {

using F32 = float __attribute__((vector_size(KVC_SIMD_BYTES)));
using U32 = std::uint32_t __attribute__((vector_size(KVC_SIMD_BYTES)));
using S32 = std::int32_t __attribute__((vector_size(KVC_SIMD_BYTES)));
using U16 = std::uint16_t __attribute__((vector_size(KVC_SIMD_BYTES / 2)));
using Codes = signed char __attribute__((vector_size(16)));
using Words = short __attribute__((vector_size(32)));

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

// The low halves.
KVC_SIMD_FN void store_u16(std::uint16_t* to, U32 x) {
  const U16 halves = __builtin_convertvector(x, U16);
  __builtin_memcpy(to, &halves, sizeof(halves));
}
// See f32_to_bf16 in tensor/half.h, lane by lane. Not vcvtneps2bf16, which flushes denormals.
KVC_SIMD_FN void store_bf16(std::uint16_t* to, F32 x) {
  const U32 bits = bits_of(x);
  const U32 rounded = (bits + set1_u32(0x7fffu) + ((bits >> 16) & set1_u32(1))) >> 16;
  const U32 quiet = (bits >> 16) | set1_u32(0x40u);
  const U32 magnitude = bits & set1_u32(0x7fffffffu);
  store_u16(to, magnitude > set1_u32(0x7f800000u) ? quiet : rounded);
}

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

// The two runs of 16 elements that 16 bytes of 4 bits hold.
KVC_SIMD_FN Codes low_halves(Codes bytes) { return bytes & (Codes{} + 15); }
KVC_SIMD_FN Codes high_halves(Codes bytes) {
  using Unsigned = unsigned char __attribute__((vector_size(16)));
  return reinterpret_cast<Codes>(reinterpret_cast<Unsigned>(bytes) >> 4);
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

// The way back: elements 0, 2, 4 .. of a and b; 1, 3, 5 ...
#if KVC_SIMD_BYTES == 16
KVC_SIMD_FN F32 unzip_even(F32 a, F32 b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
KVC_SIMD_FN F32 unzip_odd(F32 a, F32 b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
#elif KVC_SIMD_BYTES == 32
KVC_SIMD_FN F32 unzip_even(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}
KVC_SIMD_FN F32 unzip_odd(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
#else
KVC_SIMD_FN F32 unzip_even(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
KVC_SIMD_FN F32 unzip_odd(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#endif

// As zip_low and zip_high, within each 16 bytes.
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

// Four vectors become one: within 16 bytes, lane j holds what is left to add of x[j].
KVC_SIMD_FN F32 fold_four(const F32* x) {
  const F32 a = quad_low(x[0], x[2]) + quad_high(x[0], x[2]);
  const F32 b = quad_low(x[1], x[3]) + quad_high(x[1], x[3]);
  return quad_low(a, b) + quad_high(a, b);
}

// Lane i of the result is the sum of the lanes of x[i], of which x[4 j] .. x[4 j + 3] were folded
// to quads[j].
KVC_SIMD_FN F32 fold_fours(const F32* quads) {
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

// Lane i of the result is the sum of the lanes of x[i], in the same order for every i.
KVC_SIMD_FN F32 fold(const F32* x) {
  F32 quads[kLanes / 4];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes / 4; ++i) quads[i] = fold_four(x + 4 * i);
  return fold_fours(quads);
}

}  // namespace kvcache::internal::KVC_SIMD
