// Products of many bf16 rows through a dot product of pairs: the prefill path where the header has
// one (KVC_SIMD_DOT). Part of attention.inl; the tiles are those of attention_many.inl.
//
// Queries and weights are rounded to bf16, products are exact and summed in float32. What is lost
// is the rounding: 2^-9 of each query element and weight, so results lie within 5e-3 of exact ones,
// and the instruction takes denormals for 0. An exact tile goes through attention_many.inl.
//
// Coded rows go the same way. Codes of a byte, and the levels of lm4, are exact in bf16: where a
// row has one scale, it stays outside of the products, with the score of a key and with the weight
// of a value. Forms of several scales a row are rounded with them.
//
// A word holds two neighbours of a sum, the first in its low half: elements d, d + 1 of queries and
// keys, keys j, j + 1 of weights and values. Packed keys are [pairs][keys of the panel], packed
// values [pairs of keys][elements of the panel].
namespace kvcache::internal::KVC_SIMD {
namespace {

constexpr int kBlockPairs = kBlock / 2;

// Blocks of a step, which the softmax takes together. Steps lie at multiples of their length in the
// sequence, so that a row's bits depend on its own keys alone.
constexpr int kStepBlocks = 4;
constexpr int kStepPairs = kStepBlocks * kBlockPairs;
static_assert(kStretch % kStepBlocks == 0 && kCutBlocks % kStepBlocks == 0);

// Pairs of a row, padded with zeros to whole vectors of words.
KVC_SIMD_FN int64_t whole_pairs(int64_t dim) {
  return (dim + 2 * kLanes - 1) / (2 * kLanes) * kLanes;
}

// x [rows, stride] as words [rows, whole_pairs(dim)]. REQUIRES: elements dim .. stride are 0.
void round_rows(const float* x, int64_t rows, int64_t dim, int64_t stride, uint32_t* to) {
  const int64_t pairs = whole_pairs(dim);
  for (int64_t r = 0; r < rows; ++r, x += stride, to += pairs) {
    for (int64_t p = 0; p < pairs; p += kLanes) {
      const F32 low = load(x + 2 * p);
      const bool ends = 2 * p + kLanes >= stride;
      store_u32(to + p, round_pairs(low, ends ? zero() : load(x + 2 * p + kLanes)));
    }
  }
}

// Words of a row from pair `at` on; those behind its last element are 0.
KVC_SIMD_FN U32 load_pairs(const char* row, int64_t at, int64_t dim) {
  const char* from = row + at * 4;
  U32 words = {};
  if (2 * (at + kLanes) <= dim) {
    __builtin_memcpy(&words, from, sizeof(words));
  } else if (2 * at < dim) {
    __builtin_memcpy(&words, from, static_cast<unsigned long>(2 * (dim - 2 * at)));
  }
  return words;
}

// keys [kBlock / kPanel][whole_pairs(dim)][kPanel].
void pack_key_pairs(const BlockRows& block, int64_t dim, uint32_t* keys) {
  for (int key = 0; key < kBlock; key += kLanes) {
    uint32_t* panel = keys + key / kPanel * whole_pairs(dim) * kPanel + key % kPanel;
    for (int64_t p = 0; p < whole_pairs(dim); p += kLanes) {
      F32 x[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) x[i] = from_bits(load_pairs(block.k[key + i], p, dim));
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store_u32(panel + (p + i) * kPanel, bits_of(x[i]));
    }
  }
}

template <int kRows>
void score_pairs(const uint32_t* q, int64_t pairs, const uint32_t* panel, float* scores,
                 int64_t score_stride) {
  F32 sum[kRows][kTileVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kTileVecs; ++i) sum[r][i] = zero();
  }
  for (int64_t p = 0; p < pairs; ++p) {
    U32 x[kTileVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kTileVecs; ++i) x[i] = load_u32(panel + p * kPanel + i * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const U32 pair = set1_u32(q[r * pairs + p]);
#pragma GCC unroll 4
      for (int i = 0; i < kTileVecs; ++i) sum[r][i] = dot_bf16(sum[r][i], pair, x[i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kTileVecs; ++i) store(scores + r * score_stride + i * kLanes, sum[r][i]);
  }
}

// q [rows, whole_pairs(dim)], scores [rows, score_stride]; `any`: the keys that a row sees.
void score_block_pairs(const uint32_t* q, int64_t dim, int rows, uint64_t any, const uint32_t* keys,
                       float* scores, int64_t score_stride, NextRows* next) {
  const int64_t pairs = whole_pairs(dim);
  for (int key = 0; key < kBlock; key += kPanel) {
    if (((any >> key) & (kAllKeys >> (kBlock - kPanel))) == 0) continue;
    for (int r = 0; r < rows; r += kTileRows) {
      for_tile(static_cast<int>(min_of(kTileRows, rows - r)), [&]<int kRows>() {
        score_pairs<kRows>(q + r * pairs, pairs, keys + key * pairs,
                           scores + r * score_stride + key, score_stride);
      });
      next->ask();
    }
  }
}

// Elements at .. at + kWidth of all values of the block, [pair of keys][kWidth]; `n` < kLanes
// elements if the row ends there.
template <int kWidth>
KVC_SIMD_FN void pack_pair_panel(const BlockRows& block, int64_t at, int n, uint32_t* panel) {
  for (int pair = 0; pair < kBlockPairs; ++pair) {
    const char* first = block.v[2 * pair];
    const char* second = block.v[2 * pair + 1];
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; i += kLanes) {
      const F32 low =
          n < kLanes ? load_n_as<DType::kBF16>(first, at, n) : load_as<DType::kBF16>(first, at + i);
      const F32 high = n < kLanes ? load_n_as<DType::kBF16>(second, at, n)
                                  : load_as<DType::kBF16>(second, at + i);
      store_u32(panel + pair * kWidth + i, (bits_of(low) >> 16) | bits_of(high));
    }
  }
}

// values: panels of kPanel elements, then of kLanes for the rest of a row.
void pack_value_pairs(const BlockRows& block, int64_t dim, uint32_t* values) {
  int64_t at = 0;
  for (; at + kPanel <= dim; at += kPanel) {
    pack_pair_panel<kPanel>(block, at, kLanes, values + at * kBlockPairs);
  }
  for (; at < dim; at += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, dim - at));
    pack_pair_panel<kLanes>(block, at, n, values + at * kBlockPairs);
  }
}

