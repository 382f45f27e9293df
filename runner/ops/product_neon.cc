// See product.inl.
#include "kernels/cpu/simd/neon.h"

namespace kvcache::runner::neon {
namespace {

using I16 = short __attribute__((vector_size(16)));
using I32 = int __attribute__((vector_size(16)));

KVC_SIMD_FN I16 widen_i8(const signed char* p) { return (I16)vmovl_s8(vld1_s8(p)); }
KVC_SIMD_FN I32 add_pairs(I32 sum, I16 a, I16 b) {
  const int32x4_t low =
      vmlal_s16((int32x4_t)sum, vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  return (I32)vmlal_high_s16(low, (int16x8_t)a, (int16x8_t)b);
}
KVC_SIMD_FN internal::neon::F32 round_f16(internal::neon::F32 x) {
  return vcvt_f32_f16(vcvt_f16_f32(x));
}

}  // namespace
}  // namespace kvcache::runner::neon

#include "runner/ops/product.inl"

namespace kvcache::runner {

const Products kNeonProducts = neon::make_products("neon");

}  // namespace kvcache::runner
