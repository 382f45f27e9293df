// Weighted values of a step, added to what few query rows have. Part of attention.inl.
//
// An element of a result is a sum over keys in the order of the steps, one multiply-add after the
// other, whatever the shape that computes it. With 32 registers four vectors of four rows stay in
// registers over a step; with 16, where rows may be read without requests ahead, four keys are read
// whole before the next four: the order in which lines are first touched decides there.
namespace kvcache::internal::KVC_SIMD {
namespace {

// acc += weights * values for elements d .. d + kWide * kLanes of kRows rows, `count` keys:
// weights[row * kBlock + key].
template <DType kType, int kRows, int kWide, Prefetch kAsk>
KVC_SIMD_FN void add_column(const float* weights, const char* const* rows, int count,
                            const char* const* ahead, int64_t d, float* acc, int64_t stride) {
  F32 sums[kRows][kWide];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < kWide; ++w) sums[r][w] = load(acc + r * stride + d + w * kLanes);
  }
#pragma GCC unroll 4
  for (int key = 0; key < count; ++key) {
    F32 x[kWide];
#pragma GCC unroll 2
    for (int w = 0; w < kWide; w += 2) {
      load_two<kType>(rows[key], d + w * kLanes, &x[w], &x[w + 1]);
    }
    ask_beside<kAsk, kWide * kLanes * kSize<kType>>(ahead[key], d * kSize<kType>);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F32 weight = set1(weights[r * kBlock + key]);
#pragma GCC unroll 4
      for (int w = 0; w < kWide; ++w) sums[r][w] = fma(weight, x[w], sums[r][w]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < kWide; ++w) store(acc + r * stride + d + w * kLanes, sums[r][w]);
  }
}

// The same for the vectors after the last pair.
template <DType kType, int kRows>
KVC_SIMD_FN void add_rest(const float* weights, const char* const* rows, int count, int64_t d,
                          int64_t dim, float* acc, int64_t stride) {
  for (; d < dim; d += kLanes) {
    const int tail = dim - d < kLanes ? static_cast<int>(dim - d) : 0;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      F32 sum = load(acc + r * stride + d);
      for (int key = 0; key < count; ++key) {
        sum = fma(set1(weights[r * kBlock + key]), load_one<kType>(rows[key], d, tail), sum);
      }
      store(acc + r * stride + d, sum);
    }
  }
}

// acc += weights * values for kRows rows and `count` keys of a step, column by column.
template <DType kType, int kRows, Prefetch kAsk>
[[gnu::noinline]] void add_columns(const float* weights, const char* const* rows, int count,
                                   const char* const* ahead, int64_t dim, float* acc,
                                   int64_t stride) {
  int64_t d = 0;
#pragma GCC unroll 1
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
    if (count == kStep) {
      add_column<kType, kRows, 4, kAsk>(weights, rows, kStep, ahead, d, acc, stride);
    } else {
      add_column<kType, kRows, 4, kAsk>(weights, rows, count, ahead, d, acc, stride);
    }
  }
  if (d + 2 * kLanes <= dim) {
    add_column<kType, kRows, 2, kAsk>(weights, rows, count, ahead, d, acc, stride);
    d += 2 * kLanes;
  }
  add_rest<kType, kRows>(weights, rows, count, d, dim, acc, stride);
}

// The same by kKeys keys, each row read whole. REQUIRES: count is a multiple of kKeys.
template <DType kType, int kRows, int kKeys, Prefetch kAsk>
[[gnu::noinline]] void add_whole_rows(const float* weights, const char* const* rows, int count,
                                      const char* const* ahead, int64_t dim, float* acc,
                                      int64_t stride) {
  // Vectors of a row that are summed side by side.
  constexpr int kWide = kRows == 3 ? 1 : 2;
  for (int key = 0; key < count; key += kKeys) {
    // Copies stay in registers; the originals might be what is stored to, for all that is known.
    const char* row[kKeys];
    F32 weight[kRows][kKeys];
#pragma GCC unroll 4
    for (int i = 0; i < kKeys; ++i) {
      row[i] = rows[key + i];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) weight[r][i] = set1(weights[r * kBlock + key + i]);
    }
    int64_t d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) {
        ask_beside<kAsk, 2 * kLanes * kSize<kType>>(ahead[key + i], d * kSize<kType>);
      }
