// Scores of few query rows with the keys of a step. Part of attention.inl.
//
// A score is the sum of kLanes sums, each over elements in ascending order, folded in a fixed
// order. With 32 registers four keys' sums are folded to a vector as soon as they are there. With
// 16 those of the whole step are parked first: the additions wait for the last multiply-add of a
// sum, and few registers hold little of the next sums meanwhile.
namespace kvcache::internal::KVC_SIMD {
namespace {

// Keys that kRows rows score side by side: the sums fill the registers.
template <int kRows>
constexpr int kFewKeys = kRegisters == 32 ? (kRows <= 2 ? 8 : 4)
                                          : (kRows == 1 ? 8 : 8 / (kRows == 3 ? 4 : kRows));

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

// Sums of kRows rows with kFewKeys keys, before their lanes are added; q: by pack_queries.
template <DType kType, int kRows, Prefetch kAsk>
KVC_SIMD_FN void sum_products(const float* q, int64_t dim, const char* const* rows,
                              const char* const* ahead, F32 (&sums)[kRows][kFewKeys<kRows>]) {
  constexpr int kKeys = kFewKeys<kRows>;
  const char* row[kKeys];
#pragma GCC unroll 8
  for (int i = 0; i < kKeys; ++i) {
    row[i] = rows[i];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[r][i] = zero();
  }
  int64_t d = 0;
  for (; d + 2 * kLanes <= dim; d += 2 * kLanes, q += kRows * 2 * kLanes) {
    F32 x[kKeys];
    F32 y[kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
      load_two<kType>(row[i], d, &x[i], &y[i]);
      ask_beside<kAsk, 2 * kLanes * kSize<kType>>(ahead[i], d * kSize<kType>);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F32 a = in_register(load(q + r * 2 * kLanes));
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) sums[r][i] = fma(a, x[i], sums[r][i]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F32 b = in_register(load(q + r * 2 * kLanes + kLanes));
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) sums[r][i] = fma(b, y[i], sums[r][i]);
    }
  }
  for (; d < dim; d += kLanes, q += kRows * kLanes) {
    const int tail = dim - d < kLanes ? static_cast<int>(dim - d) : 0;
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
      const F32 x = load_one<kType>(row[i], d, tail);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][i] = fma(load(q + r * kLanes), x, sums[r][i]);
    }
  }
}

// Scores of kRows rows with the first `count` keys of a step, at least: scores[row * to_stride +
// key]. A function of its own, as add_values: their loops need all registers.
template <DType kType, int kRows, Prefetch kAsk>
[[gnu::noinline]] void score_step(const float* q, int64_t dim, const Step& here, const Step& ahead,
                                  float* scores, int64_t to_stride) {
  constexpr int kKeys = kFewKeys<kRows>;
  static_assert(kStep % kKeys == 0 && kStep % kLanes == 0);
  constexpr bool kFoldEarly = kRegisters == 32;
  constexpr int kParts = kFoldEarly ? kStep / 4 : kStep;
  F32 parts[kRows][kParts];
#pragma GCC unroll 1
  for (int key = 0; key < here.count; key += kKeys) {
    F32 sums[kRows][kKeys];
    sum_products<kType, kRows, kAsk>(q, dim, here.rows + key, ahead.rows + key, sums);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; i += kFoldEarly ? 4 : 1) {
        if constexpr (kFoldEarly) {
          parts[r][(key + i) / 4] = fold_four(sums[r] + i);
        } else {
          parts[r][key + i] = sums[r][i];
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kStepVecs; ++v) {
      F32 folded;
      if constexpr (kFoldEarly) {
        folded = fold_fours(parts[r] + v * kLanes / 4);
      } else {
        folded = fold(parts[r] + v * kLanes);
      }
      store(scores + r * to_stride + v * kLanes, folded);
    }
  }
}

// Scores of a chunk of rows with a step, in the slots of its block: scores[row * kScores + slot].
template <DType kType, Prefetch kAsk>
KVC_SIMD_FN void score_few(const float* q, int rows, int64_t dim, const Step& here,
                           const Step& ahead, float* scores) {
  const auto score = [&]<int kRows>(int r, float* to, int64_t to_stride)
      __attribute__((always_inline)) {
    const float* from = q + r * pad(dim);
    // The lines ahead are asked for once.
    if (r == 0) {
      score_step<kType, kRows, kAsk>(from, dim, here, ahead, to, to_stride);
    } else {
      score_step<kType, kRows, Prefetch::kNone>(from, dim, here, ahead, to, to_stride);
    }
  };
  for_fours(
      rows, [&]<int kRows>(int r) __attribute__((always_inline)) {
        if (here.whole) {
          score.template operator()<kRows>(r, scores + r * kScores + here.first_slot(), kScores);
          return;
        }
        float close[kRows * kStep];
        score.template operator()<kRows>(r, close, kStep);
        int n = 0;
        for (uint64_t slots = here.slots; slots != 0; slots &= slots - 1, ++n) {
          for (int row = 0; row < kRows; ++row) {
            scores[(r + row) * kScores + __builtin_ctzll(slots)] = close[row * kStep + n];
          }
        }
      });
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
