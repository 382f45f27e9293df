// Attention of few query rows over a cut of keys and values: the decode path. Part of
// attention.inl.
//
// Lanes are elements of a row, for keys as for values: rows are read as they are stored, and
// nothing is transposed. bf16 rows are widened by pairs of elements, two operations for two
// vectors: lanes of the first hold the even elements, of the second the odd ones. Queries are
// brought into that order before, results are brought out of it after a cut.
//
// All scores of a cut come first (attention_few_scores.inl), with the maximum of each row, then all
// values (attention_few_values.inl): nothing is rescaled, and keys and values are streams of a
// quarter of a cut. The exponentials of a block stand just before the values they weigh, so that
// reading never pauses.
//
// Memory: the processor's own prefetching follows rows that are read in order and restarts at
// every page of memory; several such streams at once, crossing pages together, reach more of the
// memory than one. So kStreams quarters of the cut are read side by side, a key of each in turn
// (attention_few_steps.inl). Where the processor needs help (QueryTile::prefetch), each line that
// is loaded is accompanied by a request for one about 10 KiB ahead: requests at once, for many
// rows, fill the buffers for misses, and the loads behind them wait. Where it does not need it,
// such instructions take the place of its own (Zen 3: a tenth to a third slower), but for the first
// lines of pages that lie apart.
//
// Cost per key and row: k_dim + v_dim multiply-adds. Four rows read and widen a key once, two to
// four a value; kFewChunk rows take a cut before the others do.
namespace kvcache::internal::KVC_SIMD {
namespace {

// Rows of a pass over the cut: a step goes through all of them while it is in the first cache.
constexpr int kFewChunk = 32;

// Floats from a row's scores to the next row's: a line apart, so that rows do not meet in a cache.
constexpr int kScores = static_cast<int>(kLongCutKeys) + 16;

// Elements that are widened as pairs: whole pairs of vectors of bf16 rows.
template <DType kType>
KVC_SIMD_FN int64_t paired(int64_t dim) {
  return kType == DType::kBF16 ? dim / (2 * kLanes) * (2 * kLanes) : 0;
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

// Calls f.template operator()<n>(row) for rows 0 .. rows: by fours, then the rest.
template <typename F>
KVC_SIMD_FN void for_fours(int rows, F f) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) f.template operator()<4>(r);
  if (rows - r == 3) f.template operator()<3>(r);
  if (rows - r == 2) f.template operator()<2>(r);
  if (rows - r == 1) f.template operator()<1>(r);
}

// The same by twos, of which the first is a three if their number is odd.
template <typename F>
KVC_SIMD_FN void for_twos(int rows, F f) {
  if (rows == 1) return f.template operator()<1>(0);
  int r = rows % 2 == 0 ? 0 : 3;
  if (r == 3) f.template operator()<3>(0);
  for (; r < rows; r += 2) f.template operator()<2>(r);
}

// Queries [rows, dim padded] in the order in which scores take them: for each four rows, two
// vectors of the first, two of the second and so on, then the next two vectors of the first; what
// is left beyond whole pairs by single vectors. bf16: elements paired(dim) in the order of
// load_bf16_pairs.
void pack_queries(const float* q, int rows, int64_t dim, bool bf16, float* to) {
  const int64_t stride = pad(dim);
  for_fours(rows, [&]<int kRows>(int r) {
    const float* from = q + r * stride;
    int64_t d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      for (int i = 0; i < kRows; ++i, to += 2 * kLanes) {
        const F32 a = load(from + i * stride + d);
        const F32 b = load(from + i * stride + d + kLanes);
        store(to, bf16 ? unzip_even(a, b) : a);
        store(to + kLanes, bf16 ? unzip_odd(a, b) : b);
      }
    }
    for (; d < dim; d += kLanes) {
      for (int i = 0; i < kRows; ++i, to += kLanes) store(to, load(from + i * stride + d));
    }
    // Each row takes its padded size, so that rows are found by their number.
    to += kRows * (stride - d);
  });
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/attention_few_steps.inl"

#include "kernels/cpu/attention_few_scores.inl"

#include "kernels/cpu/attention_few_values.inl"

#if KVC_SIMD_WHOLE
#include "kernels/cpu/attention_few_whole.inl"
#if KVC_SIMD_BYTE_DOT
#include "kernels/cpu/attention_few_planes.inl"
#else
#include "kernels/cpu/attention_few_words.inl"
#endif
#endif

namespace kvcache::internal::KVC_SIMD {
namespace {

// What rows row0 .. row0 + n of the tile see of a cut: bits [n, kCutBlocks] of each, and `any`
// [kCutBlocks] of them all.
void find_keys(const CutTask& task, int row0, int n, uint64_t* bits, uint64_t* any) {
  const int group = task.tile->group;
  const int blocks = static_cast<int>(task.cut.keys / kBlockKeys);
  for (int b = 0; b < blocks; ++b) {
    const BlockKeys keys = keys_of_parts(*task.rows, task.cut, b);
    any[b] = 0;
    for (int r = 0; r < n; ++r) {
      const bool same_query = r > 0 && (row0 + r) % group != 0;
      uint64_t& row_bits = bits[r * kCutBlocks + b];
      row_bits = same_query ? bits[(r - 1) * kCutBlocks + b]
                            : visible_keys(task, keys, (row0 + r) / group);
      any[b] |= row_bits;
    }
  }
}

// Memory of one call.
struct FewScratch {
  float* q;        // [chunk, k_dim padded] by pack_queries
  uint64_t* bits;  // [chunk, kCutBlocks] keys that each row sees
  float* scores;   // [chunk, kScores]
  float* rows;     // [kStep, dims padded] of coded rows
#if KVC_SIMD_WHOLE
  char* q_whole;     // [chunk, packed_bytes(k_dim)]
  WholeRow* q_info;  // [chunk]
  float* lines;      // [chunk, line_floats(v_dim)]
#endif
};

// A chunk of rows at a cut.
struct FewRows {
  int row0, count;
  float* scores;
  uint64_t* bits;
  F32 top[kFewChunk];  // the largest scores, lane by lane
};

// A step of coded rows, decoded to floats [kStep, dim padded]; the lines of `ahead` are asked for
// row by row.
template <RowFormat::Kind kKind, Prefetch kAsk>
[[gnu::noinline]] void decode_step(const RowsView& view, const Step& here, const Step& ahead,
                                   int64_t dim, float* floats, Step* decoded) {
  const int64_t stride = pad(dim);
  const int64_t bytes = view.format.code_bytes(dim);
  for (int i = 0; i < here.count; ++i) {
    for (int64_t byte = 0; byte < bytes; byte += 64) ask<kAsk>(ahead.rows[i] + byte);
    decode_row<kKind>({here.rows[i], here.scales_of(i), here.zeros_of(i)}, view.scale_group_stride,
                      dim, floats + i * stride);
  }
  decoded->slots = here.slots;
  decoded->block = here.block;
  decoded->count = here.count;
  decoded->stretch = here.stretch;
  decoded->whole = here.whole;
  for (int i = 0; i < kStep; ++i) {
    decoded->rows[i] = reinterpret_cast<const char*>(floats + min_of(i, here.count - 1) * stride);
  }
}

// Scores of the cut, -inf for keys that a row does not see, and the largest of them.
// `score(here, ahead, scores)` fills in those of a step, in the slots of its block.
template <typename Score>
KVC_SIMD_FN void score_cut(const CutTask& task, FewRows* chunk, Steps* steps, Score score) {
  const QueryTile& tile = *task.tile;
  for (int r = 0; r < chunk->count; ++r) chunk->top[r] = set1(-__builtin_inff());
  for (; steps->here().stretch == Stretch::kKeys; steps->advance()) {
    const Step& here = steps->here();
    const int b = here.block;
    score(here, steps->ahead(), chunk->scores + b * kBlock);
    if (steps->block_goes_on()) continue;
    const BlockKeys keys = keys_of_parts(*task.rows, task.cut, b);
    for (int r = 0; r < chunk->count; ++r) {
      uint64_t& bits = chunk->bits[r * kCutBlocks + b];
      float* scores = chunk->scores + r * kScores + b * kBlock;
      if (bits == 0) continue;
      if (adjusts_scores(tile)) {
        const int row = chunk->row0 + r;
        bits = adjust_scores(task, keys, row / tile.group, row % tile.group, bits, scores);
      }
      chunk->top[r] = max_of_block(scores, bits, chunk->top[r]);
    }
  }
}

// The softmax of a chunk of rows over a cut whose scores are there: weights exp(score - max) block
// by block, and their sums. Partials get the maxima at once, the sums at the end.
class Softmax {
 public:
  Softmax(const FewRows& chunk, const PartialRows& partial) : chunk_(chunk), partial_(partial) {
    for (int r = 0; r < chunk.count; ++r) {
      // Where every score is -inf (or NaN), weights are 0 (or NaN) and there is no maximum.
      const float m = reduce_max(chunk.top[r]);
      const bool any = m > -__builtin_inff();
      partial.max[chunk.row0 + r] = any ? m : -__builtin_inff();
      origin_[r] = set1(any ? m : 0.0f);
      sums_[r] = zero();
    }
  }

