// Rows that become codes: bit for bit what tensor/codecs/ defines, in vectors. Part of rows.inl. A
// row is brought into floats first, zeros behind its end, and turned (rotate.inl); from there on an
// element takes the operations of the definition in their order, 16 elements at a time, and sums
// are of 16 lanes (lm4.h), whatever the width of a vector.
#include "tensor/codecs/coded_block.h"
#include "tensor/codecs/ggml.h"
#include "tensor/codecs/lm4.h"

#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__)
#define KVC_FUSED 1
#else
#define KVC_FUSED 0
#endif

namespace kvcache::internal::KVC_SIMD {
namespace {

using I32 = std::int32_t __attribute__((vector_size(KVC_SIMD_BYTES)));
using I8 = std::int8_t __attribute__((vector_size(KVC_SIMD_BYTES / 4)));

constexpr std::int64_t kChunk = 16;  // elements that go together
constexpr int kChunkVecs = static_cast<int>(kChunk) / kLanes;
constexpr std::uint32_t kInfinite = 0x7f800000u;  // the bits of infinity, in f32 and in f16
constexpr std::uint16_t kHalfInfinite = 0x7c00u;

// --- Scalars. ---

KVC_SIMD_FN float float_of(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}
KVC_SIMD_FN std::uint16_t to_half(float x) {
  std::uint16_t halves[kLanes];
  store_f16(halves, set1(x));
  return halves[0];
}
// By a broadcast: a vector load of what was just stored would wait until that is in the cache.
KVC_SIMD_FN float from_half(std::uint16_t half) { return repeat_f16(&half)[0]; }

// See scale.h.
KVC_SIMD_FN std::uint16_t scale_above(float value) {
  const std::uint16_t nearest = to_half(value);
  return from_half(nearest) < value ? static_cast<std::uint16_t>(nearest + 1) : nearest;
}
KVC_SIMD_FN float inverse_of_scale(float s) { return s == 0 ? 1.0f : 1.0f / s; }

// --- Lanes. ---

KVC_SIMD_FN U32 magnitude_bits(F32 x) { return bits_of(x) & set1_u32(0x7fffffffu); }
KVC_SIMD_FN F32 magnitude(F32 x) { return from_bits(magnitude_bits(x)); }

// To the nearest whole number, ties to even. REQUIRES: |x| < 2^22.
KVC_SIMD_FN F32 round_even(F32 x) { return (x + set1(0x1.8p23f)) - set1(0x1.8p23f); }

// Numbers -128 .. 255 as bytes, without their fraction.
KVC_SIMD_FN void store_bytes(std::byte* to, F32 x) {
  const I8 bytes = __builtin_convertvector(__builtin_convertvector(x, I32), I8);
  __builtin_memcpy(to, &bytes, sizeof(bytes));
}
// Of the 16 bytes only those that the row has.
template <typename Fn>
KVC_SIMD_FN void put_chunk(std::byte* to, std::int64_t left, Fn code) {
  std::byte bytes[kChunk];
  std::byte* const at = left >= kChunk ? to : bytes;
#pragma GCC unroll 4
  for (int v = 0; v < kChunkVecs; ++v) code(v, at + v * kLanes);
  if (left < kChunk) __builtin_memcpy(to, bytes, static_cast<unsigned long>(left));
}

// The lanes of x taken together by `op`, in which order does not matter.
template <typename Op>
KVC_SIMD_FN F32 of_lanes(F32 x, Op op) {
#if KVC_SIMD_BYTES >= 64
  x = op(x, upper<8>(x));
#endif
#if KVC_SIMD_BYTES >= 32
  x = op(x, upper<4>(x));
#endif
  x = op(x, upper<2>(x));
  return op(x, upper<1>(x));
}
KVC_SIMD_FN std::uint32_t most_of_lanes(U32 most) {
  const F32 top = of_lanes(
      from_bits(most), [](F32 a, F32 b) __attribute__((always_inline)) {
        return from_bits(bits_of(a) > bits_of(b) ? bits_of(a) : bits_of(b));
      });
  return bits_of(top)[0];
}

// The largest of the bits of |x|, those of numbers that are not finite left out on request.
template <bool kFiniteOnly = false>
KVC_SIMD_FN std::uint32_t most_bits(const float* row, std::int64_t count) {
  U32 most = U32{};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    U32 bits = magnitude_bits(load(row + i));
    if constexpr (kFiniteOnly) bits = bits < set1_u32(kInfinite) ? bits : U32{};
    most = bits > most ? bits : most;
  }
  return most_of_lanes(most);
}

// Sums of 16 lanes, as lm4.h says.
struct Lanes16 {
  F32 sum[kChunkVecs];
  KVC_SIMD_FN float total(const Lanes16& of) {
    F32 all = of.sum[0];
#if KVC_SIMD_BYTES == 32
    all = all + of.sum[1];
#elif KVC_SIMD_BYTES == 16
    all = (all + of.sum[2]) + (of.sum[1] + of.sum[3]);
#endif
    return reduce_add(all);
  }
};

// --- The forms. `row` is floats with zeros up to a multiple of 16. ---

// Where a row's codes go.
struct CodesAt {
  std::byte* codes;
  std::byte* scales;
  std::byte* zeros;
  std::int64_t scale_stride;
};

KVC_SIMD_FN void put_scale(const CodesAt& to, std::int64_t group, std::uint16_t scale) {
  __builtin_memcpy(to.scales + group * to.scale_stride, &scale, sizeof(scale));
}

void encode_int8(const float* row, std::int64_t count, const CodesAt& to, std::int64_t group) {
  const std::uint16_t scale = scale_above(float_of(most_bits(row, count)) / 127.0f);
  const F32 by = set1(inverse_of_scale(from_half(scale)));
  put_scale(to, group, scale);
  for (std::int64_t i = 0; i < count; i += kChunk) {
    put_chunk(
        to.codes + i, count - i, [&](int v, std::byte* at) __attribute__((always_inline)) {
          store_bytes(at, round_even(load(row + i + v * kLanes) * by));
        });
  }
}

// See f32_to_e4m3.
KVC_SIMD_FN F32 e4m3_codes(F32 x) {
  const U32 bits = magnitude_bits(x);
  const U32 normal =
      (bits - set1_u32(120u << 23) + set1_u32(0x7ffffu) + ((bits >> 20) & set1_u32(1))) >> 20;
  const U32 denormal = bits_of(from_bits(bits) + set1(16384.0f)) & set1_u32(15);
  U32 code = bits < set1_u32(121u << 23) ? denormal : normal;
  code = bits > set1_u32(0x43e80000u) ? set1_u32(0x7fu) : code;
  code = code | ((bits_of(x) >> 24) & set1_u32(0x80u));
  I32 whole;
  __builtin_memcpy(&whole, &code, sizeof(whole));
  return __builtin_convertvector(whole, F32);
}

void encode_fp8(const float* row, std::int64_t count, const CodesAt& to, std::int64_t group) {
  const std::uint16_t scale = scale_above(float_of(most_bits<true>(row, count)) / 448.0f);
  const F32 by = set1(inverse_of_scale(from_half(scale)));
  put_scale(to, group, scale);
  for (std::int64_t i = 0; i < count; i += kChunk) {
    put_chunk(
        to.codes + i, count - i, [&](int v, std::byte* at) __attribute__((always_inline)) {
          store_bytes(at, e4m3_codes(load(row + i + v * kLanes) * by));
        });
  }
}

// The codes of two chunks, of a group of 32, as 16 bytes.
template <typename Fn>
KVC_SIMD_FN void put_nibbles(std::byte* to, Fn code) {
#pragma GCC unroll 4
  for (int v = 0; v < kChunkVecs; ++v) {
    store_bytes(to + v * kLanes, code(v) + set1(16.0f) * code(v + kChunkVecs));
  }
}

void encode_int4(const float* row, const CodesAt& to, std::int64_t group) {
  F32 low = zero();
  F32 high = zero();
#pragma GCC unroll 8
  for (int v = 0; v < 2 * kChunkVecs; ++v) {
    const F32 x = load(row + v * kLanes);
    low = x < low ? x : low;
    high = x > high ? x : high;
  }
  const auto less = [](F32 a, F32 b) __attribute__((always_inline)) { return a < b ? a : b; };
  const auto more = [](F32 a, F32 b) __attribute__((always_inline)) { return a > b ? a : b; };
  const float least = of_lanes(low, less)[0];
  const float most = of_lanes(high, more)[0];
  const std::uint16_t scale = scale_above((most - least) / 15.0f);
  const F32 by = set1(inverse_of_scale(from_half(scale)));
  const F32 origin = round_even(set1(-least) * by);
  put_scale(to, group, scale);
  to.zeros[group * (to.scale_stride / 2)] = static_cast<std::byte>(static_cast<int>(origin[0]));
  put_nibbles(
      to.codes + group * (RowFormat::kGroup / 2), [&](int v) __attribute__((always_inline)) {
        const F32 code = round_even(load(row + v * kLanes) * by) + origin;
        const F32 above = code < zero() ? zero() : code;
        return above > set1(15.0f) ? set1(15.0f) : above;
      });
}

// How many levels an element lies above the one next to 0, and that level.
struct Level {
  F32 up, level;
};
#if KVC_SIMD_TABLE
// For each stretch of 8 from 0 up, in which lies one bound at most: the level at its begin, that
// bound, and the level past it.
struct LevelTable {
  float up[16], level[16], bound[16], past[16];
};
constexpr LevelTable level_table() {
  LevelTable table = {};
  for (int i = 0; i < 16; ++i) {
    int up = 0;
    while (up < 7 && kLm4Bounds[up] < static_cast<float>(8 * i)) ++up;
    const bool here = up < 7 && kLm4Bounds[up] < static_cast<float>(8 * i + 8);
    table.up[i] = static_cast<float>(up);
    table.level[i] = kLm4Levels[8 + up];
    table.bound[i] = here ? kLm4Bounds[up] : __builtin_inff();
    table.past[i] = here ? kLm4Levels[9 + up] : 0.0f;
  }
  return table;
}
// Whether it says of every quarter up to 128 what the definition says.
constexpr bool finds_levels(const LevelTable& table) {
  for (int i = 0; i < 16; ++i) {
    for (float x = static_cast<float>(8 * i); x < static_cast<float>(8 * i + 8); x += 0.25f) {
      int up = 0;
      while (up < 7 && x >= kLm4Bounds[up]) ++up;
      const bool past = x >= table.bound[i];
      const float level = past ? table.past[i] : table.level[i];
      if (table.up[i] + (past ? 1 : 0) != static_cast<float>(up)) return false;
      if (level != static_cast<float>(kLm4Levels[8 + up])) return false;
    }
  }
  return table.up[15] == 7;
}
static_assert(finds_levels(level_table()));
#endif
KVC_SIMD_FN Level level_of(F32 x) {
#if KVC_SIMD_TABLE
  static constexpr LevelTable kTable = level_table();
  const F32 within = x > set1(127.0f) ? set1(127.0f) : x;
  const I32 stretch = __builtin_convertvector(within * set1(0.125f), I32);
  U32 at;
  __builtin_memcpy(&at, &stretch, sizeof(at));
  const F32 up = pick(load(kTable.up), at);
  const I32 past = within >= pick(load(kTable.bound), at);
  return {past ? up + set1(1.0f) : up,
          past ? pick(load(kTable.past), at) : pick(load(kTable.level), at)};
#else
  F32 up = zero();
  F32 level = set1(kLm4Levels[8]);
#pragma GCC unroll 7
  for (int b = 0; b < 7; ++b) {
    const float step = static_cast<float>(kLm4Levels[9 + b] - kLm4Levels[8 + b]);
    const I32 past = x >= set1(kLm4Bounds[b]);
    up = past ? up + set1(1.0f) : up;
    level = past ? level + set1(step) : level;
  }
  return {up, level};
#endif
}

void encode_lm4(const float* row, std::int64_t count, const CodesAt& to, std::int64_t group) {
  Lanes16 squares = {};
  for (std::int64_t i = 0; i < count; i += kChunk) {
#pragma GCC unroll 4
    for (int v = 0; v < kChunkVecs; ++v) {
      const F32 x = load(row + i + v * kLanes);
      squares.sum[v] = squares.sum[v] + x * x;
    }
  }
  const float mean = Lanes16::total(squares) / static_cast<float>(count);
  float unit = __builtin_sqrtf(mean) * kLm4Unit;
  std::uint16_t scale = 0;
  float ups[RowFormat::kOneScale];  // of the last pass
  if (unit >= kLm4LeastUnit) {
    for (int pass = 0; pass < kLm4Passes; ++pass) {
      const F32 inverse = set1(1.0f / unit);
      Lanes16 products = {};
      Lanes16 levels = {};
      for (std::int64_t i = 0; i < count; i += kChunk) {
#pragma GCC unroll 4
        for (int v = 0; v < kChunkVecs; ++v) {
          const F32 x = magnitude(load(row + i + v * kLanes));
          const Level at = level_of(x * inverse);
          store(ups + i + v * kLanes, at.up);
          products.sum[v] = products.sum[v] + x * at.level;
          levels.sum[v] = levels.sum[v] + at.level * at.level;  // whole numbers: exact
        }
      }
      unit = Lanes16::total(products) / Lanes16::total(levels);
    }
    scale = to_half(unit);
  }
  put_scale(to, group, scale);
  std::byte* codes = to.codes;
  const auto code = [&](std::int64_t at) __attribute__((always_inline)) {
    if (scale == 0) return zero();
    const F32 up = load(ups + at);
    return (bits_of(load(row + at)) >> 31) != U32{} ? set1(7.0f) - up : set1(8.0f) + up;
  };
  for (std::int64_t i = 0; i < count; i += RowFormat::kGroup, codes += kChunk) {
    if (count - i >= RowFormat::kGroup) {
      put_nibbles(
          codes, [&](int v) __attribute__((always_inline)) { return code(i + v * kLanes); });
      continue;
    }
    float last[kChunk];  // 16 elements in 8 bytes
    for (int v = 0; v < kChunkVecs; ++v) store(last + v * kLanes, code(i + v * kLanes));
    for (int l = 0; l < kChunk / 2; ++l) {
      codes[l] = static_cast<std::byte>(static_cast<int>(last[l] + 16 * last[l + kChunk / 2]));
    }
  }
}

// 1 / d; 0 where that is none (ggml.h).
KVC_SIMD_FN float inverse_of(float delta) {
  const float inverse = delta == 0 ? 0.0f : 1.0f / delta;
  return __builtin_isinf(inverse) ? 0.0f : inverse;
}

void encode_q8_0(const float* row, std::byte* block) {
  const float delta = float_of(most_bits(row, RowFormat::kGroup)) / 127.0f;
  const F32 inverse = set1(inverse_of(delta));
  const std::uint16_t half = to_half(delta);
  __builtin_memcpy(block, &half, sizeof(half));
#pragma GCC unroll 8
  for (int v = 0; v < 2 * kChunkVecs; ++v) {
    const F32 x = load(row + v * kLanes) * inverse;
    // Ties away from 0.
    const F32 whole = __builtin_convertvector(__builtin_convertvector(magnitude(x), I32), F32);
    const F32 rounded = whole + (magnitude(x) - whole >= set1(0.5f) ? set1(1.0f) : zero());
    store_bytes(block + 2 + v * kLanes,
                from_bits(bits_of(rounded) | (bits_of(x) & set1_u32(0x80000000u))));
  }
}

void encode_q4_0(const float* row, std::byte* block) {
  const std::uint32_t most = most_bits(row, RowFormat::kGroup);
  float extreme = row[0];
  for (int i = 0; i < RowFormat::kGroup && most > 0; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, row + i, sizeof(bits));
    if ((bits & 0x7fffffffu) != most) continue;
    extreme = row[i];
    break;
  }
  const float delta = extreme / -8.0f;
  const float inverse = inverse_of(delta);
  const std::uint16_t half = to_half(delta);
  __builtin_memcpy(block, &half, sizeof(half));
  put_nibbles(
      block + 2, [&](int v) __attribute__((always_inline)) {
        const F32 x = load(row + v * kLanes);
        F32 code;
#if KVC_FUSED
        code = fma(x, set1(inverse), set1(8.5f));
#else
    for (int l = 0; l < kLanes; ++l) code[l] = __builtin_fmaf(x[l], inverse, 8.5f);
#endif
        const F32 whole = __builtin_convertvector(__builtin_convertvector(code, I32), F32);
        return whole > set1(15.0f) ? set1(15.0f) : whole;
      });
}

