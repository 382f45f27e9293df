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

// scale * codes, to `to`.
KVC_SIMD_FN void store_scaled(Codes codes, float scale, float* to) {
  F32 x[kCodeVecs];
  widen_codes(codes, x);
#pragma GCC unroll 4
  for (int i = 0; i < kCodeVecs; ++i) store(to + i * kLanes, x[i] * set1(scale));
}

// See tensor/codecs/fp8.h: a value of exponent e > 0 has its bits where a float has them, less the
// difference of the biases.
KVC_SIMD_FN F32 widen_fp8(F32 code) {  // -128 .. 127
  const F32 magnitude = code < zero() ? code + set1(128.0f) : code;
  const U32 bits = bits_of(magnitude + set1(0x1p23f)) & set1_u32(0x7fu);
  const F32 normal = from_bits((bits << 20) + set1_u32(120u << 23));
  F32 x = bits < set1_u32(8) ? magnitude * set1(0x1p-9f) : normal;
  x = bits == set1_u32(0x7fu) ? from_bits(set1_u32(0x7fc00000u)) : x;
  return from_bits(bits_of(x) | (bits_of(code) & set1_u32(0x80000000u)));
}

KVC_SIMD_FN Codes lm4_levels() {
  Codes levels;
  __builtin_memcpy(&levels, kLm4Levels, sizeof(levels));
  return levels;
}

// A row as floats [dim padded], zeros behind the last element. Still rotated, if it is.
template <RowFormat::Kind kKind>
KVC_SIMD_FN void decode_row(const CodedAt& row, std::int64_t group_stride, std::int64_t dim,
                            float* to) {
  constexpr std::int64_t kGroup = RowFormat::kGroup;
  if constexpr (kKind == RowFormat::kQ8_0) {
    const char* block = row.codes;
    for (std::int64_t d = 0; d < dim; d += kGroup, block += 34) {
      const float scale = f16_at(block);
      store_scaled(load_codes(block + 2, kCodes), scale, to + d);
      store_scaled(load_codes(block + 2 + kCodes, kCodes), scale, to + d + kCodes);
    }
  } else if constexpr (kKind == RowFormat::kQ4_0 || kKind == RowFormat::kInt4) {
    const bool ggml = kKind == RowFormat::kQ4_0;
    const char* codes = row.codes + (ggml ? 2 : 0);
    const char* scales = ggml ? row.codes : row.scales;
    const char* zeros = row.zeros;
    for (std::int64_t d = 0; d < dim; d += kGroup) {
      const Codes bytes = load_codes(codes, kCodes);
      const float scale = f16_at(scales);
      const Codes zero_code = Codes{} + static_cast<signed char>(ggml ? 8 : *zeros);
      store_scaled(low_halves(bytes) - zero_code, scale, to + d);
      store_scaled(high_halves(bytes) - zero_code, scale, to + d + kCodes);
      codes += ggml ? 18 : 16;
      scales += ggml ? 18 : group_stride;
      zeros += group_stride / 2;
    }
  } else {
    const std::int64_t shared = RowFormat{kKind}.scale_elements(dim);
    const char* scales = row.scales;
    for (std::int64_t begin = 0; begin < dim; begin += shared, scales += group_stride) {
      const std::int64_t end = begin + shared < dim ? begin + shared : dim;
      const float scale = f16_at(scales);
      if constexpr (kKind == RowFormat::kLm4) {
        const Codes levels = lm4_levels();
        for (std::int64_t d = begin; d < end; d += kGroup) {
          // The last group may be of 16 elements: 8 bytes, whose upper halves follow the lower 8.
          if (end - d < kGroup) {
            const Codes bytes = load_codes(row.codes + d / 2, kCodes / 2);
            Codes both = low_halves(bytes);
            const Codes high = high_halves(bytes);
            __builtin_memcpy(reinterpret_cast<char*>(&both) + kCodes / 2, &high, kCodes / 2);
            store_scaled(look_up(levels, both), scale, to + d);
            break;
          }
          const Codes bytes = load_codes(row.codes + d / 2, kCodes);
          store_scaled(look_up(levels, low_halves(bytes)), scale, to + d);
          store_scaled(look_up(levels, high_halves(bytes)), scale, to + d + kCodes);
        }
      } else {
        for (std::int64_t d = begin; d < end; d += kCodes) {
          const Codes codes = load_codes(row.codes + d, end - d);
          if constexpr (kKind == RowFormat::kInt8) {
            store_scaled(codes, scale, to + d);
          } else {
            F32 x[kCodeVecs];
            widen_codes(codes, x);
#pragma GCC unroll 4
            for (int i = 0; i < kCodeVecs; ++i) {
              store(to + d + i * kLanes, set1(scale) * widen_fp8(x[i]));
            }
          }
        }
      }
    }
  }
}

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
