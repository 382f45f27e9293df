// What all forms of codes are made with, in vectors: chunks of 16 elements, and pieces of rows.
// Part of encode.inl.
//
// Pieces of rows that have a scale each go through a step together, as many as a vector has lanes:
// the many elements of one hide what the few numbers of another wait for, and those numbers are
// lanes of a vector.
#include "tensor/codecs/coded_block.h"

namespace kvcache::internal::KVC_SIMD {
namespace {

using I16 = std::int16_t __attribute__((vector_size(KVC_SIMD_BYTES / 2)));

constexpr std::int64_t kChunk = 16;  // elements that go together
constexpr int kChunkVecs = static_cast<int>(kChunk) / kLanes;
constexpr std::uint32_t kInfinite = 0x7f800000u;  // the bits of infinity

KVC_SIMD_FN float float_of(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// --- Lanes. ---

KVC_SIMD_FN U32 magnitude_bits(F32 x) { return bits_of(x) & set1_u32(0x7fffffffu); }
KVC_SIMD_FN F32 magnitude(F32 x) { return from_bits(magnitude_bits(x)); }

// The nearest whole number, ties to even: where kWholeNumbers was added, the low bits of a float
// count by one. REQUIRES: |x| < 2^22.
constexpr float kWholeNumbers = 0x1.8p23f;
constexpr std::uint32_t kWholeNumbersBits = 0x4b400000u;
KVC_SIMD_FN S32 nearest(F32 x) {
  return reinterpret_cast<S32>(bits_of(x + set1(kWholeNumbers)) - set1_u32(kWholeNumbersBits));
}
KVC_SIMD_FN S32 whole(int x) { return x - S32{}; }

// The low bytes of a chunk of whole numbers, of which `code` gives a vector.
template <typename Fn>
KVC_SIMD_FN Codes bytes_of_chunk(Fn code) {
  S32 numbers[kChunkVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kChunkVecs; ++v) numbers[v] = code(v);
  return narrow_codes(numbers);
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
KVC_SIMD_FN U32 higher_of(U32 a, U32 b) { return a > b ? a : b; }

KVC_SIMD_FN std::uint32_t most_of_lanes(U32 most) {
  const F32 top = of_lanes(
      from_bits(most), [](F32 a, F32 b) __attribute__((always_inline)) {
        return from_bits(higher_of(bits_of(a), bits_of(b)));
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
    most = higher_of(bits, most);
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

// --- Pieces. ---

// Elements that share a scale, zeros behind them up to a multiple of 16, and where they go to.
struct Piece {
  const float* row;
  std::int64_t count;
  std::byte *codes, *scale, *zero;
};
struct Pieces {
  Piece at[kLanes];
  int count = 0;
};

// Codes of a byte: `code` gives those of a vector of elements.
template <typename Fn>
KVC_SIMD_FN void put_bytes(std::byte* to, const Piece piece, Fn code) {
  const auto chunk = [&](std::int64_t at) __attribute__((always_inline)) {
    return bytes_of_chunk([&](int v) __attribute__((always_inline)) {
      return code(load(piece.row + at + v * kLanes));
    });
  };
  std::int64_t at = 0;
  for (; at + kChunk <= piece.count; at += kChunk) {
    const Codes bytes = chunk(at);
    __builtin_memcpy(to + at, &bytes, sizeof(bytes));
  }
  if (at == piece.count) return;
  const Codes bytes = chunk(at);
  __builtin_memcpy(to + at, &bytes, static_cast<unsigned long>(piece.count - at));
}

// A number of each piece, in its lane.
template <typename Fn>
KVC_SIMD_FN F32 of_pieces(const Pieces& pieces, Fn number) {
  float numbers[kLanes] = {};
  for (int i = 0; i < pieces.count; ++i) numbers[i] = number(pieces.at[i]);
  return load(numbers);
}
template <bool kFiniteOnly = false>
KVC_SIMD_FN F32 most_of_pieces(const Pieces& pieces) {
  return of_pieces(
      pieces, [](const Piece& piece) __attribute__((always_inline)) {
        return float_of(most_bits<kFiniteOnly>(piece.row, piece.count));
      });
}
// The least and the most of 0 and the elements of groups.
struct Range {
  F32 low, high;
};
KVC_SIMD_FN Range range_of_groups(const Pieces& pieces) {
  float lows[kLanes] = {};
  float highs[kLanes] = {};
  for (int i = 0; i < pieces.count; ++i) {
    F32 low = zero();
    F32 high = zero();
#pragma GCC unroll 8
    for (int v = 0; v < 2 * kChunkVecs; ++v) {
      const F32 x = load(pieces.at[i].row + v * kLanes);
      low = min(x, low);
      high = max(x, high);
    }
    const auto less = [](F32 a, F32 b) __attribute__((always_inline)) { return min(a, b); };
    const auto more = [](F32 a, F32 b) __attribute__((always_inline)) { return max(a, b); };
    lows[i] = of_lanes(low, less)[0];
    highs[i] = of_lanes(high, more)[0];
  }
  return {load(lows), load(highs)};
}

// Scales of pieces, and what their elements are multiplied by.
struct Scales {
  std::uint16_t half[kLanes];
  float inverse[kLanes];

  KVC_SIMD_FN Scales rounded(F32 scale, F32 inverse) {
    Scales scales;
    store_f16(scales.half, scale);
    store(scales.inverse, inverse);
    return scales;
  }
  // See scale_above() and inverse_of_scale() in scale.h.
  KVC_SIMD_FN Scales above(F32 value) {
    Scales scales;
    store_f16(scales.half, value);
    I16 half;
    __builtin_memcpy(&half, scales.half, sizeof(half));
    half -= __builtin_convertvector(load_f16(scales.half) < value, I16);
    __builtin_memcpy(scales.half, &half, sizeof(half));
    const F32 scale = load_f16(scales.half);
    store(scales.inverse, scale == zero() ? set1(1.0f) : set1(1.0f) / scale);
    return scales;
  }
  void put(int i, std::byte* to) const { __builtin_memcpy(to, &half[i], sizeof(half[i])); }
};

// The codes of two chunks, of a group of 32, as 16 bytes.
template <typename Fn>
KVC_SIMD_FN void put_nibbles(std::byte* to, Fn code) {
  S32 low[kChunkVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kChunkVecs; ++v) low[v] = code(v);
  const Codes bytes = bytes_of_chunk([&](int v) __attribute__((always_inline)) {
    return low[v] | (code(v + kChunkVecs) << 4);
  });
  __builtin_memcpy(to, &bytes, sizeof(bytes));
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
