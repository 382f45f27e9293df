// Few query rows over coded keys and values, in whole numbers: what both ways of it share, by dot
// products of bytes (attention_few_planes.inl) and of words (attention_few_words.inl). Part of
// attention.inl. Codes, or the levels they stand for, are bytes.
//
// Scores. A query row, or a group of its elements, is a scale times whole numbers, its largest
// element the largest of them. Products with those bytes of a key that share a scale are added as
// whole numbers; their scale is that of query times key. Sums of several scales are added as floats
// in a fixed order.
//
// Values. Of a block of up to 64 keys, the weights of a row times the scales of the values are a
// factor times whole numbers, the block's largest the largest of them. The sum is exact over the
// block, and goes into the row's floats.
//
// Whole numbers know no order: the bits of a score, and of a block's sum, depend on its keys alone.
// What a key that a row does not see holds has no part in either. Errors: of a query's largest
// element, and of a block's largest weight, what the way says.
namespace kvcache::internal::KVC_SIMD {
namespace {

constexpr int64_t kMostElements = 1024;  // of a row that goes this way
constexpr int kMostGroups = static_cast<int>(kMostElements / RowFormat::kGroup);

// What the elements of a query row are multiplied by to be whole numbers up to `most_whole`, and
// the scale that undoes it: NaN where one is not finite.
struct QueryUnit {
  F32 by;
  float scale;
};
KVC_SIMD_FN QueryUnit unit_of_query(const float* row, int64_t dim, int most_whole) {
  F32 most = zero();
  F32 check = zero();  // NaN where an element is not finite
  for (int64_t d = 0; d < pad(dim); d += kLanes) {
    const F32 x = load(row + d);
    most = max(most, max(x, zero() - x));
    check = check + x * zero();
  }
  const float largest = reduce_max(most);
  // Below that, scores are 0 in all but name.
  const bool some = largest > 1e-30f;
  const auto whole = static_cast<float>(most_whole);
  return {set1(some ? whole / largest : 0.0f), (some ? largest / whole : 0.0f) + reduce_add(check)};
}

// The scales of the keys of a step, in their order: those `at` bytes behind the first of each.
KVC_SIMD_FN void scales_of_step(const Step& step, int64_t at, F32 (&to)[kStepVecs]) {
  if (step.runs) {
    const char* from[kStreams];
    for (int s = 0; s < kStreams; ++s) from[s] = step.scales[s] + at;
    return widen_four_fours(from, to);
  }
  uint16_t halves[kStep];
  for (int i = 0; i < kStep; ++i) __builtin_memcpy(&halves[i], step.scales[i] + at, 2);
#pragma GCC unroll 4
  for (int v = 0; v < kStepVecs; ++v) to[v] = load_f16(halves + v * kLanes);
}

// The zeros, likewise.
KVC_SIMD_FN void zeros_of_step(const Step& step, int64_t at, int8_t* to) {
  if (step.runs) {
    int32_t fours[kStreams];
    for (int s = 0; s < kStreams; ++s) __builtin_memcpy(&fours[s], step.zeros[s] + at, 4);
    using Fours = int32_t __attribute__((vector_size(16)));
    const Fours runs = {fours[0], fours[1], fours[2], fours[3]};
    const auto by_run = reinterpret_cast<Codes>(runs);
    const Codes zeros = __builtin_shufflevector(by_run, by_run, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10,
                                                14, 3, 7, 11, 15);
    __builtin_memcpy(to, &zeros, sizeof(zeros));
    return;
  }
  for (int i = 0; i < kStep; ++i) __builtin_memcpy(to + i, step.zeros[i] + at, 1);
}

// Elements that share a scale.
template <RowFormat::Kind kKind>
KVC_SIMD_FN int64_t group_elements(int64_t dim) {
  return GroupForm<kKind>::kOwnScale ? RowFormat::kGroup : RowFormat{kKind}.scale_elements(dim);
}

// Scales, and zeros of int4, of the keys of a step: scales[group * stride + key].
template <RowFormat::Kind kKind>
KVC_SIMD_FN void load_scales(const RowsView& view, int64_t dim, const Step& step, int64_t stride,
                             float* scales, int8_t* zeros) {
  using Form = GroupForm<kKind>;
  const int64_t elements = group_elements<kKind>(dim);
  int64_t at = 0;
  for (int64_t d = 0; d < dim; d += elements, scales += stride) {
    F32 x[kStepVecs];
    if constexpr (Form::kGgml) {
      uint16_t halves[kStep];
      for (int i = 0; i < kStep; ++i) __builtin_memcpy(&halves[i], step.rows[i] + at, 2);
      for (int v = 0; v < kStepVecs; ++v) x[v] = load_f16(halves + v * kLanes);
      at += Form::kBytes;
    } else {
      scales_of_step(step, at, x);
      if constexpr (kKind == RowFormat::kInt4) {
        zeros_of_step(step, at / 2, zeros);
        zeros += stride;
      }
      at += view.scale_group_stride;
    }
    for (int v = 0; v < kStepVecs; ++v) store(scales + v * kLanes, x[v]);
  }
}

// Calls f.template operator()<kind>() for the forms that may go in whole numbers.
template <typename F>
KVC_SIMD_FN void for_whole_codes(RowFormat::Kind kind, F f) {
  switch (kind) {
    case RowFormat::kInt8:
      return f.template operator()<RowFormat::kInt8>();
    case RowFormat::kInt4:
      return f.template operator()<RowFormat::kInt4>();
    case RowFormat::kQ8_0:
      return f.template operator()<RowFormat::kQ8_0>();
    case RowFormat::kQ4_0:
      return f.template operator()<RowFormat::kQ4_0>();
    default:
      return f.template operator()<RowFormat::kLm4>();
  }
}

// Scores of a chunk of rows with a step, in the slots of its block: scores[row * kScores + slot].
// `score` gives those of up to four rows from r on with all 16 keys: to[row * to_stride + key].
template <typename Score>
KVC_SIMD_FN void score_whole(int rows, const Step& here, float* scores, Score score) {
  for_fours(
      rows, [&]<int kRows>(int r) __attribute__((always_inline)) {
        float close[kRows * kStep];
        float* to = here.whole ? scores + r * kScores + here.first_slot() : close;
        score.template operator()<kRows>(r, to, here.whole ? kScores : kStep);
        if (here.whole) return;
        int n = 0;
        for (uint64_t slots = here.slots; slots != 0; slots &= slots - 1, ++n) {
          for (int row = 0; row < kRows; ++row) {
            scores[(r + row) * kScores + __builtin_ctzll(slots)] = close[row * kStep + n];
          }
        }
      });
}

// The values of a block that some row of the chunk sees, in the order of the steps, up to a
// multiple of 16: behind the last they are that again, with weight 0.
struct ValueBlock {
  const char* rows[kBlock];
  const char* ahead[kBlock];
  int keys;  // a multiple of 16
};

// The order of a block's keys, filled in step by step.
struct BlockOrder {
  uint64_t slots[kBlock / kStep];  // of each step
  bool straight = true;            // key i has slot i
  int steps = 0;

  [[gnu::always_inline]] void add(const Step& step, const Step& next, ValueBlock* block) {
    const int key = steps * kStep;
    __builtin_memcpy(block->rows + key, step.rows, sizeof(step.rows));
    __builtin_memcpy(block->ahead + key, next.rows, sizeof(next.rows));
    straight = straight && step.slots == kAllOfStep << key;
    slots[steps++] = step.slots;
    block->keys = key + kStep;
  }

  // The weights of row `r` of the chunk in this order, in `close` if they are not yet.
  [[gnu::always_inline]] const float* weights_of(const BlockWeights& block, int r,
                                                 float* close) const {
    const float* weights = block.weights + r * kBlock;
    const bool none = block.seen[r] == 0;
    if (straight && !none) return weights;
    for (int i = 0; i < steps * kStep; ++i) close[i] = 0;
    for (int step = 0; !none && step < steps; ++step) {
      float* to = close + step * kStep;
      for (uint64_t rest = slots[step]; rest != 0; rest &= rest - 1) {
        *to++ = weights[__builtin_ctzll(rest)];
      }
    }
    return close;
  }
};

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
