// Few query rows over coded keys and values by dot products of words: where the header has one
// (KVC_SIMD_WORD_DOT). See attention_few_whole.inl. For rows of all forms but fp8, whose numbers
// are too far apart for a word.
//
// Scores. Bytes of a key are widened to words, once for all rows, and multiplied with those of the
// query, two neighbours to a sum. 2^-16 of a query's largest element is lost.
//
// Values. The bytes of two values are interleaved and widened, so that a dot product adds two keys.
// Weights are rounded for each group of elements that shares a scale: 2^-16 of the block's largest
// is lost.
//
// Cost per key and row, of k_dim + v_dim elements: a dot product and an addition for 16 elements,
// and of rows with groups two operations for each group of a key; for all rows a widening and half
// a shuffle for 16, and what unpacks 4 bits.
namespace kvcache::internal::KVC_SIMD {
namespace {

constexpr int kQueryMax = 32767;
constexpr int kWeightMax = 32767;
constexpr int kWordVec = 2 * kLanes;  // words of a vector
static_assert(kWordVec == kCodes && kRowPadding % kWordVec == 0);

// Forms that go this way, with these dims. Sums of a group stay below 2^31: groups have at most 256
// elements.
KVC_SIMD_FN bool in_whole_numbers(const RowFormat& format, int64_t dim) {
  if (!format.is_coded() || format.kind == RowFormat::kFp8E4M3 || dim > kMostElements) return false;
  return format.kind == RowFormat::kInt8 || dim % RowFormat::kGroup == 0;
}

// Floats of a row of results.
KVC_SIMD_FN int64_t line_floats(int64_t dim) { return pad(dim); }

// Bytes of a packed query row.
KVC_SIMD_FN int64_t packed_bytes(int64_t dim) { return pad(dim) * int64_t{sizeof(int16_t)}; }

// A query row of a chunk.
struct WholeRow {
  float scale;
};

// Words of a chunk: for each four rows, 16 elements of the first, of the second and so on, then the
// next 16 of the first. [rows, pad(dim)].
void pack_whole(const RowFormat&, const float* q, int rows, int64_t dim, char* packed,
                WholeRow* info) {
  const int64_t chunks = pad(dim) / kWordVec;
  auto* const to = reinterpret_cast<int16_t*>(packed);
  for_fours(rows, [&]<int kRows>(int r) {
    for (int i = 0; i < kRows; ++i) {
      const float* row = q + (r + i) * pad(dim);
      const QueryUnit unit = unit_of_query(row, dim, kQueryMax);
      info[r + i].scale = unit.scale;
      for (int64_t c = 0; c < chunks; ++c) {
        // NaN becomes something: its scale is NaN.
        store_words(to + (r * chunks + c * kRows + i) * kWordVec,
                    to_nearest(load(row + c * kWordVec) * unit.by),
                    to_nearest(load(row + c * kWordVec + kLanes) * unit.by));
      }
    }
  });
}

// Half of a group of 32 elements as signed bytes; those of int4 before their zero (0 to 15).
template <RowFormat::Kind kKind>
KVC_SIMD_FN Codes half_of(const char* group, int half) {
  Codes x;
  if constexpr (!GroupForm<kKind>::kHalves) {
    __builtin_memcpy(&x, group + half * kCodes, sizeof(x));
    return x;
  }
  __builtin_memcpy(&x, group, sizeof(x));
  x = half == 0 ? low_halves(x) : high_halves(x);
  if constexpr (kKind == RowFormat::kLm4) x = look_up(lm4_levels(), x);
  if constexpr (kKind == RowFormat::kQ4_0) x = x - (Codes{} + 8);
  return x;
}

// Asks for rows.
template <Prefetch kAsk>
KVC_SIMD_FN void ask_for(const char* const* rows, int count, int64_t bytes) {
  if constexpr (kAsk == Prefetch::kNone) return;
  for (int i = 0; i < count; ++i) {
    for (int64_t byte = 0; byte < bytes; byte += 64) ask<kAsk>(rows[i] + byte);
  }
}

// Keys that kRows rows score side by side: the sums fill half of the registers.
template <int kRows>
constexpr int kWordKeys = kRows <= 2 ? 4 : 2;

KVC_SIMD_FN Words query_words(const int16_t* at) {
  Words words;
  __builtin_memcpy(&words, at, sizeof(words));
  return words;
}

// Of products with a key: whole where one scale is for all of them.
template <bool kOneScale>
struct ScoreSum {
  using Type = S32;
};
template <>
struct ScoreSum<false> {
  using Type = F32;
};

// Scores of kRows rows with all 16 keys of a step: scores[row * to_stride + key].
template <RowFormat::Kind kKind, int kRows, bool kOneScale>
[[gnu::noinline]] void score_words(const int16_t* q, const WholeRow* info, int64_t dim,
                                   const Step& here, const float* scales, const int8_t* zeros,
                                   float* scores, int64_t to_stride) {
  using Form = GroupForm<kKind>;
  using Sum = typename ScoreSum<kOneScale>::Type;
  constexpr int kKeys = kWordKeys<kRows>;
  const int64_t elements = group_elements<kKind>(dim);
  Sum parts[kRows][kStep];
#pragma GCC unroll 1
  for (int key = 0; key < kStep; key += kKeys) {
    Sum sums[kRows][kKeys] = {};
    const char* codes[kKeys];
#pragma GCC unroll 4
    for (int i = 0; i < kKeys; ++i) codes[i] = here.rows[key + i] + Form::kCodesAt;
    const int16_t* at = q;
    // The products with the words of some keys go to the sums.
    const auto add = [&]<int kHalves>(const Words(&x)[kKeys][kHalves], int64_t group)
        __attribute__((always_inline)) {
      F32 scale[kKeys];
      if constexpr (!kOneScale) {
#pragma GCC unroll 4
        for (int i = 0; i < kKeys; ++i) scale[i] = set1(scales[group * kStep + key + i]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        Words y[kHalves];
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) y[h] = query_words(at + (h * kRows + r) * kWordVec);
#pragma GCC unroll 4
        for (int i = 0; i < kKeys; ++i) {
          if constexpr (kOneScale) {
#pragma GCC unroll 2
            for (int h = 0; h < kHalves; ++h) sums[r][i] = dot_words(sums[r][i], y[h], x[i][h]);
          } else {
            S32 sum = {};
#pragma GCC unroll 2
            for (int h = 0; h < kHalves; ++h) sum = dot_words(sum, y[h], x[i][h]);
            sums[r][i] = fma(to_float(sum), scale[i], sums[r][i]);
          }
        }
      }
      at += kHalves * kRows * kWordVec;
    };
    int64_t d = 0;
#pragma GCC unroll 1
    for (; d + kGroup <= dim; d += kGroup) {
      const int64_t group = kOneScale ? 0 : Form::kOwnScale ? d / kGroup : d / elements;
      Words x[kKeys][2];
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) {
        Codes zero_code = {};
        if constexpr (kKind == RowFormat::kInt4) zero_code += zeros[group * kStep + key + i];
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) x[i][h] = widen_bytes(half_of<kKind>(codes[i], h) - zero_code);
        codes[i] += Form::kBytes;
      }
      add(x, group);
    }
    if constexpr (kKind == RowFormat::kInt8) {
      for (; d < dim; d += kCodes) {
        Words x[kKeys][1];
        for (int i = 0; i < kKeys; ++i) {
          x[i][0] = widen_bytes(load_codes(codes[i], dim - d));
          codes[i] += kCodes;
        }
        add(x, kOneScale ? 0 : d / elements);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) parts[r][key + i] = sums[r][i];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kStepVecs; ++v) {
      F32 sum;
      if constexpr (kOneScale) {
        sum = to_float(fold_whole(parts[r] + v * kLanes)) * load(scales + v * kLanes);
      } else {
        sum = fold(parts[r] + v * kLanes);
      }
      store(scores + r * to_stride + v * kLanes, sum * set1(info[r].scale));
    }
  }
}