  // Rows that see nothing of block `b` get no weights.
  [[gnu::always_inline]] void weigh(int b, BlockWeights* to) {
    for (int r = 0; r < chunk_.count; ++r) {
      to->seen[r] = chunk_.bits[r * kCutBlocks + b];
      if (to->seen[r] == 0) continue;
      const float* scores = chunk_.scores + r * kScores + b * kBlock;
#pragma GCC unroll 4
      for (int v = 0; v < kBlockVecs; ++v) {
        const F32 weight = exp(load(scores + v * kLanes) - origin_[r]);
        store(to->weights + r * kBlock + v * kLanes, weight);
        sums_[r] = sums_[r] + weight;
      }
    }
  }

  void finish() const {
    for (int r = 0; r < chunk_.count; ++r) {
      partial_.sum[chunk_.row0 + r] = reduce_add(sums_[r]);
    }
  }

 private:
  const FewRows& chunk_;
  const PartialRows& partial_;
  F32 origin_[kFewChunk];
  F32 sums_[kFewChunk];
};

// What the weights of a cut weigh: `add(here, ahead, weights, acc)` adds the values of a step.
template <typename Add>
KVC_SIMD_FN void add_cut(const CutTask& task, const FewRows& chunk, Steps* steps, Add add) {
  const PartialRows& partial = task.partial;
  Softmax softmax(chunk, partial);
  float* acc = partial.acc + chunk.row0 * pad(task.tile->v_dim);
  BlockWeights block;
  for (bool weighed = false; steps->here().stretch == Stretch::kValues; steps->advance()) {
    const Step& here = steps->here();
    if (!weighed) softmax.weigh(here.block, &block);
    add(here, steps->ahead(), block, acc);
    weighed = steps->block_goes_on();
  }
  softmax.finish();
}

#if KVC_SIMD_WHOLE
// The same over coded values in whole numbers, block by block.
template <RowFormat::Kind kKind, Prefetch kAsk>
void add_cut_whole(const CutTask& task, const FewRows& chunk, Steps* steps, float* lines) {
  const int64_t dim = task.tile->v_dim;
  const int64_t stride = line_floats(dim);
  for (int64_t i = 0; i < chunk.count * stride; i += kLanes) store(lines + i, zero());
  Softmax softmax(chunk, task.partial);
  BlockWeights weights;
  while (steps->here().stretch == Stretch::kValues) {
    softmax.weigh(steps->here().block, &weights);
    WholeBlock<kKind> block;
    BlockOrder order;
    for (bool more = true; more;) {
      more = steps->block_goes_on();
      order.add(steps->here(), steps->ahead(), &block);
      block.template add_scales<kKind>(task.rows->v, dim, steps->here());
      steps->advance();
    }
    for_fours(
        chunk.count, [&]<int kRows>(int r) __attribute__((always_inline)) {
          float close[kRows][kBlock];
          const float* row_weights[kRows];
          for (int i = 0; i < kRows; ++i) {
            row_weights[i] = order.weights_of(weights, r + i, close[i]);
          }
          // The lines ahead are asked for once.
          if (r == 0) {
            add_block_whole<kKind, kRows, kAsk>(&block, row_weights, dim, lines, stride);
          } else {
            add_block_whole<kKind, kRows, Prefetch::kNone>(&block, row_weights, dim,
                                                           lines + r * stride, stride);
          }
        });
  }
  softmax.finish();
  from_lines<kKind>(lines, chunk.count, stride, dim, task.partial.acc + chunk.row0 * pad(dim));
}
#endif

bool is_bf16(const RowFormat& format) { return !format.is_coded() && format.dtype == DType::kBF16; }

// Queries of a chunk in the order in which scores of such keys take them.
void pack(const float* q, int rows, int64_t dim, const RowFormat& keys, const FewScratch& scratch) {
#if KVC_SIMD_WHOLE
  if (in_whole_numbers(keys, dim)) {
    return pack_whole(keys, q, rows, dim, scratch.q_whole, scratch.q_info);
  }
#endif
  pack_queries(q, rows, dim, is_bf16(keys), scratch.q);
}

// The keys of a cut, however they are stored.
template <Prefetch kAsk>
void score_rows(const CutTask& task, const FewScratch& scratch, FewRows* chunk, Steps* steps) {
  const RowsView& view = task.rows->k;
  const int64_t dim = task.tile->k_dim;
  const float* q = scratch.q;
  if (!view.format.is_coded()) {
    return for_dtype(view.format.dtype, [&]<DType kType>() {
      score_cut(
          task, chunk, steps,
          [&](const Step& here, const Step& ahead, float* scores) __attribute__((always_inline)) {
            score_few<kType, kAsk>(q, chunk->count, dim, here, ahead, scores);
          });
    });
  }
#if KVC_SIMD_WHOLE
  if (in_whole_numbers(view.format, dim)) {
    return for_whole_codes(view.format.kind, [&]<RowFormat::Kind kKind>() {
      score_cut(
          task, chunk, steps,
          [&](const Step& here, const Step& ahead, float* scores) __attribute__((always_inline)) {
            score_few_whole<kKind, kAsk>(scratch.q_whole, scratch.q_info, chunk->count, view, dim,
                                         here, ahead, scores);
          });
    });
  }
#endif
  score_cut(task, chunk, steps, [&](const Step& here, const Step& ahead, float* scores) {
    Step decoded;
    for_codes(view.format.kind, [&]<RowFormat::Kind kKind>() {
      decode_step<kKind, kAsk>(view, here, ahead, dim, scratch.rows, &decoded);
    });
    score_few<DType::kF32, Prefetch::kNone>(q, chunk->count, dim, decoded, decoded, scores);
  });
}

// The values of a cut, likewise.
template <Prefetch kAsk>
void add_rows(const CutTask& task, const FewScratch& scratch, const FewRows& chunk, Steps* steps) {
  const RowsView& view = task.rows->v;
  const int64_t dim = task.tile->v_dim;
  if (!view.format.is_coded()) {
    return for_dtype(view.format.dtype, [&]<DType kType>() {
      add_cut(
          task, chunk, steps,
          [&](const Step& here, const Step& ahead, const BlockWeights& block, float* acc)
              __attribute__((always_inline)) {
                value_few<kType, kAsk>(chunk.count, dim, here, ahead, block, acc);
              });
    });
  }
#if KVC_SIMD_WHOLE
  if (in_whole_numbers(view.format, dim)) {
    return for_whole_codes(view.format.kind, [&]<RowFormat::Kind kKind>() {
      add_cut_whole<kKind, kAsk>(task, chunk, steps, scratch.lines);
    });
  }
#endif
  add_cut(task, chunk, steps,
          [&](const Step& here, const Step& ahead, const BlockWeights& block, float* acc) {
            Step decoded;
            for_codes(view.format.kind, [&]<RowFormat::Kind kKind>() {
              decode_step<kKind, kAsk>(view, here, ahead, dim, scratch.rows, &decoded);
            });
            value_few<DType::kF32, Prefetch::kNone>(chunk.count, dim, decoded, decoded, block, acc);
          });
}

void attend_few(const CutTask& task, const FewScratch& scratch) {
  const QueryTile& tile = *task.tile;
  const KvRows& kv = *task.rows;
  const int rows = tile.num_queries * tile.group;
  const int64_t k_bytes = kv.k.format.code_bytes(tile.k_dim);
  const int64_t v_bytes = kv.v.format.code_bytes(tile.v_dim);
  const int ahead = steps_ahead(tile.prefetch, max_of(k_bytes, v_bytes));
  for (int row0 = 0; row0 < rows; row0 += kFewChunk) {
    FewRows chunk;
    chunk.row0 = row0;
    chunk.count = static_cast<int>(min_of(rows - row0, kFewChunk));
    chunk.scores = scratch.scores;
    chunk.bits = scratch.bits;
    uint64_t any[kCutBlocks];
    pack(tile.q + row0 * pad(tile.k_dim), chunk.count, tile.k_dim, kv.k.format, scratch);
    find_keys(task, row0, chunk.count, scratch.bits, any);
    Steps steps(task, any, ahead);
    for_prefetch(tile.prefetch, [&]<Prefetch kAsk>() {
      score_rows<kAsk>(task, scratch, &chunk, &steps);
      add_rows<kAsk>(task, scratch, chunk, &steps);
    });
  }
  if (is_bf16(kv.v.format)) {
    from_pairs(task.partial.acc, rows, tile.v_dim, pad(tile.v_dim));
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
