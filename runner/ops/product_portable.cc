// See product.inl.
#include "kernels/cpu/simd/portable.h"
#include "kvcache/types.h"

namespace kvcache::runner::portable {
namespace {

using I16 = std::int16_t __attribute__((vector_size(KVC_SIMD_BYTES)));
using I32 = std::int32_t __attribute__((vector_size(KVC_SIMD_BYTES)));

KVC_SIMD_FN I16 widen_i8(const std::int8_t* p) {
  std::int8_t __attribute__((vector_size(KVC_SIMD_BYTES / 2))) x;
  __builtin_memcpy(&x, p, sizeof(x));
  return __builtin_convertvector(x, I16);
}
// Lane i: the products of the elements 2 i and 2 i + 1. (Little-endian.)
KVC_SIMD_FN I32 add_pairs(I32 sum, I16 a, I16 b) {
  const auto even = [](I16 x) { return ((I32)x << 16) >> 16; };
  const auto odd = [](I16 x) { return (I32)x >> 16; };
  return sum + even(a) * even(b) + odd(a) * odd(b);
}
KVC_SIMD_FN internal::portable::F32 round_f16(internal::portable::F32 x) {
  for (int i = 0; i < internal::portable::kLanes; ++i) x[i] = to_float(to_float16(x[i]));
  return x;
}

}  // namespace
}  // namespace kvcache::runner::portable

#include "runner/ops/product.inl"

namespace kvcache::runner {

const Products kPortableProducts = portable::make_products("portable");

}  // namespace kvcache::runner
