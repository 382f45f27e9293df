// SIMD for arm64: NEON with fused multiply-add and f16 conversion, all of the base architecture.
#ifndef KVCACHE_SRC_KERNELS_CPU_SIMD_NEON_H_
#define KVCACHE_SRC_KERNELS_CPU_SIMD_NEON_H_

#include <arm_neon.h>

#define KVC_SIMD neon
#define KVC_SIMD_BYTES 16

#include "kernels/cpu/simd/common.inl"

namespace kvcache::internal::KVC_SIMD {

KVC_SIMD_FN F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
// Not vmaxq_f32, which takes the NaN from either side.
KVC_SIMD_FN F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

KVC_SIMD_FN F32 choose(std::uint32_t bits, F32 a, F32 b) {
  const uint32x4_t lane = {1, 2, 4, 8};
  return vbslq_f32(vtstq_u32(vdupq_n_u32(bits), lane), a, b);
}

KVC_SIMD_FN F32 load_bf16(const std::uint16_t* from) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(from)), 16));
}
KVC_SIMD_FN F32 load_f16(const std::uint16_t* from) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}

KVC_SIMD_FN F32 load_n(const float* from, int n) {
  float lanes[kLanes] = {};
  __builtin_memcpy(lanes, from, static_cast<unsigned long>(n) * sizeof(float));
  return load(lanes);
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

}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/simd/math.inl"

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_NEON_H_
