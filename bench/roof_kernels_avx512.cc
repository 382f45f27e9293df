// See roof_kernels.inl.
#include "kernels/cpu/simd/avx512.h"

#include "bench/roof_kernels.inl"

namespace kvcache::bench::avx512 {
namespace {

constexpr int kSums = 12;
constexpr int kTimes = 64;

[[gnu::target("avx512bf16")]] std::int64_t dot_bf16(std::int64_t rounds) {
  __m512 sums[kSums];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512i ones = _mm512_set1_epi16(0x3f80);
  asm volatile("" : "+v"(ones));
  const auto pairs = reinterpret_cast<__m512bh>(ones);
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int time = 0; time < kTimes; ++time) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], pairs, pairs);
    }
  }
  for (auto& sum : sums) KVC_KEEP(sum);
  return rounds * kTimes * kSums * 16 * 4;
}

[[gnu::target("avx512vnni")]] std::int64_t dot_int8(std::int64_t rounds) {
  __m512i sums[kSums];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  __m512i ones = _mm512_set1_epi8(1);
  asm volatile("" : "+v"(ones));
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int time = 0; time < kTimes; ++time) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], ones, ones);
    }
  }
  for (auto& sum : sums) KVC_KEEP(sum);
  return rounds * kTimes * kSums * 16 * 8;
}

}  // namespace

RoofKernels make_roof_kernels(bool has_bf16, bool has_vnni);
RoofKernels make_roof_kernels(bool has_bf16, bool has_vnni) {
  return {"avx512",
          512,
          read,
          fma,
          widen_f16,
          widen_bf16,
          has_bf16 ? dot_bf16 : nullptr,
          has_vnni ? dot_int8 : nullptr};
}

}  // namespace kvcache::bench::avx512
