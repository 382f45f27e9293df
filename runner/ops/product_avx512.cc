// See product.inl. The dot instruction is AVX512-BF16, which no compiler flag of this file grants.
#include "kernels/cpu/simd/avx512.h"

#include "runner/ops/product.inl"

namespace kvcache::runner::avx512 {
namespace {

#define KVC_BF16_FN [[gnu::target("avx512bf16")]]

// As vector_group, with pairs of inputs where it has inputs.
KVC_BF16_FN void dot_group(const uint16_t* x, const uint16_t* weight, int64_t in, int64_t outs,
                           float* y) noexcept {
  constexpr int64_t kPair = 2;
  constexpr int64_t kStep = kPair * kLanes;
  const int64_t cut = sum_cut(in);
  const int64_t last = outs - 1;
  for (int64_t begin = 0; begin < in; begin += cut) {
    const int64_t end = min_of(begin + cut, in);
    __m512 sums[kGroups];
    for (int g = 0; g < kGroups; ++g) sums[g] = _mm512_setzero_ps();
    for (int64_t k = begin; k < end; k += kStep) {
      const int64_t count = min_of(kStep, end - k);
      const auto mask = static_cast<__mmask32>((std::uint64_t{1} << count) - 1);
      const int pairs = static_cast<int>((count + 1) / kPair);
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const int64_t first = min_of(g * kLanes, last);
        F32 w[kLanes];
        if (outs == kWide) prefetch_block(weight + first * in, in, k);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const uint16_t* row = weight + (first + min_of(i, last - first)) * in + k;
          w[i] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, row));
        }
        transpose(w);
        if (count == kStep) {
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) {
            int pair;
            __builtin_memcpy(&pair, x + k + kPair * j, sizeof(pair));
            sums[g] = _mm512_dpbf16_ps(sums[g], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w[j]);
          }
        } else {
          for (int j = 0; j < pairs; ++j) {
            uint16_t halves[2] = {x[k + kPair * j], 0};
            if (kPair * j + 1 < count) halves[1] = x[k + kPair * j + 1];
            int pair;
            __builtin_memcpy(&pair, halves, sizeof(pair));
            sums[g] = _mm512_dpbf16_ps(sums[g], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w[j]);
          }
        }
      }
    }
    for (int g = 0; g < kGroups; ++g) {
      if (outs > g * kLanes) put(y + g * kLanes, sums[g], outs - g * kLanes, begin == 0);
    }
  }
}

void bf16_dot(const SliceProduct& p, const uint16_t* x_bf16) noexcept {
  const auto* weight = static_cast<const uint16_t*>(p.weight);
  for (int64_t o = 0; o < p.outs; o += kWide) {
    dot_group(x_bf16, weight + o * p.in, p.in, min_of(kWide, p.outs - o), p.y + o);
  }
}

}  // namespace
}  // namespace kvcache::runner::avx512

namespace kvcache::runner {

const Products kAvx512Products = {"avx512", avx512::product<avx512::StoredF32>,
                                  avx512::product<avx512::StoredBf16>,
                                  avx512::product<avx512::StoredF16>, nullptr};

const Products kAvx512Bf16Products = {"avx512-bf16", avx512::product<avx512::StoredF32>,
                                      avx512::product<avx512::StoredBf16>,
                                      avx512::product<avx512::StoredF16>, avx512::bf16_dot};

}  // namespace kvcache::runner
