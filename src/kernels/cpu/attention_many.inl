// Products of many query rows with a block of keys and values: the prefill path. Part of
// attention.inl.
//
// A block is widened and packed once, into panels as wide as a register tile: keys transposed
// [dim][keys of the panel], values [key][elements of the panel]. A panel stays in the first cache
// while all rows of the tile pass over it. Scores and results are sums in ascending order, one
// accumulator each, whatever the shape of the register tile.
//
// Cost per block: 64 (k_dim + v_dim) elements read, widened and packed; rows * 64 (k_dim + v_dim)
// multiply-adds.
namespace kvcache::internal::KVC_SIMD {
namespace {

// The register tile, rows by vectors: as many accumulators as leave room for the operands (NEON
// takes the element of each row from a register of its own).
constexpr int kTileRows = kLanes >= 8 ? 6 : 4;
constexpr int kTileVecs = kRegisters == 32 ? 4 : 2;
constexpr int kPanel = kTileVecs * kLanes;
static_assert(kBlock % kPanel == 0);

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
void pack_keys(const BlockRows& block, const BlockRows& next, int64_t dim, float* keys) {
  for (int key = 0; key < kBlock; key += kLanes) {
    float* panel = keys + key / kPanel * whole_vectors(dim) * kPanel + key % kPanel;
    for (int i = key; i < key + kLanes; ++i) prefetch(next.k[i], dim * kSize<kType>);
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
void score_tile(const float* q, int64_t stride, int64_t dim, const float* panel, float* scores) {
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
    for (int i = 0; i < kTileVecs; ++i) store(scores + r * kBlock + i * kLanes, sum[r][i]);
  }
}

template <DType kType>
void score_many(const QueryTile& tile, int rows, const BlockRows& block, const BlockRows& next,
                float* keys, float* scores) {
  pack_keys<kType>(block, next, tile.k_dim, keys);
  const int64_t stride = pad(tile.k_dim);
  const int64_t dim = whole_vectors(tile.k_dim);
  for (int key = 0; key < kBlock; key += kPanel) {
    if (((block.bits >> key) & (kAllKeys >> (kBlock - kPanel))) == 0) continue;
    for (int r = 0; r < rows; r += kTileRows) {
      for_tile(static_cast<int>(min_of(kTileRows, rows - r)), [&]<int kRows>() {
        score_tile<kRows>(tile.q + r * stride, stride, dim, keys + key * dim,
                          scores + r * kBlock + key);
      });
    }
  }
}

// Elements at .. at + kWidth of the values of `bits`, [key][kWidth]. `n` < kLanes elements if the
// row ends there.
template <DType kType, int kWidth>
KVC_SIMD_FN void pack_values(const BlockRows& block, uint64_t bits, int64_t at, int n,
                             float* panel) {
  for (; bits != 0; bits &= bits - 1) {
    const int key = __builtin_ctzll(bits);
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; i += kLanes) {
      store(panel + key * kWidth + i, n < kLanes ? load_n_as<kType>(block.v[key], at, n)
                                                 : load_as<kType>(block.v[key], at + i));
    }
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

// `panel` holds [kBlock][kPanel].
template <DType kType>
void value_many(const QueryTile& tile, int rows, const BlockRows& block, const BlockRows& next,
                const uint64_t* row_bits, const float* weights, float* panel, float* acc) {
  const int64_t stride = pad(tile.v_dim);
  const int64_t dim = tile.v_dim;
  for (int key = 0; key < kBlock; ++key) prefetch(next.v[key], dim * kSize<kType>);
  int64_t at = 0;
  for (; at + kPanel <= dim; at += kPanel) {
    pack_values<kType, kPanel>(block, block.bits, at, kLanes, panel);
    value_panel<kTileVecs>(rows, row_bits, weights, panel, acc + at, stride);
  }
  for (; at < dim; at += kLanes) {
    pack_values<kType, kLanes>(block, block.bits, at, static_cast<int>(min_of(kLanes, dim - at)),
                               panel);
    value_panel<1>(rows, row_bits, weights, panel, acc + at, stride);
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
