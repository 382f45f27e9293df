// See product.inl, and product.h for LibraryOrder. Dot instructions are written as
// assembly, as no compiler flag of this file grants them.
#include "kernels/cpu/simd/avx512.h"

namespace kvcache::runner::avx512 {
namespace {

using I16 = short __attribute__((vector_size(64)));
using I32 = int __attribute__((vector_size(64)));

KVC_SIMD_FN I16 widen_i8(const signed char* p) {
  return (I16)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
KVC_SIMD_FN I32 add_pairs(I32 sum, I16 a, I16 b) {
  return sum + (I32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
KVC_SIMD_FN __m512 round_f16(__m512 x) {
  return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace
}  // namespace kvcache::runner::avx512

#include "runner/ops/product.inl"
#include "runner/ops/product_vnni.inl"

namespace kvcache::runner::avx512 {
namespace {

// The order of oneDNN: a sum runs over k in ascending order, one multiply-add (or dot of a pair) at
// a time, from zero anew at multiples of a cut; the pieces are added in order. Lanes are outputs: a
// square block of weights is transposed in registers on the way in. Two vectors of outputs at a
// time read W once and stream.
constexpr int kGroups = 2;
constexpr int kWide = kGroups * kLanes;
constexpr int64_t library_cut(int64_t in) { return in <= 1024 ? 512 : 1024; }

// Asks for a line of each of kLanes rows, 512 bytes further along or, past their end, at the
// start of the rows kWide further down. To L2: on Zen 4 that reads at 0.9 of the roof, while to L1
// or not at all reads at 0.4 - 0.6.
template <typename Element>
KVC_SIMD_FN void prefetch_block(const Element* row, int64_t in, int64_t k) {
  const int64_t ahead = k + 512 / static_cast<int64_t>(sizeof(Element));
  const int64_t offset = ahead < in ? ahead : kWide * in + ahead - in;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) __builtin_prefetch(row + i * in + offset, 0, 2);
}

KVC_SIMD_FN void put_lanes(float* y, F32 x, int64_t n, bool first) {
  const auto mask = static_cast<__mmask16>(n >= kLanes ? 0xffff : (1 << n) - 1);
  if (!first) x = _mm512_maskz_loadu_ps(mask, y) + x;
  _mm512_mask_storeu_ps(y, mask, x);
}

// What a 4-byte lane of a transposed block holds: one float, or a pair of bf16.
struct OneF32 {
  using Element = float;
  static constexpr int kInputs = 1;
  [[gnu::always_inline]] static F32 load_upto(const float* p, int64_t n) {
    const auto mask = static_cast<__mmask16>(n >= kLanes ? 0xffff : (1 << n) - 1);
    return _mm512_maskz_loadu_ps(mask, p);
  }
  [[gnu::always_inline]] static F32 add(F32 sum, const float* x, int64_t, F32 w) {
    return fma(set1(*x), w, sum);
  }
};
struct PairBf16 {
  using Element = uint16_t;
  static constexpr int kInputs = 2;
  [[gnu::always_inline]] static F32 load_upto(const uint16_t* p, int64_t n) {
    const auto mask = static_cast<__mmask32>((std::uint64_t{1} << min_of(n, 32)) - 1);
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
  }
  // `left` inputs from x on.
  [[gnu::always_inline]] static F32 add(F32 sum, const uint16_t* x, int64_t left, F32 w) {
    const uint16_t halves[2] = {x[0], left > 1 ? x[1] : uint16_t{0}};
    int pair;
    __builtin_memcpy(&pair, halves, sizeof(pair));
    const __m512i pairs = _mm512_set1_epi32(pair);
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(pairs), "v"(w));
    return sum;
  }
};

template <typename Kind>
[[gnu::always_inline]] inline void library_order(const typename Kind::Element* x,
                                                 const typename Kind::Element* weight, int64_t in,
                                                 int64_t outs, float* y) {
  constexpr int64_t kStep = Kind::kInputs * kLanes;
  const int64_t cut = library_cut(in);
  for (int64_t o = 0; o < outs; o += kWide, weight += kWide * in, y += kWide) {
    const int64_t wide = min_of(kWide, outs - o);
    for (int64_t begin = 0; begin < in; begin += cut) {
      const int64_t end = min_of(begin + cut, in);
      F32 sums[kGroups] = {};
      for (int64_t k = begin; k < end; k += kStep) {
        const int64_t count = min_of(kStep, end - k);
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
          const int64_t first = min_of(g * kLanes, wide - 1);
          const int64_t last = wide - 1 - first;
          F32 w[kLanes];
          if (wide == kWide) prefetch_block(weight + first * in, in, k);
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) {
            w[i] = Kind::load_upto(weight + (first + min_of(i, last)) * in + k, count);
          }
          transpose(w);
          if (count == kStep) {
#pragma GCC unroll 16
            for (int j = 0; j < kLanes; ++j) {
              sums[g] = Kind::add(sums[g], x + k + Kind::kInputs * j, Kind::kInputs, w[j]);
            }
          } else {
            for (int j = 0; Kind::kInputs * j < count; ++j) {
              const int64_t at = Kind::kInputs * j;
              sums[g] = Kind::add(sums[g], x + k + at, count - at, w[j]);
            }
          }
        }
      }
      for (int g = 0; g < kGroups; ++g) {
        if (wide > g * kLanes) {
          put_lanes(y + g * kLanes, sums[g], wide - g * kLanes, begin == 0);
        }
      }
    }
  }
}

void library_order_f32(const float* x, const float* weight, int64_t in, int64_t outs,
                       float* y) noexcept {
  library_order<OneF32>(x, weight, in, outs, y);
}
void library_order_bf16(const uint16_t* x, const uint16_t* weight, int64_t in, int64_t outs,
                        float* y) noexcept {
  library_order<PairBf16>(x, weight, in, outs, y);
}

// What an instruction set beyond AVX-512 adds.
constexpr Products products_of(const char* name, bool vnni, bool bf16) {
  Products products = make_products(name);
  if (vnni) {
    products.int8 = {stage_planes<TwoPlanes>, product_of_planes<TwoPlanes>};
    products.int8_by_int8 = {stage_planes<OnePlane>, product_of_planes<OnePlane>};
  }
  products.library_order = {library_order_f32, bf16 ? library_order_bf16 : nullptr};
  return products;
}

}  // namespace
}  // namespace kvcache::runner::avx512

namespace kvcache::runner {

const Products kAvx512Products = avx512::products_of("avx512", false, false);
const Products kAvx512VnniProducts = avx512::products_of("avx512-vnni", true, false);
const Products kAvx512Bf16Products = avx512::products_of("avx512-bf16", true, true);

}  // namespace kvcache::runner
