// Few query rows over coded keys and values by dot products of bytes: where the header has one
// (KVC_SIMD_BYTE_DOT). See attention_few_whole.inl. For rows of int8 and lm4 with one scale, which
// is not negative.
//
// Scores. The whole numbers of a query are two planes of signed bytes, 128 h + l: 2^-15 of its
// largest element is lost. Keys are made unsigned by adding 128, and -128 sum(q) is where the sums
// begin. Four keys lie side by side in the lanes of a vector, 16 elements each, and two such
// vectors are multiplied side by side, so that a load of a plane serves eight keys, and few
// operations add up a score.
//
// Values. Weights are two planes of unsigned bytes, 256 h + l: 2^-17 of a block's largest is lost.
// The bytes of four values lie side by side, so that a dot product adds four keys.
//
// Cost per key and row, of k_dim + v_dim elements: 2 / 64 dot products an element, and for all rows
// 2 / 64 shuffles and what unpacks 4 bits. Source of the idea of planes: our own; vpdpbusd
// multiplies unsigned with signed bytes (Intel SDM, AVX512_VNNI).
namespace kvcache::internal::KVC_SIMD {
namespace {

constexpr int kPlanes = 2;
constexpr int kQueryMax = 127 * 128 + 63;
constexpr int kWeightMax = 65535;

// Floats of a row of results, of 4 bits two for each byte of a line.
KVC_SIMD_FN int64_t line_floats(int64_t dim) { return (dim + 127) / 128 * 128; }

// Elements of a row up to whole vectors of bytes.
KVC_SIMD_FN int64_t pad_bytes(int64_t dim) { return (dim + 63) / 64 * 64; }

// Bytes of a packed query row.
KVC_SIMD_FN int64_t packed_bytes(int64_t dim) { return pad_bytes(dim) / 16 * kPlanes * 64; }

// A query row of a chunk.
struct WholeRow {
  float scale;
  int32_t start[kPlanes];  // of each of four sums over unsigned bytes
  // Of keys with a scale a group, of each:
  float units[kMostGroups];   // in the place of `scale`
  int32_t sums[kMostGroups];  // of its whole numbers
};

// Query planes of a chunk: for each four rows, of each 16 elements and row, both planes, repeated
// in all lanes. [rows, pad_bytes(dim) / 16, kPlanes] vectors, rows of a four innermost but planes.
void pack_whole(const RowFormat& keys, const float* q, int rows, int64_t dim, char* packed,
                WholeRow* info) {
  const int64_t chunks = pad_bytes(dim) / 16;
  const bool groups = keys.kind != RowFormat::kInt8 && keys.kind != RowFormat::kLm4;
  auto* const to = reinterpret_cast<int8_t*>(packed);
  for_fours(rows, [&]<int kRows>(int r) {
    for (int i = 0; i < kRows; ++i) {
      const float* row = q + (r + i) * pad(dim);
      QueryUnit unit = unit_of_query(row, dim, kQueryMax);
      WholeRow& mine = info[r + i];
      mine.scale = unit.scale;
      int32_t sums[kPlanes] = {0, 0};
      for (int32_t& sum : mine.sums) sum = 0;
      for (int64_t c = 0; c < chunks; ++c) {
        int8_t planes[kPlanes][16] = {};
        if (c * 16 < dim) {
          const int64_t g = c * 16 / kGroup;
          if (groups && c * 16 % kGroup == 0) {
            unit = unit_of_query(row + c * 16, kGroup, kQueryMax);
            mine.units[g] = unit.scale;
          }
          float x[16];
          for (int v = 0; v < 16 / kLanes; ++v) {
            store(x + v * kLanes, load(row + c * 16 + v * kLanes) * unit.by);
          }
          for (int d = 0; d < 16; ++d) {
            // The largest may be rounded past its place. NaN becomes something: its scale is NaN.
            float element = x[d] < kQueryMax ? x[d] : kQueryMax;
            element = element > -kQueryMax ? element : -kQueryMax;
            const auto whole = static_cast<int32_t>(__builtin_rintf(element));
            const int32_t high = (whole + 64) >> 7;
            planes[0][d] = static_cast<int8_t>(high);
            planes[1][d] = static_cast<int8_t>(whole - high * 128);
            sums[0] += planes[0][d];
            sums[1] += planes[1][d];
            mine.sums[g] += high * 128 + planes[1][d];
          }
        }
        int8_t* at = to + (r * chunks + c * kRows + i) * int64_t{kPlanes * 64};
        for (int p = 0; p < kPlanes; ++p) {
          for (int lane = 0; lane < 4; ++lane) {
            __builtin_memcpy(at + p * 64 + lane * 16, planes[p], 16);
          }
        }
      }
      for (int p = 0; p < kPlanes; ++p) mine.start[p] = -128 * sums[p] / 4;
    }
  });
}

// Fours of keys that are scored side by side: each load of a plane serves all.
constexpr int kKeyFours = 2;

// Sums of kRows rows with 16 elements of kKeyFours times four keys.
template <int kRows>
KVC_SIMD_FN void dot_chunk(const Bytes (&keys)[kKeyFours], const int8_t* q,
                           S32 (&sums)[kRows][kPlanes][kKeyFours]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kPlanes; ++p) {
      const Bytes plane =
          in_register(load_bytes(reinterpret_cast<const char*>(q + (r * kPlanes + p) * 64)));
#pragma GCC unroll 2
      for (int f = 0; f < kKeyFours; ++f) {
        sums[r][p][f] = dot_bytes(sums[r][p][f], keys[f], plane);
      }
    }
  }
}

