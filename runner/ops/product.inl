// The products of product.h: the algorithm, once. A short file per instruction set includes it
// after its simd header and what only that set can do:
//   I16, I32            vectors of 2 kLanes int16, of kLanes int32
//   widen_i8(p)         2 kLanes int8, as I16
//   add_pairs(s, a, b)  s and the products of a and b, each added to some lane
//   round_f16(x)        to the nearest f16, widened again
// Everything has internal linkage.
//
// Lanes lie along the inputs, as rows are stored: a sum is as many sums as there are lanes, folded
// at the end of each cut of kSumCut inputs; cuts are added in order. A tile is kOuts outputs times
// up to kTileRows rows whose sums stay in registers, kOuts + rows loads for kOuts * rows
// multiply-adds; nothing is transposed. Few rows take the weights as they are stored, kOuts
// streams at once: a matter of memory. Many rows widen a panel of weights once (L2) and go over
// it in blocks of rows (L2), four outputs at a time (L1). All add in the same order, so one row
// and many are the same bits. int8 weights meet int16 inputs in exact int32 sums, at twice the
// multiply-adds an instruction of the floats; product_vnni.inl does the same by bytes.
// Cost: rows * outs * in multiply-adds, outs * in weights read once.
#include "runner/ops/product.h"

// Keeps x in a register from here on: the compiler would load it again for each use, or add
// integers in an order that spills.
#if defined(__aarch64__)
#define KVC_HOLD(x) asm("" : "+w"(x))
#elif defined(__AVX512F__)
#define KVC_HOLD(x) asm("" : "+v"(x))
#elif defined(__x86_64__)
#define KVC_HOLD(x) asm("" : "+x"(x))
#else
#define KVC_HOLD(x) static_cast<void>(x)
#endif

