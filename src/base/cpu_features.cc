#include "base/cpu_features.h"

#include <cstdio>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#define KVC_HAS_CPUID 1
#include <cpuid.h>
#else
#define KVC_HAS_CPUID 0
#endif
#if defined(__linux__)
#include <unistd.h>
#endif

namespace kvcache::internal {
namespace {

#if KVC_HAS_CPUID

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// Zeros for a leaf that the processor does not have.
Leaf leaf_of(unsigned leaf, unsigned subleaf) noexcept {
  Leaf out;
  if (__get_cpuid_count(leaf, subleaf, &out.eax, &out.ebx, &out.ecx, &out.edx) == 0) return {};
  return out;
}

bool bit(unsigned word, int index) noexcept { return ((word >> index) & 1u) != 0; }

// Which register files the system saves (XCR0). The instruction is spelled in assembler because
// its intrinsic would need -mxsave for this file.
std::uint64_t saved_state() noexcept {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

void detect(CpuFeatures* cpu) noexcept {
  const Leaf basic = leaf_of(1, 0);
  const Leaf extended = leaf_of(7, 0);
  const Leaf extended1 = extended.eax >= 1 ? leaf_of(7, 1) : Leaf{};
  const bool osxsave = bit(basic.ecx, 27);
  const std::uint64_t saved = osxsave ? saved_state() : 0;
  const bool ymm = (saved & 0x6) == 0x6;    // XMM and YMM
  const bool zmm = (saved & 0xe6) == 0xe6;  // and masks, and both halves of ZMM

  cpu->avx2 =
      ymm && bit(basic.ecx, 28) && bit(basic.ecx, 12) && bit(basic.ecx, 29) && bit(extended.ebx, 5);
  cpu->avx512 = cpu->avx2 && zmm && bit(extended.ebx, 16) && bit(extended.ebx, 17) &&
                bit(extended.ebx, 30) && bit(extended.ebx, 31);
  cpu->avx512_vnni = cpu->avx512 && bit(extended.ecx, 11);
  cpu->avx512_bf16 = cpu->avx512 && bit(extended1.eax, 5);

  const Leaf vendor = leaf_of(0, 0);
  const bool amd = vendor.ebx == 0x68747541u && vendor.edx == 0x69746e65u;  // "Auth" "enti"
  if (amd) cpu->amd_family = ((basic.eax >> 8) & 0xf) + ((basic.eax >> 20) & 0xff);
  cpu->model = ((basic.eax >> 4) & 0xf) | ((basic.eax >> 12) & 0xf0);

  if (leaf_of(0x80000000u, 0).eax >= 0x80000004u) {
    char name[48 + 1] = {};
    for (std::size_t part = 0; part < 3; ++part) {
      const Leaf words = leaf_of(0x80000002u + static_cast<unsigned>(part), 0);
      std::memcpy(name + 16 * part, &words, 16);
    }
    const char* start = name;
    while (*start == ' ') ++start;
    std::size_t length = std::strlen(start);
    while (length > 0 && start[length - 1] == ' ') --length;
    if (length > 0) {
      std::snprintf(cpu->name, sizeof(cpu->name), "%.*s", static_cast<int>(length), start);
    }
  }
}

#else

void detect(CpuFeatures* cpu) noexcept {
#if defined(__aarch64__)
  cpu->neon = true;  // part of the base architecture
  std::snprintf(cpu->name, sizeof(cpu->name), "arm64");
#else
  (void)cpu;
#endif
}

#endif

#if defined(_SC_LEVEL1_DCACHE_SIZE)
std::int64_t cache_bytes(int name) noexcept {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : 0;
}
#endif

}  // namespace

const CpuFeatures& cpu_features() noexcept {
  static const CpuFeatures features = [] {
    CpuFeatures cpu;
    detect(&cpu);
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    cpu.l1_bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE);
    cpu.l2_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE);
    cpu.l3_bytes = cache_bytes(_SC_LEVEL3_CACHE_SIZE);
#endif
    return cpu;
  }();
  return features;
}

}  // namespace kvcache::internal
