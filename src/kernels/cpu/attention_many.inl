// Products of many query rows with blocks of keys and values: the prefill path. Part of
// attention.inl.
//
// A few blocks, a stretch, are widened and packed once for all rows of the tile, into panels as
// wide as a register tile: keys transposed [dim][keys of the panel], values [key][elements of the
// panel]. Then the rows pass over the stretch, a band of them after the other: a band's queries,
// scores and results stay in the first level of cache, the packed blocks come from the second.
// Scores and results are sums in ascending order, one accumulator each, whatever the shape of the
// register tile.
//
// Cost per block: 64 (k_dim + v_dim) elements read, widened and packed; rows * 64 (k_dim + v_dim)
// multiply-adds; rows * 64 exponentials.
namespace kvcache::internal::KVC_SIMD {
namespace {

// The register tile, rows by vectors: as many accumulators as leave room for the operands (NEON
// takes the element of each row from a register of its own).
constexpr int kTileRows = kLanes >= 8 ? 6 : 4;
constexpr int kTileVecs = kRegisters == 32 ? 4 : 2;
constexpr int kPanel = kTileVecs * kLanes;
static_assert(kBlock % kPanel == 0);

// Query rows of a band, and blocks of a stretch. A tile of one band packs a block at a time.
constexpr int kBandRows = 48;
constexpr int kStretch = 4;
static_assert(kBandRows % kLanes == 0 && kBandRows % kTileRows == 0);

KVC_SIMD_FN int stretch_of(int64_t rows) { return rows > 2 * kBandRows ? kStretch : 1; }

// Asks for the rows of the next stretch while this one is worked on: a few with each register tile
// of scores, so that no load waits behind a burst of them.
struct NextRows {
  const BlockRows* blocks;
  int slots;  // of all blocks
  int step;   // asked for at a time
  int64_t key_bytes, value_bytes;
  int at = 0;

  void ask() {
    for (const int end = static_cast<int>(min_of(at + step, slots)); at < end; ++at) {
      const BlockRows& block = blocks[at / kBlock];
      prefetch(block.k[at % kBlock], key_bytes);
      prefetch(block.v[at % kBlock], value_bytes);
    }
  }
};

// Calls f.template operator()<n>() for n = 1 .. kTileRows.
template <typename F>
KVC_SIMD_FN void for_tile(int n, F f) {
  static_assert(kTileRows == 4 || kTileRows == 6);
  switch (n) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case 4:
      return f.template operator()<4>();
    default:
      if constexpr (kTileRows == 6) {
        if (n == 5) return f.template operator()<5>();
        return f.template operator()<6>();
      }
  }
}

// Whole vectors of a row: what a panel of keys holds, zeros behind the last element.
KVC_SIMD_FN int64_t whole_vectors(int64_t dim) { return (dim + kLanes - 1) / kLanes * kLanes; }

// keys [kBlock / kPanel][whole_vectors(dim)][kPanel].
template <DType kType>
void pack_keys(const BlockRows& block, int64_t dim, float* keys) {
  for (int key = 0; key < kBlock; key += kLanes) {
    float* panel = keys + key / kPanel * whole_vectors(dim) * kPanel + key % kPanel;
    for (int64_t d = 0; d < dim; d += kLanes) {
      F32 x[kLanes];
      if (d + kLanes <= dim) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) x[i] = load_as<kType>(block.k[key + i], d);
      } else {
        const int n = static_cast<int>(dim - d);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) x[i] = load_n_as<kType>(block.k[key + i], d, n);
      }
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(panel + (d + i) * kPanel, x[i]);
    }
  }
}

