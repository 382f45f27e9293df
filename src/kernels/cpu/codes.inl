// Rows that are stored coded, as floats: element for element what tensor/codecs/ defines, in
// vectors. A short file per instruction set includes it after its simd header; everything has
// internal linkage.
#include "kvcache/row_format.h"
#include "tensor/codecs/lm4.h"

namespace kvcache::internal::KVC_SIMD {
namespace {

// Where a row's codes are, and those of its scales and zeros that belong to its first elements; the
// others follow scale_group_stride bytes apart, zeros at half of that (RowsView).
struct CodedAt {
  const char* codes;
  const char* scales;
  const char* zeros;
};

// Elements that are decoded at a time.
constexpr int kCodes = 16;
constexpr int kCodeVecs = kCodes / kLanes;
constexpr int kGroup = static_cast<int>(RowFormat::kGroup);
constexpr int kGroupVecs = kGroup / kLanes;

KVC_SIMD_FN float f16_at(const char* at) {
  return load_f16_n(reinterpret_cast<const std::uint16_t*>(at), 1)[0];
}

// The first n <= 16 bytes from `from` on, the others 0.
KVC_SIMD_FN Codes load_codes(const char* from, std::int64_t n) {
  Codes codes = {};
  if (n >= kCodes) {
    __builtin_memcpy(&codes, from, kCodes);
  } else {
    __builtin_memcpy(&codes, from, static_cast<unsigned long>(n));
  }
  return codes;
}

// See tensor/codecs/fp8.h: bits of a number of f16 that is 2^8 times smaller, whose exponent has a
// bit more. Denormals are such there, and NaN stays NaN.
KVC_SIMD_FN void widen_fp8(Codes codes, F32* to) {
  const Words words = __builtin_convertvector(codes, Words);
  const Words nan = (((words + 1) & 0x7f) == 0) & 0x7c00;
  const Words halves = ((words << 7) & ~0x4000) | nan;
  widen_halves(halves, to);
}
constexpr float kFp8Unit = 256.0f;

KVC_SIMD_FN Codes lm4_levels() {
  Codes levels;
  __builtin_memcpy(&levels, kLm4Levels, sizeof(levels));
  return levels;
}

// How a form stores a group of 32 elements.
template <RowFormat::Kind kKind>
struct GroupForm {
  static constexpr bool kGgml = kKind == RowFormat::kQ8_0 || kKind == RowFormat::kQ4_0;
  static constexpr bool kHalves =
      kKind == RowFormat::kInt4 || kKind == RowFormat::kLm4 || kKind == RowFormat::kQ4_0;
  static constexpr bool kZeros = kKind == RowFormat::kInt4 || kKind == RowFormat::kQ4_0;
  // A scale of its own, and so no shorter group behind the last.
  static constexpr bool kOwnScale = kGgml || kKind == RowFormat::kInt4;
  static constexpr std::int64_t kCodesAt = kGgml ? 2 : 0;
  static constexpr std::int64_t kBytes = kCodesAt + (kHalves ? kGroup / 2 : kGroup);
  // What a widened code is multiplied by beside its scale.
  static constexpr float kUnit = kKind == RowFormat::kFp8E4M3 ? kFp8Unit : 1.0f;
};

// 16 codes as floats: those of a half of a group, or the first `n` behind the last whole group.
template <RowFormat::Kind kKind>
KVC_SIMD_FN void widen_half(const char* codes, int half, F32* x) {
  if constexpr (GroupForm<kKind>::kHalves) {
    const Codes bytes = load_codes(codes, kCodes);
    const Codes each = half == 0 ? low_halves(bytes) : high_halves(bytes);
    widen_codes(kKind == RowFormat::kLm4 ? look_up(lm4_levels(), each) : each, x);
  } else if constexpr (kKind == RowFormat::kFp8E4M3) {
    widen_fp8(load_codes(codes + half * kCodes, kCodes), x);
  } else {
    widen_codes(load_codes(codes + half * kCodes, kCodes), x);
  }
}
template <RowFormat::Kind kKind>
KVC_SIMD_FN void widen_rest(const char* codes, std::int64_t n, F32* x) {
  if constexpr (kKind == RowFormat::kLm4) {
    // 8 bytes, whose upper halves follow the lower.
    const Codes bytes = load_codes(codes, kCodes / 2);
    Codes both = low_halves(bytes);
    const Codes high = high_halves(bytes);
    __builtin_memcpy(reinterpret_cast<char*>(&both) + kCodes / 2, &high, kCodes / 2);
    widen_codes(look_up(lm4_levels(), both), x);
  } else if constexpr (kKind == RowFormat::kFp8E4M3) {
    widen_fp8(load_codes(codes, n), x);
  } else {
    widen_codes(load_codes(codes, n), x);
  }
}

// A group as floats, scale (code - zero), in two halves of kCodeVecs vectors. That is exact: a code
// and its scale have no more bits than a float.
template <RowFormat::Kind kKind>
KVC_SIMD_FN void widen_group(const char* codes, F32 scale, F32 zero_code, F32* x) {
#if KVC_SIMD_TABLE
  if constexpr (GroupForm<kKind>::kHalves) {
    // By a table of what the 16 codes stand for.
    F32 table;
    if constexpr (kKind == RowFormat::kLm4) {
      widen_codes(lm4_levels(), &table);
    } else {
      constexpr F32 kNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      table = kNumbers - zero_code;
    }
    table = table * scale;
    const U32 bytes = bytes_of(codes);
    x[0] = pick(table, bytes);
    x[1] = pick(table, bytes >> 4);
    return;
  }
#endif
  widen_half<kKind>(codes, 0, x);
  widen_half<kKind>(codes, 1, x + kCodeVecs);
#pragma GCC unroll 8
  for (int v = 0; v < kGroupVecs; ++v) {
    if constexpr (GroupForm<kKind>::kZeros) x[v] = x[v] - zero_code;
    x[v] = x[v] * scale;
  }
}

// Calls put(d, x, vectors) for the elements of a row in order, kLanes to a vector: two halves of a
// group at a time, then what is left by halves, zeros behind the last element. kScaled: with their
// scales; else each is to be multiplied by GroupForm::kUnit and the scale of the row.
template <RowFormat::Kind kKind, bool kScaled, typename Put>
KVC_SIMD_FN void decode_groups(const CodedAt& row, std::int64_t group_stride, std::int64_t dim,
                               Put put) {
  using Form = GroupForm<kKind>;
  const std::int64_t shared = RowFormat{kKind}.scale_elements(dim);
  const auto scale_at = [&](std::int64_t d) __attribute__((always_inline)) {
    if constexpr (!kScaled) return set1(1.0f);
    const char* at = Form::kGgml ? row.codes + d / kGroup * Form::kBytes
                                 : row.scales + (d < shared ? 0 : d / shared) * group_stride;
    return repeat_f16(reinterpret_cast<const std::uint16_t*>(at)) * set1(Form::kUnit);
  };
  const char* codes = row.codes + Form::kCodesAt;
  std::int64_t d = 0;
  for (; d + kGroup <= dim; d += kGroup, codes += Form::kBytes) {
    F32 zero_code = set1(8.0f);
    if constexpr (kKind == RowFormat::kInt4) {
      const std::int64_t zero_at = d / kGroup * (group_stride / 2);
      zero_code = set1(static_cast<float>(row.zeros[zero_at]));
    }
    F32 x[kGroupVecs];
    widen_group<kKind>(codes, scale_at(d), zero_code, x);
    put(d, x, kGroupVecs);
  }
  if constexpr (Form::kOwnScale) return;
  for (; d < dim; d += kCodes, codes += Form::kBytes / 2) {
    F32 x[kCodeVecs];
    widen_rest<kKind>(codes, dim - d, x);
#pragma GCC unroll 4
    for (F32& each : x) each = each * scale_at(d);
    put(d, x, kCodeVecs);
  }
}

// A row as floats [dim padded], zeros behind the last element. Still rotated, if it is.
template <RowFormat::Kind kKind>
KVC_SIMD_FN void decode_row(const CodedAt& row, std::int64_t group_stride, std::int64_t dim,
                            float* to) {
  decode_groups<kKind, true>(
      row, group_stride,
      dim, [&](std::int64_t d, const F32* x, int vectors) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) store(to + d + v * kLanes, x[v]);
      });
}

