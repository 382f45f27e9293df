#include "runner/ops/product.h"

#include <initializer_list>

namespace kvcache::runner {

bool available(const Products& products) {
#if KVC_X86_64
  // The builtin also asks whether the system saves the registers.
  if (&products == &kAvx2Products) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
  if (&products == &kAvx512Products) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  }
  if (&products == &kAvx512VnniProducts) {
    return available(kAvx512Products) && __builtin_cpu_supports("avx512vnni");
  }
  if (&products == &kAvx512Bf16Products) {
    return available(kAvx512VnniProducts) && __builtin_cpu_supports("avx512bf16");
  }
#elif KVC_ARM64
  if (&products == &kNeonProducts) return true;
#endif
  return &products == &kPortableProducts;
}

const Products& products() {
  static const Products& best = []() -> const Products& {
#if KVC_X86_64
    for (const Products* candidate :
         {&kAvx512Bf16Products, &kAvx512VnniProducts, &kAvx512Products, &kAvx2Products}) {
      if (available(*candidate)) return *candidate;
    }
#endif
#if KVC_ARM64
    return kNeonProducts;
#else
    return kPortableProducts;
#endif
  }();
  return best;
}

}  // namespace kvcache::runner
