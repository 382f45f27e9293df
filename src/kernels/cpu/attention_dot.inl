// Products of many bf16 rows through a dot product of pairs: the prefill path where the header has
// one (KVC_SIMD_DOT). Part of attention.inl; the tiles are those of attention_many.inl.
//
// Queries and weights are rounded to bf16, products are exact and summed in float32. What is lost
// is the rounding: 2^-9 of each query element and weight, so results lie within 5e-3 of exact ones,
// and the instruction takes denormals for 0. An exact tile goes through attention_many.inl.
//
// A word holds two neighbours of a sum, the first in its low half: elements d, d + 1 of queries and
// keys, keys j, j + 1 of weights and values. Packed keys are [pairs][keys of the panel], packed
// values [pairs of keys][elements of the panel].
namespace kvcache::internal::KVC_SIMD {
namespace {

constexpr int kBlockPairs = kBlock / 2;

// Pairs of a row, padded with zeros to whole vectors of words.
KVC_SIMD_FN int64_t whole_pairs(int64_t dim) {
  return (dim + 2 * kLanes - 1) / (2 * kLanes) * kLanes;
}

// x [rows, stride] as words [rows, whole_pairs(dim)]. REQUIRES: elements dim .. stride are 0.
void round_rows(const float* x, int64_t rows, int64_t dim, int64_t stride, uint32_t* to) {
  const int64_t pairs = whole_pairs(dim);
  for (int64_t r = 0; r < rows; ++r, x += stride, to += pairs) {
    for (int64_t p = 0; p < pairs; ++p) {
      to[p] = 2 * p < stride ? round_pair(x[2 * p], x[2 * p + 1]) : 0;
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
void pack_key_pairs(const BlockRows& block, const BlockRows& next, int64_t dim, uint32_t* keys) {
  for (int key = 0; key < kBlock; key += kLanes) {
    uint32_t* panel = keys + key / kPanel * whole_pairs(dim) * kPanel + key % kPanel;
    for (int i = key; i < key + kLanes; ++i) prefetch(next.k[i], dim * 2);
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
void score_pairs(const uint32_t* q, int64_t pairs, const uint32_t* panel, float* scores) {
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
    for (int i = 0; i < kTileVecs; ++i) store(scores + r * kBlock + i * kLanes, sum[r][i]);
  }
}

// q [rows, whole_pairs(k_dim)].
void score_dot(const uint32_t* q, const QueryTile& tile, int rows, const BlockRows& block,
               const BlockRows& next, uint32_t* keys, float* scores) {
  pack_key_pairs(block, next, tile.k_dim, keys);
  const int64_t pairs = whole_pairs(tile.k_dim);
  for (int key = 0; key < kBlock; key += kPanel) {
    if (((block.bits >> key) & (kAllKeys >> (kBlock - kPanel))) == 0) continue;
    for (int r = 0; r < rows; r += kTileRows) {
      for_tile(static_cast<int>(min_of(kTileRows, rows - r)), [&]<int kRows>() {
        score_pairs<kRows>(q + r * pairs, pairs, keys + key * pairs, scores + r * kBlock + key);
      });
    }
  }
}

// Elements at .. at + kWidth of all values of the block, [pair of keys][kWidth]; `n` < kLanes
// elements if the row ends there.
template <int kWidth>
KVC_SIMD_FN void pack_value_pairs(const BlockRows& block, int64_t at, int n, uint32_t* panel) {
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

// A hidden key has weight 0 and may hold a NaN: its half of a pair is left out by a mask.
template <int kRows, int kVecs>
KVC_SIMD_FN void add_value_pairs(const uint32_t* weights, uint64_t bits, const uint32_t* panel,
                                 float* acc, int64_t stride) {
  F32 sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) sum[r][i] = load(acc + r * stride + i * kLanes);
  }
  const auto add = [&](int pair, uint32_t mask) __attribute__((always_inline)) {
    U32 x[kVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      x[i] = load_u32(panel + (pair * kVecs + i) * kLanes) & set1_u32(mask);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const U32 weight = set1_u32(weights[r * kBlockPairs + pair]);
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) sum[r][i] = dot_bf16(sum[r][i], weight, x[i]);
    }
  };
  if (bits == kAllKeys) {
    for (int pair = 0; pair < kBlockPairs; ++pair) add(pair, 0xffffffffu);
  } else {
    for (int pair = 0; pair < kBlockPairs; ++pair, bits >>= 2) {
      if ((bits & 3) == 0) continue;
      add(pair, ((bits & 1) != 0 ? 0x0000ffffu : 0) | ((bits & 2) != 0 ? 0xffff0000u : 0));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) store(acc + r * stride + i * kLanes, sum[r][i]);
  }
}

template <int kVecs>
void value_pair_panel(int rows, const uint64_t* row_bits, const uint32_t* weights,
                      const uint32_t* panel, float* acc, int64_t stride) {
  for (int r = 0; r < rows;) {
    const uint64_t bits = row_bits[r];
    int n = 1;
    while (n < kTileRows && r + n < rows && row_bits[r + n] == bits) ++n;
    if (bits != 0) {
      for_tile(n, [&]<int kRows>() {
        add_value_pairs<kRows, kVecs>(weights + r * kBlockPairs, bits, panel, acc + r * stride,
                                      stride);
      });
    }
    r += n;
  }
}

// weights [rows, kBlock]; `rounded` [rows, kBlockPairs] and `panel` [kBlockPairs, kPanel] are
// written.
void value_dot(const QueryTile& tile, int rows, const BlockRows& block, const BlockRows& next,
               const uint64_t* row_bits, const float* weights, uint32_t* rounded, uint32_t* panel,
               float* acc) {
  const int64_t stride = pad(tile.v_dim);
  const int64_t dim = tile.v_dim;
  for (int key = 0; key < kBlock; ++key) prefetch(next.v[key], dim * 2);
  for (int r = 0; r < rows; ++r) {
    if (row_bits[r] == 0) continue;
    for (int pair = 0; pair < kBlockPairs; ++pair) {
      const float* two = weights + r * kBlock + 2 * pair;
      rounded[r * kBlockPairs + pair] = round_pair(two[0], two[1]);
    }
  }
  int64_t at = 0;
  for (; at + kPanel <= dim; at += kPanel) {
    pack_value_pairs<kPanel>(block, at, kLanes, panel);
    value_pair_panel<kTileVecs>(rows, row_bits, rounded, panel, acc + at, stride);
  }
  for (; at < dim; at += kLanes) {
    pack_value_pairs<kLanes>(block, at, static_cast<int>(min_of(kLanes, dim - at)), panel);
    value_pair_panel<1>(rows, row_bits, rounded, panel, acc + at, stride);
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