// The values of `blocks` blocks, `block_words` apart, for rows that see the same keys: bits
// [blocks], `bits_stride` apart. A hidden key has weight 0 and may hold a NaN: its half of a pair
// is left out by a mask.
template <int kRows, int kVecs>
KVC_SIMD_FN void add_value_pairs(const uint32_t* weights, int blocks, const uint64_t* bits,
                                 int64_t bits_stride, const uint32_t* panel, int64_t block_words,
                                 float* acc, int64_t stride) {
  F32 sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) sum[r][i] = load(acc + r * stride + i * kLanes);
  }
  for (int b = 0; b < blocks; ++b, panel += block_words, weights += kBlockPairs) {
    const auto add = [&](int pair, uint32_t mask) __attribute__((always_inline)) {
      U32 x[kVecs];
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) {
        x[i] = load_u32(panel + (pair * kVecs + i) * kLanes) & set1_u32(mask);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const U32 weight = set1_u32(weights[r * kStepPairs + pair]);
#pragma GCC unroll 4
        for (int i = 0; i < kVecs; ++i) sum[r][i] = dot_bf16(sum[r][i], weight, x[i]);
      }
    };
    uint64_t seen = bits[b * bits_stride];
    if (seen == kAllKeys) {
      for (int pair = 0; pair < kBlockPairs; ++pair) add(pair, 0xffffffffu);
    } else {
      for (int pair = 0; seen != 0; ++pair, seen >>= 2) {
        if ((seen & 3) == 0) continue;
        add(pair, ((seen & 1) != 0 ? 0x0000ffffu : 0) | ((seen & 2) != 0 ? 0xffff0000u : 0));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) store(acc + r * stride + i * kLanes, sum[r][i]);
  }
}

// Rows r .. r + result see the same keys of a block, at most `n` of them.
KVC_SIMD_FN int rows_alike(const uint64_t* row_bits, int n) {
  int same = 1;
  while (same < n && row_bits[same] == row_bits[0]) ++same;
  return same;
}

