// The products of product.h: the algorithm, once. A short file per instruction set includes it
// after its simd header; everything has internal linkage.
//
// Lanes are outputs: a square block of W, kLanes outputs by kLanes inputs, is transposed in
// registers on the way in, so that every output is one chain of multiply-adds over k and no sum
// goes across lanes. One row reads W once and streams; many rows transpose a panel of W [k, kWide]
// into scratch that stays in L2, and run register tiles of kTileRows x kWide over it.
// Cost: rows * outs * in multiply-adds, outs * in weights read once.
#include "runner/ops/product.h"

namespace kvcache::runner::KVC_SIMD {
namespace {

using namespace internal::KVC_SIMD;
using std::int64_t;
using std::uint16_t;

constexpr int kGroups = 2;  // vectors of outputs side by side
constexpr int kWide = kGroups * kLanes;
constexpr int kTileRows = kLanes == 16 ? 12 : 4;
static_assert(kPanelFloats >= 1024 * kWide);

KVC_SIMD_FN int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

struct StoredF32 {
  using Element = float;
  KVC_SIMD_FN F32 load_all(const float* p) { return load(p); }
  KVC_SIMD_FN F32 load_some(const float* p, int n) { return load_n(p, n); }
};
struct StoredBf16 {
  using Element = uint16_t;
  KVC_SIMD_FN F32 load_all(const uint16_t* p) { return load_bf16(p); }
  KVC_SIMD_FN F32 load_some(const uint16_t* p, int n) { return load_bf16_n(p, n); }
};
struct StoredF16 {
  using Element = uint16_t;
  KVC_SIMD_FN F32 load_all(const uint16_t* p) { return load_f16(p); }
  KVC_SIMD_FN F32 load_some(const uint16_t* p, int n) { return load_f16_n(p, n); }
};

// Inputs k .. k + kLanes of kLanes outputs, transposed: w[j] holds input k + j of each. Outputs
// past `last` repeat it.
template <typename Stored>
KVC_SIMD_FN void load_block(const typename Stored::Element* weight, int64_t in, int64_t last,
                            F32 (&w)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) w[i] = Stored::load_all(weight + min_of(i, last) * in);
  transpose(w);
}
template <typename Stored>
KVC_SIMD_FN void load_block_n(const typename Stored::Element* weight, int64_t in, int64_t last,
                              int n, F32 (&w)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) w[i] = Stored::load_some(weight + min_of(i, last) * in, n);
  transpose(w);
}

// Asks for what comes later: kPrefetch bytes further along each of kLanes rows or, past their end,
// the first bytes of the rows kWide further down. So many rows at once are more than a processor
// foresees by itself. To L2 (locality 2): on Zen 4 that reads at 0.9 of the roof, while to L1 or
// not at all reads at 0.4 - 0.6. It may run past the weights: prefetches do not fault.
constexpr int64_t kPrefetch = 512;
template <typename Element>
KVC_SIMD_FN void prefetch_block(const Element* row, int64_t in, int64_t k) {
  const int64_t ahead = k + kPrefetch / static_cast<int64_t>(sizeof(Element));
  const int64_t offset = ahead < in ? ahead : kWide * in + ahead - in;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) __builtin_prefetch(row + i * in + offset, 0, 2);
}

// The first n lanes of x, added to what is there unless it is the first piece of the sums.
KVC_SIMD_FN void put(float* y, F32 x, int64_t n, bool first) {
  if (n >= kLanes) {
    store(y, first ? x : load(y) + x);
    return;
  }
  float lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < n; ++i) y[i] = first ? lanes[i] : y[i] + lanes[i];
}

