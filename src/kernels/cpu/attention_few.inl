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
// Memory: the processor's own prefetching follows rows that are read in order and restarts at
// every page of memory; several such streams at once, crossing pages together, reach more of the
// memory than one. So a step takes one key of each of kStreams quarters of the cut, first its keys
// and then its values. Where keys are missing, a step takes the next that are there. Where the
// processor needs help (QueryTile::prefetch), values are asked for while the block's scores are
// computed, and the next block's keys while values are added; where it does not, such
// instructions take the place of its own (Zen 3: a tenth to a third slower).
//
// Cost per block and row: 64 (k_dim + v_dim) multiply-adds. A row pair (kFewRows) reads and widens
// each element once; kFewChunk rows take a step before the next step is read.
namespace kvcache::internal::KVC_SIMD {
namespace {

// Rows that share what is read of a step: their sums fill the registers. Rows that stay in the
// first cache from step to step.
constexpr int kFewRows = kRegisters == 32 ? 4 : 2;
constexpr int kFewChunk = 16;

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

// Calls f.template operator()<n>(row) for rows begin .. end, n at a time: kFewRows, then fewer.
template <typename F>
KVC_SIMD_FN void for_few(int begin, int end, F f) {
  for (; begin + kFewRows <= end; begin += kFewRows) f.template operator()<kFewRows>(begin);
  if constexpr (kFewRows > 2) {
    if (begin + 2 <= end) {
      f.template operator()<2>(begin);
      begin += 2;
    }
  }
  if (begin < end) f.template operator()<1>(begin);
}

// Asks for `bytes` of the rows of a step.
KVC_SIMD_FN void ask_for(const char* const* rows, int64_t bytes, Prefetch level) {
  const auto each_line = [&](auto ask) __attribute__((always_inline)) {
    for (int i = 0; i < kStreams; ++i) {
      for (int64_t byte = 0; byte < bytes; byte += 64) ask(rows[i] + byte);
    }
  };
  if (level == Prefetch::kL1) each_line([](const char* at) { __builtin_prefetch(at, 0, 3); });
  if (level == Prefetch::kL2) each_line([](const char* at) { __builtin_prefetch(at, 0, 2); });
  if (level == Prefetch::kL3) each_line([](const char* at) { __builtin_prefetch(at, 0, 1); });
}

// Calls f(slots, n) for steps of up to kStreams slots of `bits` in order.
template <typename F>
KVC_SIMD_FN void for_steps(uint64_t bits, F f) {
  while (bits != 0) {
    int slots[kStreams];
    int n = 0;
    for (; n < kStreams && bits != 0; bits &= bits - 1) slots[n++] = __builtin_ctzll(bits);
    f(slots, n);
  }
}

// Elements at, at + kLanes of a row: two vectors, in the order of load_bf16_pairs if bf16.
template <DType kType>
KVC_SIMD_FN void load_two(const char* row, int64_t at, F32* a, F32* b) {
  if constexpr (kType == DType::kBF16) {
    load_bf16_pairs(reinterpret_cast<const uint16_t*>(row) + at, a, b);
  } else {
    *a = load_as<kType>(row, at);
    *b = load_as<kType>(row, at + kLanes);
  }
}

// Elements at .. at + kLanes of a row; `tail` of them if not 0.
template <DType kType>
KVC_SIMD_FN F32 load_one(const char* row, int64_t at, int tail) {
  return tail != 0 ? load_n_as<kType>(row, at, tail) : load_as<kType>(row, at);
}

// Scores of kRows rows with the keys of a step: scores[row * kBlock + key]. A function of its own,
// as add_values: their loops need all registers.
template <DType kType, int kRows>
[[gnu::noinline]] void score_step(const float* q, int64_t stride, int64_t dim,
                                  const char* const* k_rows, float* scores) {
  constexpr int kSums = kRows * kStreams;
  constexpr int kFolds = (kSums + kLanes - 1) / kLanes;
  const char* row[kStreams];
#pragma GCC unroll 4
  for (int i = 0; i < kStreams; ++i) row[i] = k_rows[i];
  F32 sums[kFolds * kLanes];
#pragma GCC unroll 32
  for (int i = 0; i < kFolds * kLanes; ++i) sums[i] = zero();
  int64_t d = 0;
  for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
    F32 a[kRows];
    F32 b[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      a[r] = in_register(load(q + r * stride + d));
      b[r] = in_register(load(q + r * stride + d + kLanes));
    }
#pragma GCC unroll 4
    for (int i = 0; i < kStreams; ++i) {
      F32 x;
      F32 y;
      load_two<kType>(row[i], d, &x, &y);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        F32& sum = sums[r * kStreams + i];
        sum = fma(b[r], y, fma(a[r], x, sum));
      }
    }
  }
  for (; d < dim; d += kLanes) {
    const int tail = dim - d < kLanes ? static_cast<int>(dim - d) : 0;
#pragma GCC unroll 4
    for (int i = 0; i < kStreams; ++i) {
      const F32 x = load_one<kType>(row[i], d, tail);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        F32& sum = sums[r * kStreams + i];
        sum = fma(load(q + r * stride + d), x, sum);
      }
    }
  }
  float folded[kFolds * kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kFolds; ++i) store(folded + i * kLanes, fold(sums + i * kLanes));
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    __builtin_memcpy(scores + r * kBlock, folded + r * kStreams, kStreams * sizeof(float));
  }
}