// Scores of kRows rows with all 16 keys of a step: scores[row * to_stride + key].
template <RowFormat::Kind kKind, int kRows, Prefetch kAsk>
[[gnu::noinline]] void score_bytes(const int8_t* q, const WholeRow* info, int64_t dim,
                                   const Step& here, const Step& ahead, F32 key_scales,
                                   float* scores, int64_t to_stride) {
  constexpr bool kHalves = kKind == RowFormat::kLm4;
  constexpr int64_t kChunk = int64_t{kRows} * kPlanes * 64;
  const Bytes levels = flip(repeat_table(lm4_levels()));
  const int64_t bytes = kHalves ? dim / 2 : dim;
  S32 parts[kStreams][kRows];
#pragma GCC unroll 1
  for (int s = 0; s < kStreams; s += kKeyFours) {
    S32 sums[kRows][kPlanes][kKeyFours];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int p = 0; p < kPlanes; ++p) {
#pragma GCC unroll 2
        for (int f = 0; f < kKeyFours; ++f) sums[r][p][f] = S32{} + info[r].start[p];
      }
    }
    const int8_t* at = q;
#pragma GCC unroll 1
    for (int64_t line = 0; line < bytes; line += 64) {
      Bytes lanes[kKeyFours][4];
#pragma GCC unroll 2
      for (int f = 0; f < kKeyFours; ++f) {
        Bytes x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          x[i] = load_bytes(here.rows[i * kStreams + s + f] + line, bytes - line);
          ask<kAsk>(ahead.rows[i * kStreams + s + f] + line);
        }
        exchange_lanes(x, lanes[f]);
      }
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        if (c > 0 && line + c * 16 >= bytes) break;
        const Bytes chunk[kKeyFours] = {lanes[0][c], lanes[1][c]};
        if constexpr (kHalves) {
          const Bytes low[kKeyFours] = {look_up(levels, low_halves(chunk[0])),
                                        look_up(levels, low_halves(chunk[1]))};
          dot_chunk<kRows>(low, at, sums);
          const Bytes high[kKeyFours] = {look_up(levels, high_halves(chunk[0])),
                                         look_up(levels, high_halves(chunk[1]))};
          dot_chunk<kRows>(high, at + kChunk, sums);
          at += 2 * kChunk;
        } else {
          const Bytes whole[kKeyFours] = {flip(chunk[0]), flip(chunk[1])};
          dot_chunk<kRows>(whole, at, sums);
          at += kChunk;
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int f = 0; f < kKeyFours; ++f) {
        parts[s + f][r] = (sums[r][0][f] << 7) + sums[r][1][f];
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const S32 sum = add_neighbours(add_neighbours(parts[0][r], parts[2][r]),
                                   add_neighbours(parts[1][r], parts[3][r]));
    store(scores + r * to_stride, to_float(sum) * (key_scales * set1(info[r].scale)));
  }
}