// bits [kStepBlocks, bits_stride]. Blocks that the rows of a register tile see alike are added in
// one pass; another one by fewer rows at a time.
template <int kVecs>
void value_pair_panel(int rows, const uint64_t* bits, int64_t bits_stride, const uint32_t* weights,
                      const uint32_t* panel, int64_t block_words, float* acc, int64_t stride) {
  const auto add = [&](int r, int n, int b, int blocks) {
    for_tile(n, [&]<int kRows>() {
      add_value_pairs<kRows, kVecs>(weights + r * kStepPairs + b * kBlockPairs, blocks,
                                    bits + b * bits_stride + r, bits_stride,
                                    panel + b * block_words, block_words, acc + r * stride, stride);
    });
  };
  for (int r = 0; r < rows; r += kTileRows) {
    const int n = static_cast<int>(min_of(kTileRows, rows - r));
    for (int b = 0; b < kStepBlocks;) {
      const auto alike = [&](int block) {
        return rows_alike(bits + block * bits_stride + r, n) == n;
      };
      int end = b;
      while (end < kStepBlocks && alike(end)) ++end;
      if (end > b) {
        add(r, n, b, end - b);
        b = end;
        continue;
      }
      const uint64_t* here = bits + b * bits_stride;
      for (int i = 0; i < n;) {
        const int same = rows_alike(here + r + i, n - i);
        if (here[r + i] != 0) add(r + i, same, b, 1);
        i += same;
      }
      ++b;
    }
  }
}

// weights [rows, kStepPairs]; bits [kStepBlocks, bits_stride].
void add_step_pairs(int rows, int64_t dim, const uint64_t* bits, int64_t bits_stride,
                    const uint32_t* weights, const uint32_t* values, int64_t block_words,
                    float* acc) {
  const int64_t stride = pad(dim);
  int64_t at = 0;
  for (; at + kPanel <= dim; at += kPanel) {
    value_pair_panel<kTileVecs>(rows, bits, bits_stride, weights, values + at * kBlockPairs,
                                block_words, acc + at, stride);
  }
  for (; at < dim; at += kLanes) {
    value_pair_panel<1>(rows, bits, bits_stride, weights, values + at * kBlockPairs, block_words,
                        acc + at, stride);
  }
}

// e^(s - m) as a power of two: relative error below 3e-06, far below that of the rounding to come.
// Minimax polynomial of 2^f, |f| <= 1/2; e^0 is exactly 1.
KVC_SIMD_FN F32 weight_of(F32 s, F32 minus_m) {
  const F32 log2e = set1(1.44269504088896341f);
  // 0 from 2^-150 on, which -inf becomes as well; a NaN stays.
  const F32 t = max(set1(-200.0f), fma(s, log2e, minus_m));
  const F32 shift = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32 n = (t + shift) - shift;
  const F32 f = t - n;
  F32 p = set1(0.00958285317f);
  p = fma(p, f, set1(0.055906425f));
  p = fma(p, f, set1(0.240240986f));
  p = fma(p, f, set1(0.693124193f));
  p = fma(p, f, set1(1.0f));
  return scale(p, n);
}

// Scores of one row over a step become weights e^(s - m), rounded [kStepPairs]. Returns the sums of
// the unrounded ones by lanes. `scales` [kStepBlocks * kBlock] of the values, which the rounded
// weights take in; null: none.
KVC_SIMD_FN F32 weigh_row_pairs(const float* scores, float m, const float* scales,
                                uint32_t* weights) {
  const F32 minus_m = set1(-m * 1.44269504088896341f);
  F32 sum = zero();
#pragma GCC unroll 16
  for (int v = 0; v < kStepBlocks * kBlockVecs; v += 2) {
    F32 low = weight_of(load(scores + v * kLanes), minus_m);
    F32 high = weight_of(load(scores + (v + 1) * kLanes), minus_m);
    sum = sum + (low + high);
    if (scales != nullptr) {
      low = low * load(scales + v * kLanes);
      high = high * load(scales + (v + 1) * kLanes);
    }
    store_u32(weights + v * kLanes / 2, round_pairs(low, high));
  }
  return sum;
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