template <int kRows>
void score_tile(const float* q, int64_t stride, int64_t dim, const float* panel, float* scores,
                int64_t score_stride) {
  F32 sum[kRows][kTileVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kTileVecs; ++i) sum[r][i] = zero();
  }
  for (int64_t d = 0; d < dim; ++d) {
    F32 x[kTileVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kTileVecs; ++i) x[i] = load(panel + d * kPanel + i * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32 element = set1(q[r * stride + d]);
#pragma GCC unroll 4
      for (int i = 0; i < kTileVecs; ++i) sum[r][i] = fma(element, x[i], sum[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kTileVecs; ++i) store(scores + r * score_stride + i * kLanes, sum[r][i]);
  }
}

// q [rows, stride], scores [rows, score_stride]; `any`: the keys that a row sees.
void score_block(const float* q, int64_t stride, int64_t dim, int rows, uint64_t any,
                 const float* keys, float* scores, int64_t score_stride, NextRows* next) {
  const int64_t whole = whole_vectors(dim);
  for (int key = 0; key < kBlock; key += kPanel) {
    if (((any >> key) & (kAllKeys >> (kBlock - kPanel))) == 0) continue;
    for (int r = 0; r < rows; r += kTileRows) {
      for_tile(static_cast<int>(min_of(kTileRows, rows - r)), [&]<int kRows>() {
        score_tile<kRows>(q + r * stride, stride, whole, keys + key * whole,
                          scores + r * score_stride + key, score_stride);
      });
      next->ask();
    }
  }
}

// Elements at .. at + kWidth of the block's values, [key][kWidth]. `n` < kLanes elements if the row
// ends there.
template <DType kType, int kWidth>
KVC_SIMD_FN void pack_panel(const BlockRows& block, int64_t at, int n, float* panel) {
  for (uint64_t bits = block.bits; bits != 0; bits &= bits - 1) {
    const int key = __builtin_ctzll(bits);
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; i += kLanes) {
      store(panel + key * kWidth + i, n < kLanes ? load_n_as<kType>(block.v[key], at, n)
                                                 : load_as<kType>(block.v[key], at + i));
    }
  }
}

// values: panels of kPanel elements, then of kLanes for the rest of a row.
template <DType kType>
void pack_values(const BlockRows& block, int64_t dim, float* values) {
  int64_t at = 0;
  for (; at + kPanel <= dim; at += kPanel) {
    pack_panel<kType, kPanel>(block, at, kLanes, values + at * kBlock);
  }
  for (; at < dim; at += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, dim - at));
    pack_panel<kType, kLanes>(block, at, n, values + at * kBlock);
  }
}

template <int kRows, int kVecs>
KVC_SIMD_FN void add_values(const float* weights, uint64_t bits, const float* panel, float* acc,
                            int64_t stride) {
  F32 sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) sum[r][i] = load(acc + r * stride + i * kLanes);
  }
  const auto add = [&](int key) __attribute__((always_inline)) {
    F32 x[kVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) x[i] = load(panel + (key * kVecs + i) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32 weight = set1(weights[r * kBlock + key]);
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) sum[r][i] = fma(weight, x[i], sum[r][i]);
    }
  };
  if (bits == kAllKeys) {
    for (int key = 0; key < kBlock; ++key) add(key);
  } else {
    for (; bits != 0; bits &= bits - 1) add(__builtin_ctzll(bits));
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) store(acc + r * stride + i * kLanes, sum[r][i]);
  }
}

// One panel for all rows; rows that see the same keys share a register tile.
template <int kVecs>
void value_panel(int rows, const uint64_t* row_bits, const float* weights, const float* panel,
                 float* acc, int64_t stride) {
  for (int r = 0; r < rows;) {
    const uint64_t bits = row_bits[r];
    int n = 1;
    while (n < kTileRows && r + n < rows && row_bits[r + n] == bits) ++n;
    if (bits != 0) {
      for_tile(n, [&]<int kRows>() {
        add_values<kRows, kVecs>(weights + r * kBlock, bits, panel, acc + r * stride, stride);
      });
    }
    r += n;
  }
}

void add_block(int rows, int64_t dim, const uint64_t* row_bits, const float* weights,
               const float* values, float* acc) {
  const int64_t stride = pad(dim);
  int64_t at = 0;
  for (; at + kPanel <= dim; at += kPanel) {
    value_panel<kTileVecs>(rows, row_bits, weights, values + at * kBlock, acc + at, stride);
  }
  for (; at < dim; at += kLanes) {
    value_panel<1>(rows, row_bits, weights, values + at * kBlock, acc + at, stride);
  }
}