// --- Blocks of rows. ---

KVC_SIMD_FN std::int64_t padded(std::int64_t n) { return (n + kChunk - 1) / kChunk * kChunk; }

// A row of the caller's as floats, zeros behind its end.
template <typename From>
KVC_SIMD_FN void read_row_as(const char* from, std::int64_t stride, std::int64_t count, float* to) {
  using In = typename From::Stored;
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const int n = static_cast<int>(count - i < kLanes ? count - i : kLanes);
    if (stride == sizeof(In)) {
      const In* const at = reinterpret_cast<const In*>(from) + i;
      store(to + i, n < kLanes ? From::widen_n(at, n) : From::widen(at));
      continue;
    }
    In in[kLanes] = {};
    for (int l = 0; l < n; ++l) __builtin_memcpy(&in[l], from + (i + l) * stride, sizeof(In));
    store(to + i, From::widen(in));
  }
  for (std::int64_t i = (count + kLanes - 1) / kLanes * kLanes; i < padded(count); ++i) to[i] = 0;
}

KVC_SIMD_FN void read_row(const CodedBlock& block, std::int64_t token, std::int64_t head,
                          float* to) {
  const char* const from =
      static_cast<const char*>(block.rows) + token * block.token_stride + head * block.head_stride;
  switch (block.dtype) {
    case DType::kF16:
      return read_row_as<RowF16>(from, block.element_stride, block.elements, to);
    case DType::kBF16:
      return read_row_as<RowBF16>(from, block.element_stride, block.elements, to);
    default:
      return read_row_as<RowF32>(from, block.element_stride, block.elements, to);
  }
}