// Scores of a chunk of rows with a step, in the slots of its block: scores[row * kScores + slot].
template <RowFormat::Kind kKind, Prefetch kAsk>
void score_few_bytes(const char* q, const WholeRow* info, int rows, int64_t dim, const Step& here,
                     const Step& ahead, float* scores) {
  F32 key_scales[kStepVecs];
  scales_of_step(here, 0, key_scales);
  score_whole(
      rows, here,
      scores, [&]<int kRows>(int r, float* to, int64_t to_stride) __attribute__((always_inline)) {
        const auto* from = reinterpret_cast<const int8_t*>(q + r * packed_bytes(dim));
        // The lines ahead are asked for once.
        if (r == 0) {
          score_bytes<kKind, kRows, kAsk>(from, info, dim, here, ahead, key_scales[0], to,
                                          to_stride);
        } else {
          score_bytes<kKind, kRows, Prefetch::kNone>(from, info + r, dim, here, ahead,
                                                     key_scales[0], to, to_stride);
        }
      });
}

// The weights of a row times the scales of the values, both in the order of the block's keys, as
// whole numbers up to `most`, 0 behind the last. Returns their factor: NaN where one is not finite.
// Scales behind weights of 0 may be anything.
KVC_SIMD_FN float round_weights(const float* weights, const float* scales, int keys, float most,
                                S32 (&whole)[kBlockVecs]) {
  F32 x[kBlockVecs];
  U32 top = {};
#pragma GCC unroll 4
  for (int v = 0; v < kBlockVecs; ++v) {
    x[v] = zero();
    if (v * kLanes >= keys) continue;
    const F32 weight = load(weights + v * kLanes);
    x[v] = weight == zero() ? zero() : weight * load(scales + v * kLanes);
    // Scales of ggml may be negative. NaN is above all numbers.
    top = max(top, bits_of(x[v]) & set1_u32(0x7fffffffu));
  }
  const float largest = from_bits(largest_everywhere(top))[0];
  // Below that, weights are 0 in all but name. NaN is not.
  const bool some = !(largest <= 1e-30f);
  const F32 by = set1(some ? most / largest : 0.0f);
#pragma GCC unroll 4
  for (int v = 0; v < kBlockVecs; ++v) whole[v] = to_nearest(x[v] * by);
  return (some ? largest / most : 0.0f) + largest * 0.0f;
}

// Values of a block with their scales, and weights of up to four rows.
struct ByteBlock : ValueBlock {
  float scales[kBlock];
  uint8_t weights[4][kPlanes][kBlock];
  float factors[4];

  // The scales of a step that was added.
  template <RowFormat::Kind kKind>
  [[gnu::always_inline]] void add_scales(const RowsView&, int64_t, const Step& step) {
    F32 x[kStepVecs];
    scales_of_step(step, 0, x);
    store(scales + keys - kStep, x[0]);
  }

  [[gnu::always_inline]] void round(int row, const float* from) {
    S32 whole[kBlockVecs];
    factors[row] = round_weights(from, scales, keys, kWeightMax, whole);
    Bytes planes[kPlanes];
    split_planes<false>(whole, planes);
#pragma GCC unroll 2
    for (int p = 0; p < kPlanes; ++p) {
      const Bytes in_order = fours_by_lane(planes[p]);
      __builtin_memcpy(weights[row][p], &in_order, kBlock);
    }
  }
};

