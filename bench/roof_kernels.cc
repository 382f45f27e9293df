// The list of roof kernels of this build; which of them run here.
#include "bench/roof_kernels.h"

#include <cstring>
#include <string_view>

namespace kvcache::bench {

namespace portable {
extern const RoofKernels kRoofKernels;
}
#if KVC_ARM64
namespace neon {
extern const RoofKernels kRoofKernels;
}
#endif
#if KVC_X86_64
namespace avx2 {
extern const RoofKernels kRoofKernels;
}
namespace avx512 {
RoofKernels make_roof_kernels(bool has_bf16, bool has_vnni);
}
#endif

int all_roof_kernels(const RoofKernels* (&sets)[3]) {
  int count = 0;
#if KVC_X86_64
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    static const RoofKernels widest = avx512::make_roof_kernels(
        __builtin_cpu_supports("avx512bf16"), __builtin_cpu_supports("avx512vnni"));
    sets[count++] = &widest;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets[count++] = &avx2::kRoofKernels;
  }
#endif
#if KVC_ARM64
  sets[count++] = &neon::kRoofKernels;
#endif
  sets[count++] = &portable::kRoofKernels;
  return count;
}

const RoofKernels& roof_kernels(const char* backend) {
  const RoofKernels* sets[3];
  const int count = all_roof_kernels(sets);
  for (int i = 0; backend != nullptr && i < count; ++i) {
    if (std::strcmp(sets[i]->name, backend) == 0) return *sets[i];
  }
  return *sets[0];
}

}  // namespace kvcache::bench
