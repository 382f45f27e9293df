// The products over int8 weights by vpdpbusd, which adds four products of unsigned and signed bytes
// to an int32. Part of product_avx512.cc; written as assembly, as no compiler flag of that file
// grants it.
//
// Weights are the unsigned operand, w + 128, and inputs the signed one, a plane of bytes at a time:
//   sum w x = 256 sum (w + 128) high + sum (w + 128) low - 128 sum x      (two planes: 16 bits)
//   sum w x = sum over groups of m sum (w + 128) x_8  - 128 sum x         (one plane: 8 bits)
// in integers modulo 2^32; the result fits, so it is exact, the same as that of 16 bit integers,
// and free to be computed in any order. Up to kRowsAsStored rows take the weights as they are
// stored, lanes along the inputs as in product.inl. More rows take a panel whose lanes are outputs:
// nothing is folded, and an input of four bytes is spread to all lanes. Cost: rows * outs * in
// products of bytes for each plane, 64 of them an instruction.
namespace kvcache::runner::avx512 {
namespace {

using Bytes = signed char __attribute__((vector_size(64)));
using U128 = std::uint32_t __attribute__((vector_size(16)));

constexpr int64_t kInputs = 64;        // of a vector of bytes
constexpr int64_t kStagedBytes = 128;  // that hold them: a plane, and the other or two factors
constexpr int64_t kRowsAsStored = 8;
constexpr int kVectors = 2;  // of outputs in a panel
constexpr int64_t kWideOuts = kVectors * kLanes;
constexpr int64_t kWords = kSumCut / 4;  // of four inputs
static_assert(kPanelFloats >= kWideOuts * kWords);

// By value: a reference would keep the sums in memory.
KVC_SIMD_FN U32 dot(U32 sum, Bytes weights, Bytes inputs) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(inputs));
  return sum;
}
KVC_SIMD_FN Bytes flip(__m512i weights) {
  return (Bytes)_mm512_xor_si512(weights, _mm512_set1_epi8(-128));
}
KVC_SIMD_FN Bytes load_bytes(const int8_t* p) {
  Bytes x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
KVC_SIMD_FN Bytes spread_word(const int8_t* p) {
  int word;
  __builtin_memcpy(&word, p, sizeof(word));
  return (Bytes)_mm512_set1_epi32(word);
}
KVC_SIMD_FN U32 spread_factor(const int8_t* p) { return (U32)spread_word(p); }

// One by one: an initialiser would keep the sums in memory.
template <int kRows, int kColumns, int kSums>
KVC_SIMD_FN void clear(U32 (&sums)[kRows][kColumns][kSums]) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 2
      for (int s = 0; s < kSums; ++s) sums[r][c][s] = U32{};
    }
  }
}

// [64 high bytes][64 low bytes] of 64 inputs.
struct TwoPlanes {
  static constexpr bool kEight = false;
  static constexpr int kSums = 2;      // of the high bytes, of the low ones
  static constexpr int kTileRows = 6;  // by kVectors vectors of outputs, two sums each
  struct Input {
    Bytes high, low;
  };
  KVC_SIMD_FN void put(int8_t* line, int64_t at, U32 x, std::uint32_t) {
    const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32((__m512i)x, 24), 24);
    const __m512i high = _mm512_srai_epi32(_mm512_sub_epi32((__m512i)x, low), 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(line + at), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(line + kInputs + at), _mm512_cvtepi32_epi8(low));
  }
  KVC_SIMD_FN Input load(const int8_t* line) {
    return {load_bytes(line), load_bytes(line + kInputs)};
  }
  KVC_SIMD_FN void add(U32 (&sum)[kSums], Bytes w, const Input& x) {
    sum[0] = dot(sum[0], w, x.high);
    sum[1] = dot(sum[1], w, x.low);
  }
  KVC_SIMD_FN U32 total(const U32 (&sum)[kSums]) { return (sum[0] << 8) + sum[1]; }

  template <int kRows>
  KVC_SIMD_FN void add_line(const int8_t* x, int64_t stride, const Bytes* panel,
                            U32 (&sums)[kRows][kVectors][kSums]) {
    for (int64_t word = 0; word < kInputs / 4; ++word) {
      const Bytes w[kVectors] = {panel[kVectors * word], panel[kVectors * word + 1]};
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const int8_t* at = x + r * stride + 4 * word;
        const Bytes high = spread_word(at);
        sums[r][0][0] = dot(sums[r][0][0], w[0], high);
        sums[r][1][0] = dot(sums[r][1][0], w[1], high);
        const Bytes low = spread_word(at + kInputs);
        sums[r][0][1] = dot(sums[r][0][1], w[0], low);
        sums[r][1][1] = dot(sums[r][1][1], w[1], low);
      }
    }
  }
};