// The largest of the bits of |x| in a row of the caller's.
template <typename From>
KVC_SIMD_FN std::uint32_t most_of_row_as(const CodedBlock& block, const char* from) {
  using In = typename From::Stored;
  const In* const at = reinterpret_cast<const In*>(from);
  U32 most = U32{};
  for (std::int64_t i = 0; i < block.elements; i += kLanes) {
    const int n = static_cast<int>(block.elements - i < kLanes ? block.elements - i : kLanes);
    const U32 bits = magnitude_bits(n < kLanes ? From::widen_n(at + i, n) : From::widen(at + i));
    most = bits > most ? bits : most;
  }
  return most_of_lanes(most);
}

KVC_SIMD_FN std::uint32_t most_of_row(const CodedBlock& block, std::int64_t token,
                                      std::int64_t head) {
  const char* const from =
      static_cast<const char*>(block.rows) + token * block.token_stride + head * block.head_stride;
  if (block.element_stride != size_of(block.dtype)) {
    alignas(64) float row[kMaxCodedElements];
    read_row(block, token, head, row);
    return most_bits(row, block.elements);
  }
  switch (block.dtype) {
    case DType::kF16:
      return most_of_row_as<RowF16>(block, from);
    case DType::kBF16:
      return most_of_row_as<RowBF16>(block, from);
    default:
      return most_of_row_as<RowF32>(block, from);
  }
}

