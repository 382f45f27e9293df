// Products of few query rows with a block of keys and values: the decode path. Part of
// attention.inl.
//
// Lanes are elements of a row, for keys as for values: rows are read as they are stored, and
// nothing is transposed. A score is the sum of kLanes sums, each over elements in ascending order,
// folded in a fixed order; the sums of a step (rows by keys) are folded together. bf16 rows are
// widened by pairs of elements, two operations for two vectors: lanes of the first hold the even
// elements, of the second the odd ones. Queries are brought into that order before, results are
// brought out of it after a cut.
//
// Cost per block and 4 rows: 64 (k_dim + v_dim) elements read and widened once, 4 times as many
// multiply-adds. More rows take another pass over the block, which lies in the first cache by then.
//
// Memory: the processor's own prefetching follows rows that are read in order, and several such
// streams at once reach more of the memory than one. So keys are read as 2 or 4 streams, parts of
// the block, each row after row. Values are read by columns, which it does not follow: they are
// asked for, row after row, while the scores are computed. While values are added, the first keys
// of the next block are.
namespace kvcache::internal::KVC_SIMD {
namespace {

// Rows of a pass, and the accumulators that it keeps in registers.
constexpr int kFewRows = 4;
constexpr int kFewSums = kRegisters == 32 ? 16 : 8;

// Elements that are widened as pairs: whole pairs of vectors of bf16 rows.
template <DType kType>
KVC_SIMD_FN int64_t paired(int64_t dim) {
  return kType == DType::kBF16 ? dim / (2 * kLanes) * (2 * kLanes) : 0;
}

// x [rows, dim padded], elements paired(dim) in the order of load_bf16_pairs.
void to_pairs(const float* x, int64_t rows, int64_t dim, int64_t stride, float* to) {
  const int64_t end = paired<DType::kBF16>(dim);
  for (int64_t r = 0; r < rows; ++r, x += stride, to += stride) {
    for (int64_t d = 0; d < end; d += 2 * kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        to[d + i] = x[d + 2 * i];
        to[d + kLanes + i] = x[d + 2 * i + 1];
      }
    }
    for (int64_t d = end; d < stride; ++d) to[d] = x[d];
  }
}

// The way back, in place.
void from_pairs(float* x, int64_t rows, int64_t dim, int64_t stride) {
  const int64_t end = paired<DType::kBF16>(dim);
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    for (int64_t d = 0; d < end; d += 2 * kLanes) {
      const F32 even = load(x + d);
      const F32 odd = load(x + d + kLanes);
      store(x + d, zip_low(even, odd));
      store(x + d + kLanes, zip_high(even, odd));
    }
  }
}

// Calls f.template operator()<n>() for n = 1 .. kFewRows.
template <typename F>
KVC_SIMD_FN void for_few(int n, F f) {
  static_assert(kFewRows == 4);
  switch (n) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    default:
      return f.template operator()<4>();
  }
}

// Keys of a step, each from a stream of its own: with kRows rows they fill the accumulators.
// Measured on Zen 3, share of the read roof in decode: 8 rows side by side 0.6, streams of single
// rows over 16 parts 0.3.
template <int kRows>
constexpr int kFewKeys = kFewSums / kRows >= 4 ? 4 : 2;

// Scores of kRows rows with kKeys keys, one sum each: sums[row * kKeys + key]. `later`: rows of
// `later_bytes` that are wanted soon, asked for line by line, as asking for whole rows at once
// stalls.
template <DType kType, int kRows, int kKeys>
KVC_SIMD_FN void sum_products(const float* q, int64_t stride, int64_t dim,
                              const char* const* k_rows, const char* const* later,
                              int64_t later_bytes, F32* sums) {
  F32 sum[kRows][kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) sum[r][i] = zero();
  }
  const auto add = [&](const float* at, const F32(&x)[kKeys]) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32 element = in_register(load(at + r * stride));
#pragma GCC unroll 16
      for (int i = 0; i < kKeys; ++i) sum[r][i] = fma(element, x[i], sum[r][i]);
    }
  };
  const auto ask = [&](int64_t at) __attribute__((always_inline)) {
    const int64_t byte = at * kSize<kType>;
    if (byte % 64 != 0 || byte >= later_bytes) return;
#pragma GCC unroll 4
    for (int i = 0; i < kKeys; ++i) prefetch(later[i] + byte);
  };
  int64_t d = 0;
  if constexpr (kType == DType::kBF16) {
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      ask(d);
      F32 even[kKeys];
      F32 odd[kKeys];
#pragma GCC unroll 16
      for (int i = 0; i < kKeys; ++i) {
        load_bf16_pairs(reinterpret_cast<const uint16_t*>(k_rows[i]) + d, &even[i], &odd[i]);
      }
      add(q + d, even);
      add(q + d + kLanes, odd);
    }
  }
  for (; d + kLanes <= dim; d += kLanes) {
    ask(d);
    F32 x[kKeys];
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) x[i] = load_as<kType>(k_rows[i], d);
    add(q + d, x);
  }
  if (d < dim) {
    F32 x[kKeys];
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) {
      x[i] = load_n_as<kType>(k_rows[i], d, static_cast<int>(dim - d));
    }
    add(q + d, x);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) sums[r * kKeys + i] = sum[r][i];
  }
}