namespace kvcache::runner::KVC_SIMD {
namespace {

using namespace internal::KVC_SIMD;
using std::int16_t;
using std::int64_t;
using std::int8_t;
using std::uint16_t;

constexpr int kOuts = 4;
constexpr int kTileRows = kRegisters == 32 ? 6 : 3;
constexpr int64_t kFewRows = 4 * kTileRows;  // that take weights as they are stored
constexpr int64_t kBlockRows = 60;           // of a cut of inputs: 120 KiB
constexpr int64_t kPanelOuts = 64;           // of a cut of weights: 128 KiB
static_assert(kPanelFloats >= kPanelOuts * kSumCut && kBlockRows % kTileRows == 0);
constexpr int64_t kGroupInputs = 32;  // that share 8 bits
// How far ahead few rows ask for weights, into the second level of cache.
constexpr int64_t kPrefetch = KVC_SIMD_BYTES == 64 ? 1024 : 512;  // bytes

KVC_SIMD_FN int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

using F128 = float __attribute__((vector_size(16)));
using I128 = std::int32_t __attribute__((vector_size(16)));

template <int kPart>
KVC_SIMD_FN F128 part(F32 x) {
  constexpr int kFirst = kPart * 4;
  return __builtin_shufflevector(x, x, kFirst, kFirst + 1, kFirst + 2, kFirst + 3);
}

// Lane o: the sum of the lanes of x[o], in the same order for every o. Sum is F32 or I32, Sum128
// four lanes of it.
template <typename Sum128, typename Sum>
KVC_SIMD_FN Sum128 fold_outs(const Sum (&x)[kOuts]) {
  const auto add_pairs_of = [](Sum a, Sum b) __attribute__((always_inline)) {
    return (Sum)quad_low((F32)a, (F32)b) + (Sum)quad_high((F32)a, (F32)b);
  };
  const Sum quads = add_pairs_of(add_pairs_of(x[0], x[2]), add_pairs_of(x[1], x[3]));
  Sum128 sum = (Sum128)part<0>((F32)quads);
  if constexpr (kLanes >= 8) sum = sum + (Sum128)part<1>((F32)quads);
  if constexpr (kLanes == 16) {
    sum = sum + (Sum128)part<2>((F32)quads);
    sum = sum + (Sum128)part<3>((F32)quads);
  }
  return sum;
}

// What a product multiplies and sums.
struct Floats {
  using Input = float;
  using Vector = F32;
  using Sum = F32;
  static constexpr int kStep = kLanes;
  KVC_SIMD_FN F32 load_all(const float* p) { return load(p); }
  KVC_SIMD_FN F32 add(F32 sum, F32 a, F32 b) { return fma(a, b, sum); }
  KVC_SIMD_FN F128 fold(const F32 (&x)[kOuts]) { return fold_outs<F128>(x); }
};

// The sum of a cut is exact: 512 * kLargest * 127 < 2^31.
struct Integers {
  using Input = int16_t;
  using Vector = I16;
  using Sum = I32;
  static constexpr int kStep = 2 * kLanes;
  KVC_SIMD_FN I16 load_all(const int16_t* p) {
    I16 x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  KVC_SIMD_FN I32 add(I32 sum, I16 a, I16 b) {
    sum = add_pairs(sum, a, b);
    KVC_HOLD(sum);
    return sum;
  }
  KVC_SIMD_FN F128 fold(const I32 (&x)[kOuts]) {
    return __builtin_convertvector(fold_outs<I128>(x), F128);
  }
};

// How weights are stored, and what they are widened to.
struct StoredF32 : Floats {
  using Over = Floats;
  using Element = float;
  KVC_SIMD_FN F32 load_some(const float* p, int n) { return load_n(p, n); }
};
struct StoredBf16 {
  using Over = Floats;
  using Element = uint16_t;
  KVC_SIMD_FN F32 load_all(const uint16_t* p) { return load_bf16(p); }
  KVC_SIMD_FN F32 load_some(const uint16_t* p, int n) { return load_bf16_n(p, n); }
};
struct StoredF16 {
  using Over = Floats;
  using Element = uint16_t;
  KVC_SIMD_FN F32 load_all(const uint16_t* p) { return load_f16(p); }
  KVC_SIMD_FN F32 load_some(const uint16_t* p, int n) { return load_f16_n(p, n); }
};
struct StoredI8 {
  using Over = Integers;
  using Element = int8_t;
  KVC_SIMD_FN I16 load_all(const int8_t* p) { return widen_i8(p); }
  KVC_SIMD_FN I16 load_some(const int8_t* p, int n) {
    int8_t some[Integers::kStep] = {};
    __builtin_memcpy(some, p, static_cast<unsigned long>(n));
    return widen_i8(some);
  }
};
// A panel: what weights were widened to, in whole lines.
template <typename Over_>
struct Panel : Over_ {
  using Over = Over_;
  using Element = typename Over::Input;
};

// Elements of a line of the caches.
template <typename Stored>
constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(typename Stored::Element));

// Rows of weights, `apart` from each other; those past the last repeat it.
template <typename Element>
struct Outputs {
  const Element* row[kOuts];
};
template <typename Element>
KVC_SIMD_FN Outputs<Element> outputs(const Element* weight, int64_t stride, int64_t apart,
                                     int64_t outs) {
  Outputs<Element> rows;
  for (int o = 0; o < kOuts; ++o) rows.row[o] = weight + min_of(o * apart, outs - 1) * stride;
  return rows;
}

// One vector of inputs times one of each output.
template <int kRows, typename Over>
KVC_SIMD_FN void add_product(const typename Over::Vector (&x)[kRows], typename Over::Vector w,
                             int o, typename Over::Sum (&sums)[kRows][kOuts]) {
  KVC_HOLD(w);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r][o] = Over::add(sums[r][o], x[r], w);
}
template <int kRows, typename Stored, typename Over = typename Stored::Over>
KVC_SIMD_FN void step(const typename Over::Input* x, int64_t x_stride,
                      const Outputs<typename Stored::Element>& weight, int64_t k,
                      typename Over::Sum (&sums)[kRows][kOuts]) {
  typename Over::Vector inputs[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) inputs[r] = Over::load_all(x + r * x_stride + k);
#pragma GCC unroll 4
  for (int o = 0; o < kOuts; ++o) {
    add_product<kRows, Over>(inputs, Stored::load_all(weight.row[o] + k), o, sums);
  }
}

// The sums of `count` inputs, whole lines of weights where kWhole. `prefetch` is how far beyond
// each line to ask for another, in elements; 0: not at all.
template <int kRows, typename Stored, bool kWhole, typename Over = typename Stored::Over>
KVC_SIMD_FN void tile(const typename Over::Input* x, int64_t x_stride,
                      const Outputs<typename Stored::Element>& weight, int64_t count,
                      int64_t prefetch, typename Over::Sum (&sums)[kRows][kOuts]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int o = 0; o < kOuts; ++o) sums[r][o] = typename Over::Sum{};
  }
  int64_t k = 0;
  for (; k + kLine<Stored> <= count; k += kLine<Stored>) {
    if (prefetch != 0) {
#pragma GCC unroll 4
      for (int o = 0; o < kOuts; ++o) __builtin_prefetch(weight.row[o] + k + prefetch, 0, 2);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kLine<Stored>; i += Over::kStep) {
      step<kRows, Stored>(x, x_stride, weight, k + i, sums);
    }
  }
  if constexpr (!kWhole) {
    for (; k + Over::kStep <= count; k += Over::kStep) {
      step<kRows, Stored>(x, x_stride, weight, k, sums);
    }
    const int rest = static_cast<int>(count - k);
    if (rest == 0) return;
    typename Over::Vector inputs[kRows];
    for (int r = 0; r < kRows; ++r) inputs[r] = Over::load_all(x + r * x_stride + k);
    for (int o = 0; o < kOuts; ++o) {
      add_product<kRows, Over>(inputs, Stored::load_some(weight.row[o] + k, rest), o, sums);
    }
  }
}