// [64 bytes][two factors] of two groups of 32 inputs.
struct OnePlane {
  static constexpr bool kEight = true;
  static constexpr int kSums = 1;
  static constexpr int kTileRows = 6;
  struct Input {
    Bytes bytes;
    U32 factors;
  };
  KVC_SIMD_FN void put(int8_t* line, int64_t at, U32 x, std::uint32_t m) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(line + at), _mm512_cvtepi32_epi8((__m512i)x));
    __builtin_memcpy(line + kInputs + at / kGroupInputs * 4, &m, sizeof(m));
  }
  KVC_SIMD_FN Input load(const int8_t* line) {
    const __m512i first = (__m512i)spread_factor(line + kInputs);
    const __m512i second = (__m512i)spread_factor(line + kInputs + 4);
    return {load_bytes(line), (U32)_mm512_mask_mov_epi32(first, 0xff00, second)};
  }
  KVC_SIMD_FN void add(U32 (&sum)[kSums], Bytes w, const Input& x) {
    U32 group = {};
    group = dot(group, w, x.bytes);
    sum[0] = sum[0] + group * x.factors;
  }
  KVC_SIMD_FN U32 total(const U32 (&sum)[kSums]) { return sum[0]; }

  template <int kRows>
  KVC_SIMD_FN void add_line(const int8_t* x, int64_t stride, const Bytes* panel,
                            U32 (&sums)[kRows][kVectors][kSums]) {
    constexpr int kGroupWords = kGroupInputs / 4;
    for (int group = 0; group < 2; ++group) {
      U32 groups[kRows][kVectors][1];
      clear(groups);
#pragma GCC unroll 8
      for (int i = 0; i < kGroupWords; ++i) {
        const int word = group * kGroupWords + i;
        const Bytes w[kVectors] = {panel[kVectors * word], panel[kVectors * word + 1]};
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const Bytes four = spread_word(x + r * stride + 4 * word);
          groups[r][0][0] = dot(groups[r][0][0], w[0], four);
          groups[r][1][0] = dot(groups[r][1][0], w[1], four);
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const U32 factor = spread_factor(x + r * stride + kInputs + 4 * group);
        sums[r][0][0] = sums[r][0][0] + groups[r][0][0] * factor;
        sums[r][1][0] = sums[r][1][0] + groups[r][1][0] * factor;
      }
    }
  }
};

template <typename Planes>
void stage_planes(const float* x, int64_t in, void* staged, InputCut* cuts) noexcept {
  auto* to = static_cast<int8_t*>(staged);
  const auto write = [&](int64_t k, U32 integers, std::uint32_t m) __attribute__((always_inline)) {
    Planes::put(to + k / kInputs * kStagedBytes, k % kInputs, integers, m);
  };
  stage_integers<Planes::kEight, true>(x, in, cuts, write);
}

// A row of inputs at a multiple of 64.
KVC_SIMD_FN const int8_t* staged_row(const SliceProduct& p, int64_t row, int64_t k) {
  return static_cast<const int8_t*>(p.x) + 2 * (row * staged_stride(p.in) + k);
}
KVC_SIMD_FN __mmask64 mask_of(int64_t n) {
  return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1;
}

// kRows rows from `row` on times kOuts outputs over one cut, weights as they are stored.
template <typename Planes, int kRows>
KVC_SIMD_FN void tile_as_stored(const SliceProduct& p, int64_t row, int64_t begin,
                                const Outputs<int8_t>& weight, int64_t prefetch, const Target& to) {
  const int64_t count = min_of(kSumCut, p.in - begin);
  const int64_t stride = 2 * staged_stride(p.in);
  const int8_t* x = staged_row(p, row, begin);
  U32 sums[kRows][kOuts][Planes::kSums];
  clear(sums);
  for (int64_t k = 0; k < count; k += kInputs, x += kStagedBytes) {
    if (prefetch != 0) {
#pragma GCC unroll 4
      for (int o = 0; o < kOuts; ++o) __builtin_prefetch(weight.row[o] + k + prefetch, 0, 2);
    }
    typename Planes::Input inputs[kRows];
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) inputs[r] = Planes::load(x + r * stride);
    const __mmask64 there = mask_of(count - k);
#pragma GCC unroll 4
    for (int o = 0; o < kOuts; ++o) {
      const Bytes w = flip(_mm512_maskz_loadu_epi8(there, weight.row[o] + k));
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) Planes::add(sums[r][o], w, inputs[r]);
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r) {
    U32 totals[kOuts];
#pragma GCC unroll 4
    for (int o = 0; o < kOuts; ++o) totals[o] = Planes::total(sums[r][o]);
    const std::uint32_t less = to.cut[(row + r) * to.cut_stride].sum * 128;
    const U128 sum = fold_outs<U128>(totals) - less;
    put(to, row + r, __builtin_convertvector((I128)sum, F128));
  }
}