// The lanes of x[r], taken together by `op` in the order of reduce_add and reduce_max, for each r.
template <typename Op>
KVC_SIMD_FN F32 reduce_rows(F32 (&x)[kLanes], Op op) {
  transpose(x);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) x[i] = op(x[i], x[i + half]);
  }
  return x[0];
}

// One step of the online softmax for up to kLanes rows: over kBlocks blocks, whose scores are
// [rows, kBlocks * kBlock] and whose bits are `bits_stride` apart. Maxima and sums of all rows are
// found together, one a lane. Where a maximum is raised, what the row has accumulated is rescaled.
// `weigh(row, m)` makes a row's scores weights exp(s - m) and returns their sums by lanes. The
// result of a row does not depend on the others.
template <int kBlocks, typename Weigh>
KVC_SIMD_FN void soften_rows(int rows, const uint64_t* bits, int64_t bits_stride, float* scores,
                             const PartialRows& partial, int64_t v_stride, Weigh weigh) {
  const F32 hidden = set1(-__builtin_inff());
  F32 x[kLanes];
  for (int r = 0; r < rows; ++r, scores += kBlocks * kBlock) {
    F32 top = hidden;
    for (int b = 0; b < kBlocks; ++b) {
      float* s = scores + b * kBlock;
      const uint64_t seen = bits[b * bits_stride + r];
      if (seen != kAllKeys) {
        for (int v = 0; v < kBlockVecs; ++v) {
          store(s + v * kLanes, choose(lanes_of(seen, v), load(s + v * kLanes), hidden));
        }
      }
#pragma GCC unroll 16
      for (int v = 0; v < kBlockVecs; ++v) top = max(top, load(s + v * kLanes));
    }
    x[r] = top;
  }
  for (int r = rows; r < kLanes; ++r) x[r] = hidden;
  const F32 found = reduce_rows(x, [](F32 a, F32 b) { return max(a, b); });

  const bool whole = rows == kLanes;
  const F32 old = whole ? load(partial.max) : load_n(partial.max, rows);
  F32 sum = whole ? load(partial.sum) : load_n(partial.sum, rows);
  const F32 top = found > old ? found : old;
  // Where nothing was accumulated before there is nothing to rescale.
  const F32 factor = found > old && old > hidden ? exp(old - top) : set1(1.0f);
  float factors[kLanes], origins[kLanes];
  store(factors, factor);
  // Where every score so far is -inf, weights are 0.
  store(origins, top > hidden ? top : zero());
  for (int r = 0; r < rows; ++r) {
    if (factors[r] == 1.0f) continue;
    const F32 by = set1(factors[r]);
    float* acc = partial.acc + r * v_stride;
    for (int64_t d = 0; d < v_stride; d += kLanes) store(acc + d, load(acc + d) * by);
  }

  for (int r = 0; r < rows; ++r) x[r] = weigh(r, origins[r]);
  for (int r = rows; r < kLanes; ++r) x[r] = zero();
  sum = sum * factor + reduce_rows(x, [](F32 a, F32 b) { return a + b; });
  const auto bytes = static_cast<unsigned long>(rows) * 4;
  __builtin_memcpy(partial.max, &top, whole ? sizeof(top) : bytes);
  __builtin_memcpy(partial.sum, &sum, whole ? sizeof(sum) : bytes);
}

// Scores of one row become weights exp(s - m). Returns their sums by lanes.
KVC_SIMD_FN F32 weigh_row(float* scores, float m) {
  const F32 origin = set1(m);
  F32 sum = zero();
#pragma GCC unroll 16
  for (int v = 0; v < kBlockVecs; ++v) {
    const F32 weight = exp(load(scores + v * kLanes) - origin);
    store(scores + v * kLanes, weight);
    sum = sum + weight;
  }
  return sum;
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