// Where the sums of a cut go; for int8 the cut of each input row and the scale of each output.
struct Target {
  float* y;
  int64_t stride;
  int64_t apart;  // of the outputs
  int64_t outs;   // from y on
  bool first;     // of the cuts: y is not read
  const InputCut* cut;
  int64_t cut_stride;
  const float* scales;
};

KVC_SIMD_FN Target target(const SliceProduct& p, int64_t row, int64_t out, int64_t apart,
                          int64_t begin) {
  const int64_t cuts = cuts_of(p.in);
  return {p.y + row * p.y_stride + out,
          p.y_stride,
          apart,
          p.outs - out,
          begin == 0,
          p.cuts != nullptr ? p.cuts + row * cuts + begin / kSumCut : nullptr,
          cuts,
          p.scales != nullptr ? p.scales + out : nullptr};
}

KVC_SIMD_FN void put(const Target& to, int64_t row, F128 sum) {
  float* y = to.y + row * to.stride;
  if (to.scales != nullptr) sum = sum * to.cut[row * to.cut_stride].scale;
  if (to.apart == 1 && to.outs >= kOuts) {
    F128 other;
    if (to.scales != nullptr) {
      __builtin_memcpy(&other, to.scales, sizeof(other));
      sum = sum * other;
    }
    if (!to.first) {
      __builtin_memcpy(&other, y, sizeof(other));
      sum = other + sum;
    }
    __builtin_memcpy(y, &sum, sizeof(sum));
    return;
  }
  for (int64_t o = 0; o < kOuts && o * to.apart < to.outs; ++o) {
    const int64_t at = o * to.apart;
    const float value = to.scales != nullptr ? sum[o] * to.scales[at] : sum[o];
    y[at] = to.first ? value : y[at] + value;
  }
}

