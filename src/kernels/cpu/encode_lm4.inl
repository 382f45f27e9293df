// lm4 in vectors: see encode.inl and tensor/codecs/lm4.h.
#include "tensor/codecs/lm4.h"

namespace kvcache::internal::KVC_SIMD {
namespace {

// The code of |x|, 8 .. 15, and its level.
struct Level {
  S32 code;
  F32 level;
};
#if KVC_SIMD_TABLE
// For each stretch of 8 about a multiple of 8, in which lies one bound at most: code and level at
// its begin, that bound, and code and level past it.
struct LevelTable {
  std::uint32_t code[16], code_past[16];
  float level[16], level_past[16], bound[16];
};
// The stretch in which x lies is in the low bits of x + kStretches.
constexpr float kStretches = 0x1p26f;
constexpr float kLastStretch = 120.0f;
constexpr LevelTable level_table() {
  LevelTable table = {};
  for (int i = 0; i < 16; ++i) {
    int up = 0;
    while (up < 7 && kLm4Bounds[up] <= static_cast<float>(8 * i - 4)) ++up;
    const bool here = up < 7 && kLm4Bounds[up] < static_cast<float>(8 * i + 4);
    const int past = here ? up + 1 : up;
    table.code[i] = static_cast<std::uint32_t>(8 + up);
    table.code_past[i] = static_cast<std::uint32_t>(8 + past);
    table.level[i] = kLm4Levels[8 + up];
    table.level_past[i] = kLm4Levels[8 + past];
    table.bound[i] = here ? kLm4Bounds[up] : __builtin_inff();
  }
  return table;
}
// Whether it says of every quarter what the definition says.
constexpr bool finds_levels(const LevelTable& table) {
  for (float x = 0; x <= kLastStretch; x += 0.25f) {
    unsigned up = 0;
    while (up < 7 && x >= kLm4Bounds[up]) ++up;
    const auto i = __builtin_bit_cast(std::uint32_t, x + kStretches) & 15;
    const bool past = x >= table.bound[i];
    if ((past ? table.code_past[i] : table.code[i]) != 8 + up) return false;
    const float level = past ? table.level_past[i] : table.level[i];
    if (level != static_cast<float>(kLm4Levels[8 + up])) return false;
  }
  return kLastStretch >= kLm4Bounds[6];
}
static_assert(finds_levels(level_table()));
#endif
KVC_SIMD_FN Level level_of(F32 x) {
#if KVC_SIMD_TABLE
  static constexpr LevelTable kTable = level_table();
  const F32 within = min(x, set1(kLastStretch));
  const U32 stretch = bits_of(within + set1(kStretches));
  const auto at = [&](const std::uint32_t* code) __attribute__((always_inline)) {
    return reinterpret_cast<S32>(bits_of(pick(from_bits(load_u32(code)), stretch)));
  };
  const S32 past = within >= pick(load(kTable.bound), stretch);
  return {past ? at(kTable.code_past) : at(kTable.code),
          past ? pick(load(kTable.level_past), stretch) : pick(load(kTable.level), stretch)};
#else
  S32 code = whole(8);
  F32 level = set1(kLm4Levels[8]);
#pragma GCC unroll 7
  for (int b = 0; b < 7; ++b) {
    const S32 past = x >= set1(kLm4Bounds[b]);
    code -= past;
#if !KVC_SIMD_EIGHT
    const float step = static_cast<float>(kLm4Levels[9 + b] - kLm4Levels[8 + b]);
    level = level + (past ? set1(step) : zero());
#endif
  }
#if KVC_SIMD_EIGHT
  static constexpr float kLevels[8] = {kLm4Levels[8],  kLm4Levels[9],  kLm4Levels[10],
                                       kLm4Levels[11], kLm4Levels[12], kLm4Levels[13],
                                       kLm4Levels[14], kLm4Levels[15]};
  level = pick_eight(load(kLevels), reinterpret_cast<U32>(code));
#endif
  return {code, level};
#endif
}

// A pass of lm4 over a piece: the unit that is best for the codes of `unit`, which are written if
// this is the last pass.
template <bool kLast>
KVC_SIMD_FN float fit_lm4(const Piece piece, float unit) {
  const F32 inverse = set1(1.0f / unit);
  Lanes16 products = {};
  Lanes16 levels = {};
  const auto code = [&](std::int64_t chunk, int v) __attribute__((always_inline)) {
    const F32 x = load(piece.row + chunk + v * kLanes);
    const Level at = level_of(magnitude(x) * inverse);
    products.sum[v] = products.sum[v] + magnitude(x) * at.level;
    levels.sum[v] = levels.sum[v] + at.level * at.level;  // whole numbers: exact
    // 15 - code of what is negative.
    return at.code ^ ((reinterpret_cast<S32>(bits_of(x)) >> 31) & whole(15));
  };
  std::int64_t i = 0;
  for (; i + RowFormat::kGroup <= piece.count; i += RowFormat::kGroup) {
    if constexpr (kLast) {
      put_nibbles(
          piece.codes + i / 2, [&](int v) __attribute__((always_inline)) {
            return v < kChunkVecs ? code(i, v) : code(i + kChunk, v - kChunkVecs);
          });
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < 2 * kChunkVecs; ++v)
        (void)code(i + v / kChunkVecs * kChunk, v % kChunkVecs);
    }
  }
  if (i < piece.count) {
    const Codes last =
        bytes_of_chunk([&](int v) __attribute__((always_inline)) { return code(i, v); });
    for (int l = 0; kLast && l < kChunk / 2; ++l) {  // 16 elements in 8 bytes
      piece.codes[i / 2 + l] = static_cast<std::byte>(last[l] | (last[l + kChunk / 2] << 4));
    }
  }
  return Lanes16::total(products) / Lanes16::total(levels);
}

void encode_lm4(const Pieces& pieces) {
  float units[kLanes] = {};
  for (int i = 0; i < pieces.count; ++i) {
    const Piece piece = pieces.at[i];
    Lanes16 squares = {};
    for (std::int64_t at = 0; at < piece.count; at += kChunk) {
#pragma GCC unroll 4
      for (int v = 0; v < kChunkVecs; ++v) {
        const F32 x = load(piece.row + at + v * kLanes);
        squares.sum[v] = squares.sum[v] + x * x;
      }
    }
    const float mean = Lanes16::total(squares) / static_cast<float>(piece.count);
    units[i] = __builtin_sqrtf(mean) * kLm4Unit;
  }
  const F32 first = load(units);
  const auto fit = [&]<bool kLast>() __attribute__((always_inline)) {
    for (int i = 0; i < pieces.count; ++i) {
      // Of those that are coded as zeros it may be anything.
      units[i] = fit_lm4<kLast>(pieces.at[i], units[i] > 0 ? units[i] : 1.0f);
    }
  };
  static_assert(kLm4Passes == 2);
  fit.template operator()<false>();
  fit.template operator()<true>();
  const F32 unit = first >= set1(kLm4LeastUnit) ? load(units) : zero();
  const Scales scales = Scales::rounded(unit, zero());
  for (int i = 0; i < pieces.count; ++i) {
    const Piece piece = pieces.at[i];
    scales.put(i, piece.scale);
    if (scales.half[i] == 0) {
      __builtin_memset(piece.codes, 0, static_cast<unsigned long>(piece.count / 2));
    }
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