#if KVC_SIMD_DOT
// A row as bf16, whole pairs of vectors. Codes of a byte and the levels of lm4 are exact in it.
template <RowFormat::Kind kKind, bool kScaled>
KVC_SIMD_FN void decode_row_bf16(const CodedAt& row, std::int64_t group_stride, std::int64_t dim,
                                 std::uint16_t* to) {
  decode_groups<kKind, kScaled>(
      row, group_stride,
      dim, [&](std::int64_t d, const F32* x, int vectors) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v += 2) {
          const U32 pairs = round_pairs(x[v], v + 1 < vectors ? x[v + 1] : zero());
          __builtin_memcpy(to + d + v * kLanes, &pairs, sizeof(pairs));
        }
      });
}
#endif

// Calls f.template operator()<kind>() for a coded form.
template <typename F>
KVC_SIMD_FN void for_codes(RowFormat::Kind kind, F f) {
  switch (kind) {
    case RowFormat::kInt8:
      return f.template operator()<RowFormat::kInt8>();
    case RowFormat::kFp8E4M3:
      return f.template operator()<RowFormat::kFp8E4M3>();
    case RowFormat::kInt4:
      return f.template operator()<RowFormat::kInt4>();
    case RowFormat::kLm4:
      return f.template operator()<RowFormat::kLm4>();
    case RowFormat::kQ8_0:
      return f.template operator()<RowFormat::kQ8_0>();
    case RowFormat::kQ4_0:
      return f.template operator()<RowFormat::kQ4_0>();
    case RowFormat::kStrided:
      return;
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