template <int kRows, typename Stored, bool kWhole, typename Over = typename Stored::Over>
KVC_SIMD_FN void tile_to(const typename Over::Input* x, int64_t x_stride,
                         const Outputs<typename Stored::Element>& weight, int64_t count,
                         int64_t prefetch, const Target& to, int64_t row) {
  typename Over::Sum sums[kRows][kOuts];
  tile<kRows, Stored, kWhole>(x + row * x_stride, x_stride, weight, count, prefetch, sums);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) put(to, row + r, Over::fold(sums[r]));
}

// Any number of rows. The first tile asks for the weights to come; to the others they are at hand.
template <typename Stored, bool kWhole, typename Over = typename Stored::Over>
KVC_SIMD_FN void tiles(const typename Over::Input* x, int64_t x_stride, int64_t rows,
                       const Outputs<typename Stored::Element>& weight, int64_t count,
                       int64_t prefetch, const Target& to) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    tile_to<kTileRows, Stored, kWhole>(x, x_stride, weight, count, prefetch, to, r);
    prefetch = 0;
  }
  if constexpr (kTileRows > 3) {
    if (r + 3 <= rows) {
      tile_to<3, Stored, kWhole>(x, x_stride, weight, count, prefetch, to, r);
      prefetch = 0;
      r += 3;
    }
  }
  if (r + 2 == rows) tile_to<2, Stored, kWhole>(x, x_stride, weight, count, prefetch, to, r);
  if (r + 1 == rows) tile_to<1, Stored, kWhole>(x, x_stride, weight, count, prefetch, to, r);
}

// The weights as they are stored. One row or two of inputs are a matter of memory: each of the
// kOuts outputs side by side has its quarter of the weights, which the processor's own prefetching
// follows from row to row. More are a matter of arithmetic, and four neighbouring rows share fewer
// sets of the first cache. Asks for what comes kPrefetch bytes later in the row or, past its end,
// in the next one. It may run past the weights: prefetches do not fault.
template <typename Stored>
void few_rows(const SliceProduct& p) {
  using Element = typename Stored::Element;
  const auto* weight = static_cast<const Element*>(p.weight);
  const auto* x = static_cast<const typename Stored::Over::Input*>(p.x);
  constexpr int64_t kAhead = kPrefetch / static_cast<int64_t>(sizeof(Element));
  const int64_t x_stride = staged_stride(p.in);
  const bool quarters = p.rows <= kStreamedRows;
  const int64_t apart = quarters ? (p.outs + kOuts - 1) / kOuts : 1;
  const int64_t next = quarters ? 1 : kOuts;
  for (int64_t o = 0; o < (quarters ? apart : p.outs); o += next) {
    for (int64_t begin = 0; begin < p.in; begin += kSumCut) {
      const int64_t count = min_of(kSumCut, p.in - begin);
      const int64_t prefetch = begin + kAhead < p.in ? kAhead : kAhead + (next - 1) * p.in;
      const auto rows = outputs(weight + o * p.in + begin, p.in, apart, p.outs - o);
      const Target to = target(p, 0, o, apart, begin);
      if (count % kLine<Stored> == 0) {
        tiles<Stored, true>(x + begin, x_stride, p.rows, rows, count, prefetch, to);
      } else {
        tiles<Stored, false>(x + begin, x_stride, p.rows, rows, count, prefetch, to);
      }
    }
  }
}

// weight [outs, count] with rows `stride` apart, widened to panel [outs, kSumCut]; zeros up to a
// whole line.
template <typename Stored, typename Over = typename Stored::Over>
KVC_SIMD_FN void widen_panel(const typename Stored::Element* weight, int64_t stride, int64_t outs,
                             int64_t count, typename Over::Input* panel) {
  const int64_t lines = (count + kLine<Panel<Over>> - 1) / kLine<Panel<Over>> * kLine<Panel<Over>>;
  for (int64_t o = 0; o < outs; ++o, weight += stride, panel += kSumCut) {
    for (int64_t k = 0; k < lines; k += Over::kStep) {
      typename Over::Vector wide = {};
      if (k + Over::kStep <= count) {
        wide = Stored::load_all(weight + k);
      } else if (k < count) {
        wide = Stored::load_some(weight + k, static_cast<int>(count - k));
      }
      __builtin_memcpy(panel + k, &wide, sizeof(wide));
    }
  }
}

