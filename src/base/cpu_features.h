// What this processor can do, as far as kernels ask.
#ifndef KVCACHE_SRC_BASE_CPU_FEATURES_H_
#define KVCACHE_SRC_BASE_CPU_FEATURES_H_

#include <cstdint>

namespace kvcache::internal {

// Each flag says that the instructions exist and that the system saves their registers.
struct CpuFeatures {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, VL and DQ, with avx2
  bool avx512_bf16 = false;
  bool avx512_vnni = false;
  bool neon = false;

  std::uint32_t amd_family = 0;  // 0x19: Zen 3 and Zen 4, told apart by model; 0: not AMD
  std::uint32_t model = 0;

  // Bytes of data or unified cache as the first core sees it; 0 where unknown.
  std::int64_t l1_bytes = 0;
  std::int64_t l2_bytes = 0;
  std::int64_t l3_bytes = 0;

  char name[64] = "unknown";  // "AMD EPYC ..."
};

// Asked once per process. Thread safety: may be called from any thread.
const CpuFeatures& cpu_features() noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_CPU_FEATURES_H_
