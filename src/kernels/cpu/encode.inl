// Rows that become codes: bit for bit what tensor/codecs/ defines, in vectors. Part of rows.inl. A
// row that is not of floats in whole chunks, or is to be turned (rotate.inl), is first brought into
// floats, zeros behind its end; from there on an element takes the operations of the definition in
// their order, 16 elements at a time, and sums are of 16 lanes (lm4.h), whatever the width of a
// vector.
#include "tensor/codecs/ggml.h"

#include "kernels/cpu/encode_pieces.inl"

#include "kernels/cpu/encode_lm4.inl"

namespace kvcache::internal::KVC_SIMD {
namespace {

// --- The forms but lm4. ---

void encode_int8(const Pieces& pieces) {
  const Scales scales = Scales::above(most_of_pieces(pieces) / set1(127.0f));
  for (int i = 0; i < pieces.count; ++i) {
    const Piece piece = pieces.at[i];
    const F32 by = set1(scales.inverse[i]);
    scales.put(i, piece.scale);
    put_bytes(
        piece.codes, piece, [&](F32 x) __attribute__((always_inline)) { return nearest(x * by); });
  }
}

// See f32_to_e4m3.
KVC_SIMD_FN S32 e4m3_codes(F32 x) {
  const U32 bits = magnitude_bits(x);
  const U32 normal =
      (bits - set1_u32(120u << 23) + set1_u32(0x7ffffu) + ((bits >> 20) & set1_u32(1))) >> 20;
  const U32 denormal = bits_of(from_bits(bits) + set1(16384.0f)) & set1_u32(15);
  U32 code = bits < set1_u32(121u << 23) ? denormal : normal;
  code = bits > set1_u32(0x43e80000u) ? set1_u32(0x7fu) : code;
  return reinterpret_cast<S32>(code | ((bits_of(x) >> 24) & set1_u32(0x80u)));
}

void encode_fp8(const Pieces& pieces) {
  const Scales scales = Scales::above(most_of_pieces<true>(pieces) / set1(448.0f));
  for (int i = 0; i < pieces.count; ++i) {
    const Piece piece = pieces.at[i];
    const F32 by = set1(scales.inverse[i]);
    scales.put(i, piece.scale);
    put_bytes(
        piece.codes,
        piece, [&](F32 x) __attribute__((always_inline)) { return e4m3_codes(x * by); });
  }
}

void encode_int4(const Pieces& pieces) {
  const Range range = range_of_groups(pieces);
  const Scales scales = Scales::above((range.high - range.low) / set1(15.0f));
  const S32 origins = nearest((zero() - range.low) * load(scales.inverse));
  for (int i = 0; i < pieces.count; ++i) {
    const Piece piece = pieces.at[i];
    const F32 by = set1(scales.inverse[i]);
    const S32 origin = whole(origins[i]);
    scales.put(i, piece.scale);
    *piece.zero = static_cast<std::byte>(origins[i]);
    put_nibbles(
        piece.codes, [&](int v) __attribute__((always_inline)) {
          const S32 code = nearest(load(piece.row + v * kLanes) * by) + origin;
          const S32 above = code < S32{} ? S32{} : code;
          return above > whole(15) ? whole(15) : above;
        });
  }
}

// 1 / d; 0 where that is none (ggml.h).
KVC_SIMD_FN F32 inverse_of(F32 delta) {
  const F32 inverse = delta == zero() ? zero() : set1(1.0f) / delta;
  return magnitude(inverse) == from_bits(set1_u32(kInfinite)) ? zero() : inverse;
}

void encode_q8_0(const Pieces& pieces) {
  const F32 delta = most_of_pieces(pieces) / set1(127.0f);
  const Scales scales = Scales::rounded(delta, inverse_of(delta));
  for (int i = 0; i < pieces.count; ++i) {
    const Piece piece = pieces.at[i];
    scales.put(i, piece.codes);
    const F32 by = set1(scales.inverse[i]);
    put_bytes(
        piece.codes + 2, piece, [&](F32 each) __attribute__((always_inline)) {
          const F32 x = each * by;
          // Ties away from 0.
          const S32 down = __builtin_convertvector(magnitude(x), S32);
          const S32 up = magnitude(x) - __builtin_convertvector(down, F32) >= set1(0.5f);
          const S32 sign = reinterpret_cast<S32>(bits_of(x)) >> 31;
          return ((down - up) ^ sign) - sign;
        });
  }
}

// The first element of the largest magnitude.
float extreme_of(const float* group) {
  float x[RowFormat::kGroup];
  __builtin_memcpy(x, group, sizeof(x));
  float extreme = x[0];
  for (const float each : x) {
    if (__builtin_fabsf(each) > __builtin_fabsf(extreme)) extreme = each;
  }
  return extreme;
}

void encode_q4_0(const Pieces& pieces) {
  const Range range = range_of_groups(pieces);
  const S32 either = range.high + range.low == zero();
  float extremes[kLanes];
  store(extremes, range.high + range.low > zero() ? range.high : range.low);
  for (int i = 0; i < pieces.count; ++i) {
    if (either[i] != 0) extremes[i] = extreme_of(pieces.at[i].row);
  }
  const F32 delta = load(extremes) / set1(-8.0f);
  const Scales scales = Scales::rounded(delta, inverse_of(delta));
  for (int i = 0; i < pieces.count; ++i) {
    const Piece piece = pieces.at[i];
    scales.put(i, piece.codes);
    put_nibbles(
        piece.codes + 2, [&](int v) __attribute__((always_inline)) {
          const F32 x = load(piece.row + v * kLanes);
          F32 code;
#if KVC_SIMD_FUSED
          code = fma(x, set1(scales.inverse[i]), set1(8.5f));
#else
    for (int l = 0; l < kLanes; ++l) code[l] = __builtin_fmaf(x[l], scales.inverse[i], 8.5f);
#endif
          const S32 down = __builtin_convertvector(code, S32);
          return down > whole(15) ? whole(15) : down;
        });
  }
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

KVC_SIMD_FN void read_row(const CodedBlock& block, const char* from, float* to) {
  switch (block.dtype) {
    case DType::kF16:
      return read_row_as<RowF16>(from, block.element_stride, block.elements, to);
    case DType::kBF16:
      return read_row_as<RowBF16>(from, block.element_stride, block.elements, to);
    default:
      return read_row_as<RowF32>(from, block.element_stride, block.elements, to);
  }
}

// Rows that go together, as floats.
struct Rows {
  const float* row[kLanes];
  CodedRow to[kLanes];
  int count = 0;
};

// Cuts rows into pieces of `shared` elements, whose codes take `bytes`.
KVC_SIMD_FN void encode_pieces(const Rows& rows, std::int64_t elements, std::int64_t shared,
                               std::int64_t bytes, void (*encode)(const Pieces&)) {
  Pieces pieces;
  for (int i = 0; i < rows.count; ++i) {
    const CodedRow& to = rows.to[i];
    for (std::int64_t g = 0, begin = 0; begin < elements; ++g, begin += shared) {
      if (pieces.count == kLanes) {
        encode(pieces);
        pieces.count = 0;
      }
      pieces.at[pieces.count++] = {rows.row[i] + begin,
                                   elements - begin < shared ? elements - begin : shared,
                                   to.codes + g * bytes, to.scales + g * to.scale_stride,
                                   to.zeros + g * (to.scale_stride / 2)};
    }
  }
  encode(pieces);
}

void encode_rows(const Rows& rows, RowFormat::Kind kind, std::int64_t elements) {
  constexpr std::int64_t kOfGroup = RowFormat::kGroup;
  const std::int64_t shared = elements > RowFormat::kOneScale ? RowFormat::kStretch : elements;
  switch (kind) {
    case RowFormat::kInt4:
      return encode_pieces(rows, elements, kOfGroup, kOfGroup / 2, encode_int4);
    case RowFormat::kQ8_0:
      return encode_pieces(rows, elements, kOfGroup, kQ8_0Bytes, encode_q8_0);
    case RowFormat::kQ4_0:
      return encode_pieces(rows, elements, kOfGroup, kQ4_0Bytes, encode_q4_0);
    case RowFormat::kInt8:
      return encode_pieces(rows, elements, shared, shared, encode_int8);
    case RowFormat::kFp8E4M3:
      return encode_pieces(rows, elements, shared, shared, encode_fp8);
    default:
      return encode_pieces(rows, elements, shared, shared / 2, encode_lm4);
  }
}

// Where a row's codes and scales go is often in no cache: it is asked for before it is needed.
KVC_SIMD_FN void ask_for(const CodedRow& to, std::int64_t code_bytes, std::int64_t scales) {
  for (std::int64_t at = 0; at < code_bytes; at += 64) __builtin_prefetch(to.codes + at, 1);
  for (std::int64_t g = 0; g < scales; ++g) {
    __builtin_prefetch(to.scales + g * to.scale_stride, 1);
  }
}

// See rotate.h.
KVC_SIMD_FN void drop_signs_of_nan(float* row, std::int64_t elements) {
  for (std::int64_t i = 0; i < elements; i += kLanes) {
    const F32 x = load(row + i);
    store(row + i, x == x ? x : magnitude(x));
  }
}

void encode(const CodedBlock& block) {
  const std::int64_t elements = block.elements;
  const std::int64_t code_bytes = block.format.code_bytes(elements);
  const std::int64_t scales = block.format.num_scales(elements);
  const bool as_they_are = block.dtype == DType::kF32 && block.element_stride == sizeof(float) &&
                           elements % kChunk == 0 && !block.format.rotate;
  alignas(64) float floats[kMaxCodedElements];
  const std::int64_t stride = as_they_are ? 0 : padded(elements);
  Rows rows;
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    for (std::int64_t head = 0; head < block.heads; ++head) {
      if (rows.count == kLanes || (rows.count + 1) * stride > kMaxCodedElements) {
        encode_rows(rows, block.format.kind, elements);
        rows.count = 0;
      }
      const CodedRow to = block.coded(token, head);
      ask_for(to, code_bytes, scales);
      const char* const from = block.row(token, head);
      float* const row = floats + rows.count * stride;
      if (!as_they_are) read_row(block, from, row);
      if (block.format.rotate) turn(row, elements);
      if (block.format.rotate && block.format.kind == RowFormat::kFp8E4M3) {
        drop_signs_of_nan(row, elements);
      }
      rows.row[rows.count] = as_they_are ? reinterpret_cast<const float*>(from) : row;
      rows.to[rows.count++] = to;
    }
  }
  if (rows.count > 0) encode_rows(rows, block.format.kind, elements);
}

// --- What is refused. ---

// The bits of |x|, the largest of a row of the caller's and of `most`.
template <typename From>
KVC_SIMD_FN U32 most_of_row_as(const CodedBlock& block, const char* from, U32 most) {
  using In = typename From::Stored;
  const In* const at = reinterpret_cast<const In*>(from);
  std::int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kLanes <= block.elements; i += kLanes) {
    most = higher_of(magnitude_bits(From::widen(at + i)), most);
  }
  const int left = static_cast<int>(block.elements - i);
  return left == 0 ? most : higher_of(magnitude_bits(From::widen_n(at + i, left)), most);
}

KVC_SIMD_FN U32 most_of_row(const CodedBlock& block, const char* from, U32 most) {
  if (block.element_stride != size_of(block.dtype)) {
    alignas(64) float row[kMaxCodedElements];
    read_row(block, from, row);
    return higher_of(set1_u32(most_bits(row, block.elements)), most);
  }
  switch (block.dtype) {
    case DType::kF16:
      return most_of_row_as<RowF16>(block, from, most);
    case DType::kBF16:
      return most_of_row_as<RowBF16>(block, from, most);
    default:
      return most_of_row_as<RowF32>(block, from, most);
  }
}

// Tokens that are sure to be coded are told by their largest element, the others by the definition.
std::int64_t refused(const CodedBlock& block) {
  constexpr float kSure = 16384.0f;
  const std::int64_t turned = block.format.rotate ? block.elements & -block.elements : 1;
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    U32 bits = U32{};
    for (std::int64_t head = 0; head < block.heads; ++head) {
      bits = most_of_row(block, block.row(token, head), bits);
    }
    const float most = float_of(most_of_lanes(bits));
    if (most * most * static_cast<float>(turned) <= kSure * kSure) continue;
    CodedBlock one = block;
    one.rows = block.row(token, 0);
    one.tokens = 1;
    if (first_refused(one) >= 0) return token;
  }
  return -1;
}

void rotate(float* rows, std::int64_t count, std::int64_t stride, std::int64_t elements) {
  for (std::int64_t r = 0; r < count; ++r) turn(rows + r * stride, elements);
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