void encode_row(const RowFormat& format, float* row, std::int64_t elements, const CodesAt& to) {
  if (format.rotate) turn(row, elements);
  const std::int64_t groups = elements / RowFormat::kGroup;
  switch (format.kind) {
    case RowFormat::kInt4:
      for (std::int64_t g = 0; g < groups; ++g) encode_int4(row + g * RowFormat::kGroup, to, g);
      return;
    case RowFormat::kQ8_0:
      for (std::int64_t g = 0; g < groups; ++g) {
        encode_q8_0(row + g * RowFormat::kGroup, to.codes + g * kQ8_0Bytes);
      }
      return;
    case RowFormat::kQ4_0:
      for (std::int64_t g = 0; g < groups; ++g) {
        encode_q4_0(row + g * RowFormat::kGroup, to.codes + g * kQ4_0Bytes);
      }
      return;
    default:
      break;
  }
  const std::int64_t shared = elements > RowFormat::kOneScale ? RowFormat::kStretch : elements;
  CodesAt at = to;
  for (std::int64_t g = 0, begin = 0; begin < elements; ++g, begin += shared) {
    const std::int64_t count = elements - begin < shared ? elements - begin : shared;
    if (format.kind == RowFormat::kInt8) {
      at.codes = to.codes + begin;
      encode_int8(row + begin, count, at, g);
    } else if (format.kind == RowFormat::kFp8E4M3) {
      at.codes = to.codes + begin;
      encode_fp8(row + begin, count, at, g);
    } else {
      at.codes = to.codes + begin / 2;
      encode_lm4(row + begin, count, at, g);
    }
  }
}

