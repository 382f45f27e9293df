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
//   reduce_add, reduce_max              in a fixed order
//   transpose(x)                        kLanes vectors as a matrix
//   exp, tanh                           math.inl
#include <cstdint>

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

// Halves are folded onto each other.
KVC_SIMD_FN float reduce_add(F32 x) {
  float lanes[kLanes];
  __builtin_memcpy(lanes, &x, sizeof(x));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
  }
  return lanes[0];
}
KVC_SIMD_FN float reduce_max(F32 x) {
  float lanes[kLanes];
  __builtin_memcpy(lanes, &x, sizeof(x));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    }
  }
  return lanes[0];
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

}  // namespace kvcache::internal::KVC_SIMD