#pragma GCC unroll 2
      for (int first = 0; first < 2; first += kWide) {
        F32 sums[kRows][kWide];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
          for (int w = 0; w < kWide; ++w) {
            sums[r][w] = load(acc + r * stride + d + (first + w) * kLanes);
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kKeys; ++i) {
          F32 x[2];
          load_two<kType>(row[i], d, &x[0], &x[1]);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int w = 0; w < kWide; ++w) {
              sums[r][w] = fma(weight[r][i], x[first + w], sums[r][w]);
            }
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
          for (int w = 0; w < kWide; ++w) {
            store(acc + r * stride + d + (first + w) * kLanes, sums[r][w]);
          }
        }
      }
    }
    add_rest<kType, kRows>(weights + key, rows + key, kKeys, d, dim, acc, stride);
  }
}

// acc += weights * values for rows r .. end of a chunk and `count` keys.
template <DType kType, Prefetch kAsk>
KVC_SIMD_FN void add_step(const float* weights, const char* const* rows, int count,
                          const char* const* ahead, int r, int end, int64_t dim, float* acc) {
  const int64_t stride = pad(dim);
  const auto add = [&]<int kRows, Prefetch kLevel>(int row) __attribute__((always_inline)) {
    const float* w = weights + row * kBlock;
    float* to = acc + row * stride;
    if constexpr (kRegisters == 32) {
      add_columns<kType, kRows, kLevel>(w, rows, count, ahead, dim, to, stride);
    } else {
      const int whole = count / 4 * 4;
      add_whole_rows<kType, kRows, 4, kLevel>(w, rows, whole, ahead, dim, to, stride);
      if (whole < count) {
        add_whole_rows<kType, kRows, 1, kLevel>(w + whole, rows + whole, count - whole,
                                                ahead + whole, dim, to, stride);
      }
    }
  };
  // The lines ahead are asked for once.
  const auto add_asking = [&]<int kRows>(int i) __attribute__((always_inline)) {
    if (r + i == 0) {
      add.template operator()<kRows, kAsk>(r + i);
    } else {
      add.template operator()<kRows, Prefetch::kNone>(r + i);
    }
  };
  if constexpr (kRegisters == 32) {
    for_fours(end - r, add_asking);
  } else {
    for_twos(end - r, add_asking);
  }
}

// Weights of the rows of a chunk for the keys of a block.
struct alignas(64) BlockWeights {
  float weights[kFewChunk * kBlock];  // [row, slot]
  uint64_t seen[kFewChunk];           // the slots that each row sees
};

// acc += weights * values of a step.
template <DType kType, Prefetch kAsk>
KVC_SIMD_FN void value_few(int rows, int64_t dim, const Step& here, const Step& ahead,
                           const BlockWeights& block, float* acc) {
  for (int r = 0; r < rows;) {
    // Rows that see the same keys.
    const uint64_t slots = block.seen[r] & here.slots;
    int end = r + 1;
    while (end < rows && (block.seen[end] & here.slots) == slots) ++end;
    if (here.whole && slots == here.slots) {
      add_step<kType, kAsk>(block.weights + here.first_slot(), here.rows, kStep, ahead.rows, r, end,
                            dim, acc);
    } else if (slots != 0) {
      // Of the step's keys, those that the rows see.
      const char* close_rows[kStep];
      float close[kFewChunk * kBlock];
      int n = 0;
      int i = 0;
      for (uint64_t rest = here.slots; rest != 0; rest &= rest - 1, ++i) {
        const int slot = __builtin_ctzll(rest);
        if ((slots >> slot & 1) == 0) continue;
        close_rows[n] = here.rows[i];
        for (int row = r; row < end; ++row) {
          close[row * kBlock + n] = block.weights[row * kBlock + slot];
        }
        ++n;
      }
      add_step<kType, kAsk>(close, close_rows, n, ahead.rows, r, end, dim, acc);
    }
    r = end;
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
