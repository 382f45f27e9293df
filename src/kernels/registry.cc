// The list of backends of this build.
#include <cstring>

#include "base/cpu_features.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/kernel_table.h"

namespace kvcache::internal {
namespace {

struct List {
  Backend backends[6];

  List() {
    backends[0] = {"avx512bf16", "as avx512; prefill over bf16 rows by dot products of bf16 pairs",
                   false, "not an x86-64 build", nullptr};
    backends[1] = {"avx512", "f32 arithmetic in 512 bits", false, "not an x86-64 build", nullptr};
    backends[2] = {"avx2", "f32 arithmetic in 256 bits, fused multiply-add", false,
                   "not an x86-64 build", nullptr};
    backends[3] = {"neon", "f32 arithmetic in 128 bits, fused multiply-add", false,
                   "not an arm64 build", nullptr};
    backends[4] = {"portable", "f32 arithmetic in the vectors of the platform's baseline", true,
                   "runs everywhere", &portable::attention_kernels()};
    backends[5] = {"reference", "the definition in float64: slow, readable, the oracle of the rest",
                   true, "runs everywhere", nullptr};
#if KVC_ARM64
    backends[3].available = true;
    backends[3].reason = "every arm64 processor has NEON";
    backends[3].attention = &neon::attention_kernels();
#endif
#if KVC_X86_64
    const CpuFeatures& cpu = cpu_features();
    backends[0].available = cpu.avx512_bf16;
    backends[0].reason = cpu.avx512_bf16 ? "the processor has AVX-512 F, BW, VL and BF16"
                                         : "the processor lacks AVX-512 F, BW, VL or BF16";
    backends[0].attention = &avx512bf16::attention_kernels();
    backends[1].available = cpu.avx512;
    backends[1].reason = cpu.avx512 ? "the processor has AVX-512 F, BW and VL"
                                    : "the processor lacks AVX-512 F, BW or VL";
    backends[1].attention = &avx512::attention_kernels();
    backends[2].available = cpu.avx2;
    backends[2].reason =
        cpu.avx2 ? "the processor has AVX2, FMA and F16C" : "the processor lacks AVX2, FMA or F16C";
    backends[2].attention = &avx2::attention_kernels();
#endif
  }
};

constexpr std::int32_t kCount = sizeof(List::backends) / sizeof(Backend);

}  // namespace

const Backend* all_backends(std::int32_t* count) noexcept {
  static const List list;
  *count = kCount;
  return list.backends;
}

const Backend* find_backend(const char* name) noexcept {
  std::int32_t count = 0;
  const Backend* backends = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    if (std::strcmp(backends[i].name, name) == 0) return &backends[i];
  }
  return nullptr;
}

}  // namespace kvcache::internal