// One row times kWide outputs.
template <typename Stored>
KVC_SIMD_FN void vector_group(const float* x, const typename Stored::Element* weight, int64_t in,
                              int64_t outs, float* y) {
  const int64_t cut = sum_cut(in);
  const int64_t last = outs - 1;
  for (int64_t begin = 0; begin < in; begin += cut) {
    const int64_t end = min_of(begin + cut, in);
    F32 sums[kGroups];
    for (int g = 0; g < kGroups; ++g) sums[g] = zero();
    int64_t k = begin;
    for (; k + kLanes <= end; k += kLanes) {
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const int64_t first = min_of(g * kLanes, last);
        F32 w[kLanes];
        if (outs == kWide && k * sizeof(typename Stored::Element) % 64 == 0) {
          prefetch_block(weight + first * in, in, k);
        }
        load_block<Stored>(weight + first * in + k, in, last - first, w);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) sums[g] = fma(set1(x[k + j]), w[j], sums[g]);
      }
    }
    const int rest = static_cast<int>(end - k);
    for (int g = 0; g < kGroups && rest > 0; ++g) {
      const int64_t first = min_of(g * kLanes, last);
      F32 w[kLanes];
      load_block_n<Stored>(weight + first * in + k, in, last - first, rest, w);
      for (int j = 0; j < rest; ++j) sums[g] = fma(set1(x[k + j]), w[j], sums[g]);
    }
    for (int g = 0; g < kGroups; ++g) {
      if (outs > g * kLanes) put(y + g * kLanes, sums[g], outs - g * kLanes, begin == 0);
    }
  }
}

// kRows rows times the panel of inputs begin .. end.
template <int kRows>
KVC_SIMD_FN void tile(const float* x, int64_t in, const float* panel, int64_t count, int64_t outs,
                      float* y, int64_t y_stride, bool first) {
  F32 sums[kRows][kGroups];
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) sums[r][g] = zero();
  }
  for (int64_t k = 0; k < count; ++k) {
    F32 w[kGroups];
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) w[g] = load(panel + k * kWide + g * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const F32 factor = set1(x[r * in + k]);
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) sums[r][g] = fma(factor, w[g], sums[r][g]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) {
      const int64_t n = outs - g * kLanes;
      if (n > 0) put(y + r * y_stride + g * kLanes, sums[r][g], n, first);
    }
  }
}

template <typename Stored>
void pack_panel(const typename Stored::Element* weight, int64_t in, int64_t outs, int64_t count,
                float* panel) {
  for (int64_t k = 0; k < count; k += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, count - k));
    for (int g = 0; g < kGroups; ++g) {
      const int64_t first = min_of(g * kLanes, outs - 1);
      F32 w[kLanes];
      if (n == kLanes) {
        load_block<Stored>(weight + first * in + k, in, outs - 1 - first, w);
      } else {
        load_block_n<Stored>(weight + first * in + k, in, outs - 1 - first, n, w);
      }
      for (int j = 0; j < n; ++j) store(panel + (k + j) * kWide + g * kLanes, w[j]);
    }
  }
}

template <typename Stored>
void matrix_group(const SliceProduct& p, const typename Stored::Element* weight, int64_t outs,
                  float* y) {
  const int64_t cut = sum_cut(p.in);
  for (int64_t begin = 0; begin < p.in; begin += cut) {
    const int64_t count = min_of(cut, p.in - begin);
    pack_panel<Stored>(weight + begin, p.in, outs, count, p.panel);
    const float* x = p.x + begin;
    float* to = y;
    int64_t rows = p.rows;
    for (; rows >= kTileRows; rows -= kTileRows) {
      tile<kTileRows>(x, p.in, p.panel, count, outs, to, p.y_stride, begin == 0);
      x += kTileRows * p.in;
      to += kTileRows * p.y_stride;
    }
    for (; rows >= 3; rows -= 3) {
      tile<3>(x, p.in, p.panel, count, outs, to, p.y_stride, begin == 0);
      x += 3 * p.in;
      to += 3 * p.y_stride;
    }
    for (; rows >= 1; --rows) {
      tile<1>(x, p.in, p.panel, count, outs, to, p.y_stride, begin == 0);
      x += p.in;
      to += p.y_stride;
    }
  }
}

template <typename Stored>
void product(const SliceProduct& p) noexcept {
  const auto* weight = static_cast<const typename Stored::Element*>(p.weight);
  for (int64_t o = 0; o < p.outs; o += kWide) {
    const int64_t outs = min_of(kWide, p.outs - o);
    if (p.rows == 1) {
      vector_group<Stored>(p.x, weight + o * p.in, p.in, outs, p.y + o);
    } else {
      matrix_group<Stored>(p, weight + o * p.in, outs, p.y + o);
    }
  }
}

}  // namespace
}  // namespace kvcache::runner::KVC_SIMD