// Scores of a chunk of rows with a step, in the slots of its block: scores[row * kScores + slot].
template <RowFormat::Kind kKind, Prefetch kAsk>
void score_few_whole(const char* q, const WholeRow* info, int rows, const RowsView& keys,
                     int64_t dim, const Step& here, const Step& ahead, float* scores) {
  float scales[kMostGroups * kStep];
  int8_t zeros[kMostGroups * kStep];
  load_scales<kKind>(keys, dim, here, kStep, scales, zeros);
  ask_for<kAsk>(ahead.rows, kStep, keys.format.code_bytes(dim));
  const bool one = keys.format.num_scales(dim) == 1;
  score_whole(
      rows, here,
      scores, [&]<int kRows>(int r, float* to, int64_t to_stride) __attribute__((always_inline)) {
        const auto* from = reinterpret_cast<const int16_t*>(q + r * packed_bytes(dim));
        if constexpr (!GroupForm<kKind>::kOwnScale) {
          if (one) {
            return score_words<kKind, kRows, true>(from, info + r, dim, here, scales, zeros, to,
                                                   to_stride);
          }
        }
        score_words<kKind, kRows, false>(from, info + r, dim, here, scales, zeros, to, to_stride);
      });
}

// Values of a block with their scales and zeros, by groups.
template <RowFormat::Kind>
struct WholeBlock : ValueBlock {
  float scales[kMostGroups * kBlock];
  int8_t zeros[kMostGroups * kBlock];

