// See product.inl.
#include "kernels/cpu/simd/avx2.h"

namespace kvcache::runner::avx2 {
namespace {

using I16 = short __attribute__((vector_size(32)));
using I32 = int __attribute__((vector_size(32)));

KVC_SIMD_FN I16 widen_i8(const signed char* p) {
  return (I16)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
KVC_SIMD_FN I32 add_pairs(I32 sum, I16 a, I16 b) {
  return sum + (I32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
KVC_SIMD_FN __m256 round_f16(__m256 x) {
  return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace
}  // namespace kvcache::runner::avx2

#include "runner/ops/product.inl"

namespace kvcache::runner {

const Products kAvx2Products = avx2::make_products("avx2");

}  // namespace kvcache::runner