template <typename Stored>
void many_rows(const SliceProduct& p) {
  using Over = typename Stored::Over;
  using Input = typename Over::Input;
  const auto* weight = static_cast<const typename Stored::Element*>(p.weight);
  const auto* x = static_cast<const Input*>(p.x);
  const int64_t x_stride = staged_stride(p.in);
  auto* panel = reinterpret_cast<Input*>(p.panel);
  for (int64_t begin = 0; begin < p.in; begin += kSumCut) {
    const int64_t count = min_of(kSumCut, p.in - begin);
    // Both panel and inputs have zeros up to a whole line.
    const int64_t lines =
        (count + kLine<Panel<Over>> - 1) / kLine<Panel<Over>> * kLine<Panel<Over>>;
    for (int64_t first = 0; first < p.outs; first += kPanelOuts) {
      const int64_t outs = min_of(kPanelOuts, p.outs - first);
      widen_panel<Stored>(weight + first * p.in + begin, p.in, outs, count, panel);
      for (int64_t r = 0; r < p.rows; r += kBlockRows) {
        for (int64_t o = 0; o < outs; o += kOuts) {
          tiles<Panel<Over>, true>(x + r * x_stride + begin, x_stride,
                                   min_of(kBlockRows, p.rows - r),
                                   outputs(panel + o * kSumCut, kSumCut, 1, outs - o), lines, 0,
                                   target(p, r, first + o, 1, begin));
        }
      }
    }
  }
}

template <typename Stored>
void product(const SliceProduct& p) noexcept {
  if (p.rows <= kFewRows) {
    few_rows<Stored>(p);
  } else {
    many_rows<Stored>(p);
  }
}

// Inputs as products take them: see product.h.
struct AsF32 {
  KVC_SIMD_FN F32 round(F32 x) { return x; }
};
struct AsF16 {
  KVC_SIMD_FN F32 round(F32 x) { return round_f16(x); }
};
struct AsBf16 {
  // To nearest, ties to even; NaN quiet.
  KVC_SIMD_FN F32 round(F32 x) {
    const U32 bits = bits_of(x);
    const U32 rounded = bits + set1_u32(0x7fff) + ((bits >> 16) & set1_u32(1));
    const U32 quiet = bits | set1_u32(0x00400000);
    return from_bits((x == x ? rounded : quiet) & set1_u32(0xffff0000));
  }
};

KVC_SIMD_FN F32 load_upto(const float* x, int64_t n) {
  if (n >= kLanes) return load(x);
  return n > 0 ? load_n(x, static_cast<int>(n)) : zero();
}

template <typename As>
void stage(const float* x, int64_t in, void* staged, InputCut*) noexcept {
  auto* to = static_cast<float*>(staged);
  for (int64_t k = 0; k < staged_size(in); k += kLanes) {
    store(to + k, As::round(load_upto(x + k, in - k)));
  }
}

// The largest magnitude of x [count], and a NaN in `broken` where an element is not finite.
KVC_SIMD_FN float largest_of(const float* x, int64_t count, F32* broken) {
  F32 most = zero();
  for (int64_t k = 0; k < count; k += kLanes) {
    const F32 value = load_upto(x + k, count - k);
    most = max(from_bits(bits_of(value) & set1_u32(0x7fffffff)), most);
    *broken = fma(value, zero(), *broken);
  }
  return reduce_max(most);
}