template <typename Planes>
void rows_as_stored(const SliceProduct& p) {
  const auto* weight = static_cast<const int8_t*>(p.weight);
  const bool quarters = p.rows <= kStreamedRows;
  const int64_t apart = quarters ? (p.outs + kOuts - 1) / kOuts : 1;
  const int64_t next = quarters ? 1 : kOuts;
  for (int64_t o = 0; o < (quarters ? apart : p.outs); o += next) {
    for (int64_t begin = 0; begin < p.in; begin += kSumCut) {
      int64_t prefetch = begin + kPrefetch < p.in ? kPrefetch : kPrefetch + (next - 1) * p.in;
      const auto rows = outputs(weight + o * p.in + begin, p.in, apart, p.outs - o);
      const Target to = target(p, 0, o, apart, begin);
      int64_t r = 0;
      for (; r + 3 <= p.rows; r += 3, prefetch = 0) {
        tile_as_stored<Planes, 3>(p, r, begin, rows, prefetch, to);
      }
      if (r + 2 == p.rows) tile_as_stored<Planes, 2>(p, r, begin, rows, prefetch, to);
      if (r + 1 == p.rows) tile_as_stored<Planes, 1>(p, r, begin, rows, prefetch, to);
    }
  }
}

// weight [outs, count], rows `stride` apart, to panel [words][kWideOuts] of four flipped bytes;
// what is past `outs` repeats the last, what is past `count` meets inputs of 0.
KVC_SIMD_FN void pack_panel(const int8_t* weight, int64_t stride, int64_t outs, int64_t count,
                            Bytes* panel) {
  for (int v = 0; v < kVectors; ++v) {
    for (int64_t k = 0; k < count; k += kInputs) {
      F32 block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const int64_t out = min_of(v * kLanes + i, outs - 1);
        block[i] =
            (F32)flip(_mm512_maskz_loadu_epi8(mask_of(count - k), weight + out * stride + k));
      }
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) panel[(k / 4 + i) * kVectors + v] = (Bytes)block[i];
    }
  }
}

// kRows rows from `row` on times a panel: `outs` outputs from `out` on.
template <typename Planes, int kRows>
KVC_SIMD_FN void tile_of_panel(const SliceProduct& p, int64_t row, int64_t out, int64_t outs,
                               int64_t begin, const Bytes* panel) {
  const int64_t stride = 2 * staged_stride(p.in);
  const int64_t lines = (min_of(kSumCut, p.in - begin) + kInputs - 1) / kInputs;
  const int8_t* x = staged_row(p, row, begin);
  U32 sums[kRows][kVectors][Planes::kSums];
  clear(sums);
  for (int64_t line = 0; line < lines; ++line, x += kStagedBytes, panel += kVectors * kLanes) {
    Planes::add_line(x, stride, panel, sums);
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const auto there =
        static_cast<__mmask16>(mask_of(outs - v * kLanes > 0 ? outs - v * kLanes : 0));
    const F32 scales = _mm512_maskz_loadu_ps(there, p.scales + out + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const InputCut& cut = p.cuts[(row + r) * cuts_of(p.in) + begin / kSumCut];
      const U32 integers = Planes::total(sums[r][v]) - set1_u32(cut.sum * 128);
      F32 sum = _mm512_cvtepi32_ps((__m512i)integers) * set1(cut.scale) * scales;
      float* y = p.y + (row + r) * p.y_stride + out + v * kLanes;
      if (begin != 0) sum = _mm512_maskz_loadu_ps(there, y) + sum;
      _mm512_mask_storeu_ps(y, there, sum);
    }
  }
}

template <typename Planes>
void rows_by_panels(const SliceProduct& p) {
  constexpr int kTile = Planes::kTileRows;
  const auto* weight = static_cast<const int8_t*>(p.weight);
  auto* panel = reinterpret_cast<Bytes*>(p.panel);
  for (int64_t begin = 0; begin < p.in; begin += kSumCut) {
    for (int64_t out = 0; out < p.outs; out += kWideOuts) {
      const int64_t outs = min_of(kWideOuts, p.outs - out);
      pack_panel(weight + out * p.in + begin, p.in, outs, min_of(kSumCut, p.in - begin), panel);
      int64_t r = 0;
      for (; r + kTile <= p.rows; r += kTile) {
        tile_of_panel<Planes, kTile>(p, r, out, outs, begin, panel);
      }
      for (; r + 2 <= p.rows; r += 2) tile_of_panel<Planes, 2>(p, r, out, outs, begin, panel);
      if (r < p.rows) tile_of_panel<Planes, 1>(p, r, out, outs, begin, panel);
    }
  }
}

template <typename Planes>
void product_of_planes(const SliceProduct& p) noexcept {
  if (p.rows <= kRowsAsStored) {
    rows_as_stored<Planes>(p);
  } else {
    rows_by_panels<Planes>(p);
  }
}

}  // namespace
}  // namespace kvcache::runner::avx512