  // The scales of a step that was added.
  template <RowFormat::Kind kKind>
  [[gnu::always_inline]] void add_scales(const RowsView& values, int64_t dim, const Step& step) {
    load_scales<kKind>(values, dim, step, kBlock, scales + keys - kStep, zeros + keys - kStep);
  }
};

// The weights of a row times the scales of the values, both in the order of the block's keys, as
// whole numbers up to `most`: put(v, vector v of them). Returns their factor: NaN where one is not
// finite. Scales behind weights of 0 may be anything.
template <typename Put>
KVC_SIMD_FN float round_weights(const float* weights, const float* scales, int keys, int most,
                                Put put) {
  F32 x[kBlockVecs];
  F32 top = zero();
  F32 check = zero();
  const int vectors = keys / kLanes;
  for (int v = 0; v < vectors; ++v) {
    const F32 weight = load(weights + v * kLanes);
    x[v] = weight == zero() ? zero() : weight * load(scales + v * kLanes);
    top = max(top, max(x[v], zero() - x[v]));  // ggml's scales may be negative
    check = check + x[v] * zero();
  }
  const float largest = reduce_max(top);
  const bool some = largest > 1e-30f;
  const F32 by = set1(some ? static_cast<float>(most) / largest : 0.0f);
  for (int v = 0; v < vectors; ++v) put(v, to_nearest(x[v] * by));
  return (some ? largest / static_cast<float>(most) : 0.0f) + reduce_add(check);
}

// Weights of rows times the scales of a group.
template <int kRows>
struct WordWeights {
  int16_t words[kRows][kBlock];
  float factors[kRows];

  [[gnu::always_inline]] void round(const float* const* from, const float* scales, int keys) {
    for (int r = 0; r < kRows; ++r) {
      S32 even{};
      factors[r] = round_weights(from[r], scales, keys, kWeightMax, [&](int v, S32 whole) {
        if (v % 2 == 0) {
          even = whole;
        } else {
          store_words(words[r] + (v - 1) * kLanes, even, whole);
        }
      });
    }
  }
};