template <DType kType>
void score_few(const float* q, const QueryTile& tile, int rows, const BlockRows& block,
               int64_t v_bytes, float* scores) {
  const int64_t stride = pad(tile.k_dim);
  for (int chunk = 0; chunk < rows; chunk += kFewChunk) {
    const int end = static_cast<int>(min_of(rows, chunk + kFewChunk));
    if (block.bits == kAllKeys) {
      for (int slot = 0; slot < kBlock; slot += kStreams) {
        if (chunk == 0) ask_for(block.v + slot, v_bytes, tile.prefetch);
        for_few(chunk, end, [&]<int kRows>(int r) {
          score_step<kType, kRows>(q + r * stride, stride, tile.k_dim, block.k + slot,
                                   scores + r * kBlock + slot);
        });
      }
      continue;
    }
    for_steps(block.bits, [&](const int* slots, int n) {
      const char* k_rows[kStreams];
      for (int i = 0; i < kStreams; ++i) k_rows[i] = block.k[slots[i < n ? i : 0]];
      for_few(chunk, end, [&]<int kRows>(int r) {
        float step[kRows * kBlock];
        score_step<kType, kRows>(q + r * stride, stride, tile.k_dim, k_rows, step);
        for (int row = 0; row < kRows; ++row) {
          for (int i = 0; i < n; ++i) {
            scores[(r + row) * kBlock + slots[i]] = step[row * kBlock + i];
          }
        }
      });
    });
  }
}

// acc += weights * values for kRows rows and kKeys keys: weights[row * kBlock + key].
template <DType kType, int kRows, int kKeys>
[[gnu::noinline]] void add_values(const float* weights, const char* const* v_rows, int64_t dim,
                                  float* acc, int64_t stride) {
  // Copies stay in registers; the originals might be what is stored to, for all that is known.
  const char* row[kKeys];
  F32 weight[kRows][kKeys];
#pragma GCC unroll 4
  for (int i = 0; i < kKeys; ++i) {
    row[i] = v_rows[i];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) weight[r][i] = set1(weights[r * kBlock + i]);
  }
  int64_t d = 0;
  for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
    F32 a[kRows];
    F32 b[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      a[r] = load(acc + r * stride + d);
      b[r] = load(acc + r * stride + d + kLanes);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kKeys; ++i) {
      F32 x;
      F32 y;
      load_two<kType>(row[i], d, &x, &y);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        a[r] = fma(weight[r][i], x, a[r]);
        b[r] = fma(weight[r][i], y, b[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      store(acc + r * stride + d, a[r]);
      store(acc + r * stride + d + kLanes, b[r]);
    }
  }
  for (; d < dim; d += kLanes) {
    const int tail = dim - d < kLanes ? static_cast<int>(dim - d) : 0;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      F32 a = load(acc + r * stride + d);
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) a = fma(weight[r][i], load_one<kType>(row[i], d, tail), a);
      store(acc + r * stride + d, a);
    }
  }
}

template <DType kType>
void value_few(const QueryTile& tile, int rows, const BlockRows& block, const BlockRows& next,
               int64_t k_bytes, const uint64_t* row_bits, const float* weights, float* acc) {
  const int64_t stride = pad(tile.v_dim);
  for (int r = 0; r < rows;) {
    // Rows that see the same keys.
    int end = r + 1;
    while (end < rows && end - r < kFewChunk && row_bits[end] == row_bits[r]) ++end;
    if (row_bits[r] == kAllKeys) {
      for (int slot = 0; slot < kBlock; slot += kStreams) {
        if (r == 0) ask_for(next.k + slot, k_bytes, tile.prefetch);
        for_few(r, end, [&]<int kRows>(int at) {
          add_values<kType, kRows, kStreams>(weights + at * kBlock + slot, block.v + slot,
                                             tile.v_dim, acc + at * stride, stride);
        });
      }
    } else {
      for_steps(row_bits[r], [&](const int* slots, int n) {
        const char* v_rows[kStreams];
        for (int i = 0; i < n; ++i) v_rows[i] = block.v[slots[i]];
        for_few(r, end, [&]<int kRows>(int at) {
          float step[kRows * kBlock];
          for (int row = 0; row < kRows; ++row) {
            for (int i = 0; i < n; ++i) {
              step[row * kBlock + i] = weights[(at + row) * kBlock + slots[i]];
            }
          }
          float* to = acc + at * stride;
          if (n == kStreams) {
            add_values<kType, kRows, kStreams>(step, v_rows, tile.v_dim, to, stride);
          } else {
            for (int i = 0; i < n; ++i) {
              add_values<kType, kRows, 1>(step + i, v_rows + i, tile.v_dim, to, stride);
            }
          }
        });
      });
    }
    r = end;
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