void encode(const CodedBlock& block) {
  alignas(64) float row[kMaxCodedElements];
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    for (std::int64_t head = 0; head < block.heads; ++head) {
      read_row(block, token, head, row);
      const CodesAt to = {
          block.codes + token * block.code_token_stride + head * block.code_head_stride,
          block.scales + token * 2 + head * block.scale_head_stride,
          block.zeros + token + head * (block.scale_head_stride / 2), block.scale_group_stride};
      encode_row(block.format, row, block.elements, to);
    }
  }
}

// Rows that are sure to be coded are told by their largest element, the others by the definition.
std::int64_t refused(const CodedBlock& block) {
  constexpr float kSure = 16384.0f;
  const std::int64_t turned = block.format.rotate ? block.elements & -block.elements : 1;
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    for (std::int64_t head = 0; head < block.heads; ++head) {
      const float most = float_of(most_of_row(block, token, head));
      if (most * most * static_cast<float>(turned) <= kSure * kSure) continue;
      CodedBlock one = block;
      one.rows =
          static_cast<char*>(block.rows) + token * block.token_stride + head * block.head_stride;
      one.tokens = one.heads = 1;
      if (first_refused(one) >= 0) return token;
    }
  }
  return -1;
}

void rotate(float* rows, std::int64_t count, std::int64_t stride, std::int64_t elements) {
  for (std::int64_t r = 0; r < count; ++r) turn(rows + r * stride, elements);
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