// acc += weights * values for 16 elements: acc[row * stride]. `take(row)` gives their codes.
template <int kRows, bool kZeros, typename Take>
KVC_SIMD_FN void add_words(const ValueBlock& block, const WordWeights<kRows>& weights,
                           const int8_t* zeros, float* acc, int64_t stride, Take take) {
  S32 sums[kRows][2] = {};
#pragma GCC unroll 1
  for (int key = 0; key < block.keys; key += 2) {
    const Codes a = take(block.rows[key]);
    const Codes b = take(block.rows[key + 1]);
    Codes low = interleave_low(a, b);
    Codes high = interleave_high(a, b);
    if constexpr (kZeros) {
      const Codes pair = repeat_pair_of_bytes(zeros + key);
      low = low - pair;
      high = high - pair;
    }
    const Words x = widen_bytes(low);
    const Words y = widen_bytes(high);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Words pair = repeat_pair(weights.words[r] + key);
      sums[r][0] = dot_words(sums[r][0], pair, x);
      sums[r][1] = dot_words(sums[r][1], pair, y);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      float* to = acc + r * stride + i * kLanes;
      store(to, fma(set1(weights.factors[r]), to_float(sums[r][i]), load(to)));
    }
  }
}

template <RowFormat::Kind kKind, int kRows>
[[gnu::noinline]] void add_block_words(const WholeBlock<kKind>& block, const float* const* weights,
                                       int64_t dim, float* acc, int64_t stride) {
  using Form = GroupForm<kKind>;
  constexpr bool kZeros = kKind == RowFormat::kInt4;
  const int64_t elements = group_elements<kKind>(dim);
  const float* scales = block.scales;
  const int8_t* zeros = block.zeros;
  WordWeights<kRows> words;
  // Rows of bytes that take several lines are touched in their order: as the columns come to them,
  // too few are on their way at a time (Zen 3, int8: a third slower; 4 bits gain nothing).
  const int64_t bytes = RowFormat{kKind}.code_bytes(dim);
  for (int key = 0; !Form::kHalves && bytes > 64 && key < block.keys; ++key) {
    for (int64_t byte = 0; byte < bytes; byte += 64) {
      const int touched = block.rows[key][byte];
      asm volatile("" : : "r"(touched));
    }
  }
#pragma GCC unroll 1
  for (int64_t d = 0; d < dim; scales += kBlock, zeros += kBlock) {
    words.round(weights, scales, block.keys);
    const int64_t end = min_of(dim, d + elements);
#pragma GCC unroll 1
    for (; d + kGroup <= end; d += kGroup) {
      const int64_t at = d / kGroup * Form::kBytes + Form::kCodesAt;
      add_words<kRows, kZeros>(
          block, words, zeros, acc + d,
          stride, [&](const char* row) __attribute__((always_inline)) {
            return half_of<kKind>(row + at, 0);
          });
      add_words<kRows, kZeros>(
          block, words, zeros, acc + d + kCodes,
          stride, [&](const char* row) __attribute__((always_inline)) {
            return half_of<kKind>(row + at, 1);
          });
    }
    if constexpr (kKind == RowFormat::kInt8) {
      for (; d < end; d = min_of(end, d + kCodes)) {
        add_words<kRows, false>(
            block, words, zeros, acc + d,
            stride, [&](const char* row) __attribute__((always_inline)) {
              return load_codes(row + d, end - d);
            });
      }
    }
  }
}

// acc += weights * values of a block for kRows rows, acc [kRows, stride]; weights in the order of
// its keys.
template <RowFormat::Kind kKind, int kRows, Prefetch kAsk>
KVC_SIMD_FN void add_block_whole(WholeBlock<kKind>* block, const float* const* weights, int64_t dim,
                                 float* acc, int64_t stride) {
  ask_for<kAsk>(block->ahead, block->keys, RowFormat{kKind}.code_bytes(dim));
  add_block_words<kKind, kRows>(*block, weights, dim, acc, stride);
}

// Results [rows, stride] as they are.
template <RowFormat::Kind kKind>
void from_lines(const float* acc, int rows, int64_t stride, int64_t, float* to) {
  for (int64_t i = 0; i < rows * stride; i += kLanes) store(to + i, load(acc + i));
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