// Scores of kRows rows with a key of each stream: those at `key` + i * kBlock / kKeys.
template <DType kType, int kRows>
KVC_SIMD_FN void score_keys(const float* q, int64_t stride, int64_t dim, const BlockRows& block,
                            int key, int64_t v_bytes, float* scores) {
  constexpr int kKeys = kFewKeys<kRows>;
  constexpr int kStream = kBlock / kKeys;
  constexpr int kFolds = (kRows * kKeys + kLanes - 1) / kLanes;
  const char* k_rows[kKeys];
  const char* v_rows[kKeys];
#pragma GCC unroll 4
  for (int i = 0; i < kKeys; ++i) {
    k_rows[i] = block.k[key + i * kStream];
    v_rows[i] = block.v[key + i * kStream];
  }
  F32 sums[kFolds * kLanes];
#pragma GCC unroll 16
  for (int i = kRows * kKeys; i < kFolds * kLanes; ++i) sums[i] = zero();
  sum_products<kType, kRows, kKeys>(q, stride, dim, k_rows, v_rows, v_bytes, sums);
  float folded[kFolds * kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kFolds; ++i) store(folded + i * kLanes, fold(sums + i * kLanes));
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kKeys; ++i) {
      scores[r * kBlock + key + i * kStream] = folded[r * kKeys + i];
    }
  }
}

// Asks for the block's values on the way: `v_bytes` of a row.
template <DType kType>
void score_few(const float* q, const QueryTile& tile, int rows, const BlockRows& block,
               int64_t v_bytes, float* scores) {
  const int64_t stride = pad(tile.k_dim);
  for (int r = 0; r < rows; r += kFewRows) {
    for_few(static_cast<int>(min_of(kFewRows, rows - r)), [&]<int kRows>() {
      constexpr int kStream = kBlock / kFewKeys<kRows>;
      // Bit i: whether any stream's key i is there.
      uint64_t some = block.bits;
      for (int half = kBlock / 2; half >= kStream; half /= 2) some |= some >> half;
      for (int key = 0; key < kStream; ++key) {
        if ((some >> key & 1) == 0) continue;
        score_keys<kType, kRows>(q + r * stride, stride, tile.k_dim, block, key,
                                 r == 0 ? v_bytes : 0, scores + r * kBlock);
      }
    });
  }
}

// Rows that are wanted next, asked for a line at a time.
struct Ahead {
  const char* const* rows;
  const char* const* end;
  int64_t row_bytes;
  int64_t byte;
};

KVC_SIMD_FN void ask(Ahead* ahead) {
  if (ahead->rows == ahead->end) return;
  prefetch(*ahead->rows + ahead->byte);
  ahead->byte += 64;
  if (ahead->byte < ahead->row_bytes) return;
  ahead->byte = 0;
  ++ahead->rows;
}

// acc += weights * values: elements at .. at + kVecs * kLanes of kRows rows that see the same keys,
// or `tail` < kLanes elements if not 0.
template <DType kType, int kRows, int kVecs>
KVC_SIMD_FN void few_columns(const float* weights, uint64_t bits, const char* const* v_rows,
                             int64_t at, int tail, float* acc, int64_t stride, Ahead* ahead) {
  F32 sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) sum[r][i] = load(acc + r * stride + at + i * kLanes);
  }
  const auto add = [&](int key) __attribute__((always_inline)) {
    const char* row = v_rows[key];
    F32 x[kVecs];
    if constexpr (kType == DType::kBF16 && kVecs > 1) {
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; i += 2) {
        load_bf16_pairs(reinterpret_cast<const uint16_t*>(row) + at + i * kLanes, &x[i], &x[i + 1]);
      }
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; ++i) {
        x[i] = tail != 0 ? load_n_as<kType>(row, at, tail) : load_as<kType>(row, at + i * kLanes);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32 weight = set1(weights[r * kBlock + key]);
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; ++i) sum[r][i] = fma(weight, x[i], sum[r][i]);
    }
  };
  if (bits == kAllKeys) {
    for (int key = 0; key < kBlock; key += 4) {
      ask(ahead);
      for (int i = key; i < key + 4; ++i) add(i);
    }
  } else {
    for (; bits != 0; bits &= bits - 1) add(__builtin_ctzll(bits));
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) store(acc + r * stride + at + i * kLanes, sum[r][i]);
  }
}

template <DType kType, int kRows>
void few_values(const float* weights, uint64_t bits, const char* const* v_rows, int64_t dim,
                float* acc, int64_t stride, Ahead* ahead) {
  constexpr int kPerRow = kFewSums / kRows;
  constexpr int kVecs = kPerRow >= 8 ? 8 : kPerRow >= 4 ? 4 : 2;
  int64_t at = 0;
  for (; at + kVecs * kLanes <= dim; at += kVecs * kLanes) {
    few_columns<kType, kRows, kVecs>(weights, bits, v_rows, at, 0, acc, stride, ahead);
  }
  for (; at + 2 * kLanes <= dim; at += 2 * kLanes) {
    few_columns<kType, kRows, 2>(weights, bits, v_rows, at, 0, acc, stride, ahead);
  }
  for (; at + kLanes <= dim; at += kLanes) {
    few_columns<kType, kRows, 1>(weights, bits, v_rows, at, 0, acc, stride, ahead);
  }
  if (at < dim) {
    few_columns<kType, kRows, 1>(weights, bits, v_rows, at, static_cast<int>(dim - at), acc, stride,
                                 ahead);
  }
}

template <DType kType>
void value_few(const QueryTile& tile, int rows, const BlockRows& block, const uint64_t* row_bits,
               const float* weights, float* acc, Ahead* ahead) {
  const int64_t stride = pad(tile.v_dim);
  for (int r = 0; r < rows;) {
    const uint64_t bits = row_bits[r];
    int n = 1;
    while (n < kFewRows && r + n < rows && row_bits[r + n] == bits) ++n;
    if (bits != 0) {
      for_few(n, [&]<int kRows>() {
        few_values<kType, kRows>(weights + r * kBlock, bits, block.v, tile.v_dim, acc + r * stride,
                                 stride, ahead);
      });
    }
    r += n;
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