// Rounds the inputs of int8 weights: calls write(k, integers, m) for each vector of integers that
// stand for m times as much, up to a whole line. Sums only where kSums.
template <bool kEight, bool kSums, typename Write>
KVC_SIMD_FN void stage_integers(const float* x, int64_t in, InputCut* cuts, Write&& write) {
  constexpr int64_t kGroup = kEight ? kGroupInputs : kSumCut;
  const F32 shift = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const U32 shift_bits = bits_of(shift);
  for (int64_t begin = 0; begin < in; begin += kSumCut) {
    const int64_t end = min_of(begin + kSumCut, staged_size(in));
    const int64_t count = min_of(end, in) - begin;
    F32 broken = zero();
    const float largest = largest_of(x + begin, count, &broken);
    const float nan = reduce_add(broken);
    const bool some = nan == 0 && largest > 1e-30f;
    const float inverse = some ? static_cast<float>(kLargest) / largest : 0.0f;
    U32 sum = {};
    for (int64_t first = begin; first < end; first += kGroup) {
      const int64_t last = min_of(first + kGroup, end);
      std::uint32_t m = 1;
      if (kEight && some) {
        const float most = largest_of(x + first, min_of(last, in) - first, &broken);
        const float units = most * inverse;
        m = static_cast<std::uint32_t>(units / 127.0f);
        if (static_cast<float>(m * 127) < units) ++m;
        m = m < 1 ? 1 : m > 257 ? 257 : m;
      }
      const F32 factor = set1(inverse / static_cast<float>(m));
      for (int64_t k = first; k < last; k += kLanes) {
        U32 integers = {};
        if (some) integers = bits_of(load_upto(x + k, in - k) * factor + shift) - shift_bits;
        if (kSums) sum = sum + integers * set1_u32(m);
        write(k, integers, m);
      }
    }
    std::uint32_t total = 0;
    if (kSums) {
      std::uint32_t lanes[kLanes];
      store_u32(lanes, sum);
      for (const std::uint32_t lane : lanes) total += lane;
    }
    *cuts++ = {some ? largest / static_cast<float>(kLargest) : nan, total};
  }
}

template <bool kEight>
void stage_int16(const float* x, int64_t in, void* staged, InputCut* cuts) noexcept {
  using U16 = uint16_t __attribute__((vector_size(KVC_SIMD_BYTES / 2)));
  auto* to = static_cast<int16_t*>(staged);
  const auto write = [&](int64_t k, U32 integers, std::uint32_t m) __attribute__((always_inline)) {
    if (kEight) integers = integers * set1_u32(m);
    const U16 low = __builtin_convertvector(integers, U16);
    __builtin_memcpy(to + k, &low, sizeof(low));
  };
  stage_integers<kEight, false>(x, in, cuts, write);
}

// silu(x) = x / (1 + e^-x), over e^-|x| <= 1.
KVC_SIMD_FN F32 silu(F32 x) {
  const F32 e = exp(from_bits(bits_of(x) | set1_u32(0x80000000u)));
  return x * (x < zero() ? e : set1(1.0f)) / (set1(1.0f) + e);
}

void silu_multiply(float* gate, const float* up, int64_t count) noexcept {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(gate + i, silu(load(gate + i)) * load(up + i));
  const int rest = static_cast<int>(count - i);
  if (rest == 0) return;
  float lanes[kLanes];
  store(lanes, silu(load_n(gate + i, rest)) * load_n(up + i, rest));
  __builtin_memcpy(gate + i, lanes, static_cast<unsigned long>(rest) * sizeof(float));
}

constexpr Products make_products(const char* name) {
  Products products = {};
  products.name = name;
  products.f32 = {stage<AsF32>, product<StoredF32>};
  products.bf16 = {stage<AsBf16>, product<StoredBf16>};
  products.f16 = {stage<AsF16>, product<StoredF16>};
  products.int8 = {stage_int16<false>, product<StoredI8>};
  products.int8_by_int8 = {stage_int16<true>, product<StoredI8>};
  products.silu_multiply = silu_multiply;
  return products;
}

}  // namespace
}  // namespace kvcache::runner::KVC_SIMD
