// SIMD for arm64: NEON with fused multiply-add and f16 conversion, all of the base architecture.
#ifndef KVCACHE_SRC_KERNELS_CPU_SIMD_NEON_H_
#define KVCACHE_SRC_KERNELS_CPU_SIMD_NEON_H_

#include <arm_neon.h>

#define KVC_SIMD neon
#define KVC_SIMD_BYTES 16
#define KVC_SIMD_FUSED 1

#include "kernels/cpu/simd/common.inl"

namespace kvcache::internal::KVC_SIMD {

KVC_SIMD_FN F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
// Not vmaxq_f32 and vminq_f32, which take the NaN from either side.
KVC_SIMD_FN F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
KVC_SIMD_FN F32 min(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }

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

KVC_SIMD_FN void store_f16(std::uint16_t* to, F32 x) {
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(x)));
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

KVC_SIMD_FN void widen_codes(Codes codes, F32* to) {
  const int8x16_t x = reinterpret_cast<int8x16_t>(codes);
  const int16x8_t low = vmovl_s8(vget_low_s8(x));
  const int16x8_t high = vmovl_s8(vget_high_s8(x));
  to[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
  to[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
  to[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
  to[3] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
}
KVC_SIMD_FN Codes narrow_codes(const S32* x) {
  int16x4_t words[4];
  for (int i = 0; i < 4; ++i) words[i] = vmovn_s32(reinterpret_cast<int32x4_t>(x[i]));
  return reinterpret_cast<Codes>(vcombine_s8(vmovn_s16(vcombine_s16(words[0], words[1])),
                                             vmovn_s16(vcombine_s16(words[2], words[3]))));
}
KVC_SIMD_FN F32 repeat_f16(const std::uint16_t* from) { return set1(load_f16_n(from, 1)[0]); }
KVC_SIMD_FN void widen_halves(const Words& halves, F32* to) {
  std::uint16_t x[16];
  __builtin_memcpy(x, &halves, sizeof(x));
#pragma GCC unroll 4
  for (int i = 0; i < 16 / kLanes; ++i) to[i] = load_f16(x + i * kLanes);
}
KVC_SIMD_FN Codes look_up(Codes table, Codes codes) {
  return reinterpret_cast<Codes>(
      vqtbl1q_s8(reinterpret_cast<int8x16_t>(table), reinterpret_cast<uint8x16_t>(codes)));
}

}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/simd/math.inl"

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_NEON_H_