// acc += weights * values for a line of 64 bytes of the block's rows, kRows rows: acc[row * stride
// + d]. Lane l of vector 2 * kHalf + i of a line holds elements 16 l + 8 kHalf + 4 i .. + 4.
template <RowFormat::Kind kKind, int kRows, int kHalf, Prefetch kAsk>
KVC_SIMD_FN void add_half_line(const ByteBlock& block, int64_t line, int64_t bytes, bool high,
                               float* acc, int64_t stride) {
  const Bytes levels = repeat_table(lm4_levels());
  S32 sums[kRows][kPlanes][2];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kPlanes; ++p) sums[r][p][0] = sums[r][p][1] = S32{};
  }
#pragma GCC unroll 1
  for (int key = 0; key < block.keys; key += 4) {
    Bytes x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = load_bytes(block.rows[key + i] + line, bytes - line);
      ask<kAsk>(block.ahead[key + i] + line);
      if constexpr (kKind == RowFormat::kLm4) {
        x[i] = look_up(levels, high ? high_halves(x[i]) : low_halves(x[i]));
      }
    }
    Bytes fours[2];
    interleave<kHalf>(x, fours);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int p = 0; p < kPlanes; ++p) {
        const Bytes weights = repeat_word(block.weights[r][p] + key);
        sums[r][p][0] = dot_bytes(sums[r][p][0], weights, fours[0]);
        sums[r][p][1] = dot_bytes(sums[r][p][1], weights, fours[1]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    float* to = acc + r * stride + kHalf * 2 * kLanes;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const F32 sum = to_float((sums[r][0][i] << 8) + sums[r][1][i]);
      store(to + i * kLanes, fma(set1(block.factors[r]), sum, load(to + i * kLanes)));
    }
  }
}

// acc += weights * values of a block for kRows rows, acc [kRows, stride] in the order of the lines.
template <RowFormat::Kind kKind, int kRows, Prefetch kAsk>
[[gnu::noinline]] void add_block_bytes(const ByteBlock& block, int64_t dim, float* acc,
                                       int64_t stride) {
  constexpr bool kHalves = kKind == RowFormat::kLm4;
  const int64_t bytes = kHalves ? dim / 2 : dim;
#pragma GCC unroll 1
  for (int64_t line = 0; line < bytes; line += 64) {
    add_half_line<kKind, kRows, 0, kAsk>(block, line, bytes, false, acc, stride);
    add_half_line<kKind, kRows, 1, Prefetch::kNone>(block, line, bytes, false, acc, stride);
    acc += 4 * kLanes;
    if constexpr (kHalves) {
      add_half_line<kKind, kRows, 0, Prefetch::kNone>(block, line, bytes, true, acc, stride);
      add_half_line<kKind, kRows, 1, Prefetch::kNone>(block, line, bytes, true, acc, stride);
      acc += 4 * kLanes;
    }
  }
}

// The same with weights in the order of the block's keys.
template <RowFormat::Kind kKind, int kRows, Prefetch kAsk>
KVC_SIMD_FN void add_block_rounded(ByteBlock* block, const float* const* weights, int64_t dim,
                                   float* acc, int64_t stride) {
  for (int i = 0; i < kRows; ++i) block->round(i, weights[i]);
  add_block_bytes<kKind, kRows, kAsk>(*block, dim, acc, stride);
}

// Results [rows, stride] in the order of add_block_bytes become elements: to[row * pad(dim)].
template <RowFormat::Kind kKind>
void elements_of_lines(const float* acc, int rows, int64_t stride, int64_t dim, float* to) {
  constexpr bool kHalves = kKind == RowFormat::kLm4;
  for (int r = 0; r < rows; ++r) {
    for (int64_t at = 0; at < stride; at += 64) {
      for (int l = 0; l < 4; ++l) {
        for (int v = 0; v < 4; ++v) {
          const float* from = acc + r * stride + at + v * kLanes + l * 4;
          // 4 bits: of a line, the lower halves first; a lane has 16 of each 32 elements.
          const int64_t d =
              kHalves ? at / 128 * 128 + l * 32 + at % 128 / 64 * 16 + v * 4 : at + l * 16 + v * 4;
          if (d < dim) {
            __builtin_memcpy(to + r * pad(dim) + d, from,
                             static_cast<unsigned long>(min_of(4, dim - d)) * sizeof(float));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
