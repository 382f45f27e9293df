// The roofs over the vectors of KVC_SIMD. Included once per instruction set; see roof_kernels.h.
#include "bench/roof_kernels.h"

// A value that must exist in a register, at no further cost.
#if defined(__aarch64__)
#define KVC_KEEP(x) asm volatile("" ::"w"(x))
#elif defined(__AVX512F__)
#define KVC_KEEP(x) asm volatile("" ::"v"(x))
#else
#define KVC_KEEP(x) asm volatile("" ::"x"(x))
#endif

namespace kvcache::bench::KVC_SIMD {
namespace {

namespace simd = kvcache::internal::KVC_SIMD;
using simd::F32;
using simd::kLanes;

// Four streams: one core alone gets up to 1.4 times what a single one gives it (Zen 3).
void read(const void* from, std::int64_t bytes) {
  constexpr int kStreams = 4;
  constexpr int kVectors = 128 / KVC_SIMD_BYTES;  // two lines of cache
  const std::int64_t stream = bytes / kStreams / 4;
  const auto* at = static_cast<const float*>(from);
  for (const float* end = at + stream; at != end; at += kVectors * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        const F32 x = simd::load(at + s * stream + i * kLanes);
        KVC_KEEP(x);
      }
    }
  }
}

std::int64_t fma(std::int64_t rounds) {
  constexpr int kSums = 12;  // latency 4 at two a cycle, and some to spare; registers hold them
  constexpr int kTimes = 64;
  F32 sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = simd::set1(static_cast<float>(i));
  F32 factor = simd::set1(0.5f);
  F32 term = simd::set1(1.0f);
  asm volatile("" : "+m"(factor), "+m"(term));  // unknown to the compiler
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int time = 0; time < kTimes; ++time) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sums[i] = simd::fma(sums[i], factor, term);
    }
  }
  for (int i = 0; i < kSums; ++i) KVC_KEEP(sums[i]);
  return rounds * kTimes * kSums * kLanes * 2;
}

void widen_f16(const std::uint16_t* from, std::int64_t count) {
  for (const std::uint16_t* end = from + count; from != end; from += 4 * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const F32 x = simd::load_f16(from + i * kLanes);
      KVC_KEEP(x);
    }
  }
}

void widen_bf16(const std::uint16_t* from, std::int64_t count) {
  for (const std::uint16_t* end = from + count; from != end; from += 4 * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const F32 x = simd::load_bf16(from + i * kLanes);
      KVC_KEEP(x);
    }
  }
}

}  // namespace
}  // namespace kvcache::bench::KVC_SIMD
