// See vector_widths.h. With tables of 16 in a vector and dot products of bytes, too, so that what
// is multiplied in whole numbers of 64 bytes is tested on every processor.
#define KVC_SIMD vectors_512_dot
#define KVC_SIMD_BYTES 64
#define KVC_SIMD_DOT 1
#define KVC_SIMD_TABLE 1
#define KVC_SIMD_BYTE_DOT 1
#include "kernels/cpu/simd/portable.h"

namespace kvcache::internal::KVC_SIMD {

// What vdpbf16ps does, but for denormals: products of bf16 are exact in float32.
KVC_SIMD_FN F32 dot_bf16(F32 sum, U32 a, U32 b) {
  const U32 high = set1_u32(0xffff0000u);
  sum = sum + from_bits(a & high) * from_bits(b & high);
  return sum + from_bits(a << 16) * from_bits(b << 16);
}

KVC_SIMD_FN U32 round_pairs(F32 low, F32 high) {
  float x[2 * kLanes];
  store(x, low);
  store(x + kLanes, high);
  U32 pairs;
  for (int i = 0; i < kLanes; ++i) pairs[i] = round_pair(x[2 * i], x[2 * i + 1]);
  return pairs;
}
KVC_SIMD_FN F32 scale(F32 x, F32 n) {
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_ldexpf(x[i], static_cast<int>(n[i]));
  return x;
}

}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/byte_dot.h"

#include "kernels/cpu/attention.inl"

#include "kernels/cpu/rows.inl"
