// Attention of a tile of query rows over one cut of keys: the algorithm, once. A short file per
// instruction set includes it after its simd header; everything has internal linkage.
//
//   S = Q K^T      [rows, keys]
//   softmax        weights exp(s - m), their sum l
//   acc += P V     [rows, v_dim]
//
// It has two forms, chosen by the path of the sequence (QueryTile::path). Few rows
// (attention_few.inl) are bound by memory: each step is done for the whole cut before the next.
// Many rows (attention_many.inl) are bound by arithmetic: blocks of 64 keys go through all steps in
// turn, with the running m and l of Milakov and Gimelshein (2018); what is accumulated is rescaled
// only when m moves. Many bf16 rows take the dot product of pairs where there is one, four blocks
// to a step (attention_dot.inl), unless the tile is exact. All query rows of a KV head share the
// pass.
//
// Determinism: within a path a score and an output element are sums in an order that depends on
// nothing but the row's own keys, whatever the shape of the register tile that computes it. So a
// row's bits do not depend on the rows beside it. Hidden keys are left out of both, not multiplied
// by zero: what they hold, a NaN even, reaches nobody.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/cut.h"

#include "kernels/cpu/codes.inl"

#include "kernels/cpu/attention_keys.inl"

#include "kernels/cpu/attention_softmax.inl"

#include "kernels/cpu/attention_few.inl"

#include "kernels/cpu/attention_many.inl"

#if KVC_SIMD_DOT
#include "kernels/cpu/attention_dot.inl"
#endif

namespace kvcache::internal::KVC_SIMD {
namespace {

// Blocks that the softmax of many rows takes together, at most.
#if KVC_SIMD_DOT
constexpr int kMostStep = kStepBlocks;
#else
constexpr int kMostStep = 1;
#endif

// Memory of one call, carved from the caller's.
struct Scratch {
  float* zeros;  // [dims padded] stands for rows that are not there
  FewScratch few;

  // Many rows.
  BlockRows* blocks;     // [stretch] before they are packed
  BlockRows* decoded;    // one of them, of coded rows
  uint64_t* query_bits;  // [stretch, rows] keys of a block that each query sees by the rules
  uint64_t* row_bits;    // [step, kBandRows] the same for each row, the mask's -inf left out
  float* scores;         // [rows of a band, step * 64]; then the weights
  float* rows;           // [64, dims padded] of a block, decoded
  float* key_scales;     // [stretch, 64]
  float* value_scales;   // [stretch, 64]
  float* keys;           // packed, [stretch, k_dim padded * 64]
  float* values;         // packed, [stretch, v_dim padded * 64]
  uint32_t* q_pairs;     // by pairs: [rows, pairs of k_dim padded]
  uint32_t* weights;     // by pairs: [rows of a band, step * 32]
};

// Bytes taken of `memory`, which is null when only they are asked for.
int64_t carve(void* memory, int64_t rows, int64_t k_dim, int64_t v_dim, Scratch* scratch) {
  char* base = static_cast<char*>(memory);
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    char* at = base == nullptr ? nullptr : base + used;
    used += (bytes + 63) / 64 * 64;
    return static_cast<void*>(at);
  };
  scratch->zeros = static_cast<float*>(take(pad(max_of(k_dim, v_dim)) * 4));
  // A tile takes one of the paths.
  const int64_t before = used;
  const int64_t chunk = min_of(rows, kFewChunk);
  scratch->few.q = static_cast<float*>(take(chunk * pad(k_dim) * 4));
  scratch->few.bits = static_cast<uint64_t*>(take(chunk * kCutBlocks * 8));
  scratch->few.scores = static_cast<float*>(take(chunk * kScores * 4));
  scratch->few.rows = static_cast<float*>(take(kStep * pad(max_of(k_dim, v_dim)) * 4));
#if KVC_SIMD_WHOLE
  scratch->few.q_whole = static_cast<char*>(take(chunk * packed_bytes(k_dim)));
  scratch->few.q_info = static_cast<WholeRow*>(take(chunk * int64_t{sizeof(WholeRow)}));
  scratch->few.lines = static_cast<float*>(take(chunk * line_floats(v_dim) * 4));
#endif
  const int64_t few = used;
  used = before;
  const int64_t band = min_of(rows, kBandRows);
  const int64_t stretch = max_of(stretch_of(rows), kMostStep);
  scratch->blocks = static_cast<BlockRows*>(take(stretch * int64_t{sizeof(BlockRows)}));
  scratch->decoded = static_cast<BlockRows*>(take(int64_t{sizeof(BlockRows)}));
  scratch->query_bits = static_cast<uint64_t*>(take(stretch * rows * 8));
  scratch->row_bits = static_cast<uint64_t*>(take(kMostStep * kBandRows * 8));
  scratch->scores = static_cast<float*>(take(band * kMostStep * kBlock * 4));
  scratch->rows = static_cast<float*>(take(pad(max_of(k_dim, v_dim)) * kBlock * 4));
  scratch->key_scales = static_cast<float*>(take(stretch * kBlock * 4));
  scratch->value_scales = static_cast<float*>(take(stretch * kBlock * 4));
  scratch->keys = static_cast<float*>(take(stretch * pad(k_dim) * kBlock * 4));
  scratch->values = static_cast<float*>(take(stretch * pad(v_dim) * kBlock * 4));
#if KVC_SIMD_DOT
  scratch->q_pairs = static_cast<uint32_t*>(take(rows * whole_pairs(k_dim) * 4));
  scratch->weights = static_cast<uint32_t*>(take(band * kStepPairs * 4));
#endif
  used = max_of(used, few);
  return used;
}

// Keys or values of a cut as they are packed.
struct Packing {
  RowFormat format;
  DType dtype;  // coded rows are decoded first, to bf16 where they are taken by pairs
  int64_t dim;
  bool pairs;
  bool apart;  // the scale of a row is taken into scores, or weights

  Packing(const RowsView& rows, int64_t elements, bool exact)
      : format(rows.format),
        dtype(format.is_coded() ? DType::kF32 : format.dtype),
        dim(elements),
        pairs(KVC_SIMD_DOT && !exact && (format.is_coded() || dtype == DType::kBF16)),
        apart(pairs && format.num_scales(elements) == 1) {}

  int64_t stride() const { return pad(dim); }  // of queries, of results
  int64_t block_floats() const { return pad(dim) * kBlock; }
  int64_t row_bytes() const { return format.code_bytes(dim); }
};

// Many rows: the stretches of a cut in turn.
class ManyRows {
 public:
  ManyRows(const CutTask& task, const Scratch& scratch)
      : task_(task),
        tile_(*task.tile),
        kv_(*task.rows),
        scratch_(scratch),
        rows_(tile_.num_queries * tile_.group),
        keys_(kv_.k, tile_.k_dim, tile_.exact),
        values_(kv_.v, tile_.v_dim, tile_.exact) {
#if KVC_SIMD_DOT
    if (values_.pairs) step_ = kStepBlocks;
    if (keys_.pairs) round_rows(tile_.q, rows_, keys_.dim, keys_.stride(), scratch.q_pairs);
#endif
  }

  void run() {
    const int64_t stretch = max_of(stretch_of(rows_), step_);
    const int64_t end = (kv_.first_index + task_.end - 1) / kBlock + 1;
    for (int b = 0; b < stretch; ++b) scratch_.blocks[b].bits = 0;
    const int64_t first = (kv_.first_index + task_.begin) / kBlock;
    for (int64_t at = first / step_ * step_; at < end; at += stretch) {
      const int blocks = static_cast<int>(min_of(stretch, (end - at + step_ - 1) / step_ * step_));
      for (int b = 0; b < blocks; ++b) prepare(at + b, b, at + b + stretch);
      NextRows next = rows_to_ask(blocks);
      for (int row = 0; row < rows_; row += kBandRows) {
        const int rows = static_cast<int>(min_of(kBandRows, rows_ - row));
        for (int b = 0; b < blocks; b += step_) attend_band(at + b, b, row, rows, &next);
      }
    }
  }

 private:
  // Packs a block as number `b` of the stretch, and finds the rows of block `after`.
  void prepare(int64_t block, int b, int64_t after) {
    const BlockKeys keys = keys_in_order(kv_, block);
    uint64_t* query_bits = scratch_.query_bits + int64_t{b} * rows_;
    uint64_t any = 0;
    for (int32_t query = 0; query < tile_.num_queries; ++query) {
      query_bits[query] = visible_keys(task_, keys, query);
      any |= query_bits[query];
    }
    BlockRows& rows = scratch_.blocks[b];
    if (any != 0) {
      if (any != rows.bits) find_rows(kv_, keys, any, scratch_.zeros, &rows);
      pack(rows, b);
    }
    const BlockKeys next = keys_in_order(kv_, after);
    find_rows(kv_, next, slots_of(next, kv_.first_row, kv_.num_rows), scratch_.zeros, &rows);
  }

  // As number `b` of the stretch.
  void pack(const BlockRows& block, int b) const {
    float* keys = scratch_.keys + b * keys_.block_floats();
    float* values = scratch_.values + b * values_.block_floats();
    if (keys_.format.is_coded()) {
      pack_keys_of(decoded(block, kv_.k, keys_, block.k, block.k_scales, block.k_zeros,
                           scratch_.key_scales + b * kBlock),
                   keys);
    } else {
      pack_keys_of(block, keys);
    }
    if (values_.format.is_coded()) {
      pack_values_of(decoded(block, kv_.v, values_, block.v, block.v_scales, block.v_zeros,
                             scratch_.value_scales + b * kBlock),
                     values);
    } else {
      pack_values_of(block, values);
    }
  }

  void pack_keys_of(const BlockRows& block, float* keys) const {
#if KVC_SIMD_DOT
    if (keys_.pairs) {
      return pack_key_pairs(block, keys_.dim, reinterpret_cast<uint32_t*>(keys));
    }
#endif
    for_dtype(keys_.dtype, [&]<DType kType>() { pack_keys<kType>(block, keys_.dim, keys); });
  }

  void pack_values_of(const BlockRows& block, float* values) const {
#if KVC_SIMD_DOT
    if (values_.pairs) {
      return pack_value_pairs(block, values_.dim, reinterpret_cast<uint32_t*>(values));
    }
#endif
    for_dtype(values_.dtype,
              [&]<DType kType>() { pack_values<kType>(block, values_.dim, values); });
  }

  // The block with its coded rows decoded, which are both its keys and its values then. Their
  // scales go to `apart` [kBlock] where they stay outside of the products.
  const BlockRows& decoded(const BlockRows& block, const RowsView& view, const Packing& packing,
                           const char* const* codes, const char* const* scales,
                           const char* const* zeros, float* apart) const {
    const int64_t stride = packing.stride();
    BlockRows& result = *scratch_.decoded;
    result.bits = block.bits;
    for (int key = 0; key < kBlock; ++key) {
      result.k[key] = result.v[key] = reinterpret_cast<const char*>(scratch_.zeros);
      if (packing.apart) apart[key] = 0;
    }
    for_codes(packing.format.kind, [&]<RowFormat::Kind kKind>() {
      for (uint64_t bits = block.bits; bits != 0; bits &= bits - 1) {
        const int key = __builtin_ctzll(bits);
        float* to = scratch_.rows + key * stride;
        const CodedAt row = {codes[key], scales[key], zeros[key]};
        const int64_t group_stride = view.scale_group_stride;
        result.k[key] = result.v[key] = reinterpret_cast<const char*>(to);
        if (!packing.pairs) {
          decode_row<kKind>(row, group_stride, packing.dim, to);
          continue;
        }
#if KVC_SIMD_DOT
        auto* const halves = reinterpret_cast<uint16_t*>(to);
        if (packing.apart) {
          apart[key] = f16_at(scales[key]) * GroupForm<kKind>::kUnit;
          decode_row_bf16<kKind, false>(row, group_stride, packing.dim, halves);
        } else {
          decode_row_bf16<kKind, true>(row, group_stride, packing.dim, halves);
        }
#endif
      }
    });
    return result;
  }

  // For the rows found last, as many blocks as are worked on now.
  NextRows rows_to_ask(int blocks) const {
    int slots = 0;
    while (slots < blocks * kBlock && scratch_.blocks[slots / kBlock].bits != 0) slots += kBlock;
    const int64_t tiles = (rows_ + kTileRows - 1) / kTileRows * int64_t{blocks} * (kBlock / kPanel);
    return {scratch_.blocks, slots, static_cast<int>((slots + tiles - 1) / tiles),
            keys_.row_bytes(), values_.row_bytes()};
  }

  // Rows `row` .. row + rows of the tile and the step that begins with block `b` of the stretch.
  void attend_band(int64_t block, int b, int row, int rows, NextRows* next) const {
    uint64_t seen = 0;
    for (int i = 0; i < step_; ++i) {
      const uint64_t* query_bits = scratch_.query_bits + int64_t{b + i} * rows_;
      uint64_t* row_bits = scratch_.row_bits + i * kBandRows;
      uint64_t any = 0;
      for (int r = 0; r < rows; ++r) {
        row_bits[r] = query_bits[(row + r) / tile_.group];
        any |= row_bits[r];
      }
      if (any == 0) continue;
      seen |= any;
      score(row, rows, any, b + i, i, next);
      if (adjusts_scores(tile_)) adjust(block + i, i, row, rows);
    }
    if (seen == 0) return;
    const int64_t stride = values_.stride();
    for (int r = 0; r < rows; r += kLanes) {
      const PartialRows partial = {task_.partial.max + row + r, task_.partial.sum + row + r,
                                   task_.partial.acc + (row + r) * stride};
      soften(r, static_cast<int>(min_of(kLanes, rows - r)), b, partial);
    }
    add_weighted(rows, scratch_.values + b * values_.block_floats(),
                 task_.partial.acc + row * stride);
  }

  // Scores of block `i` of the step, number `b` of the stretch.
  void score(int row, int rows, uint64_t any, int b, int i, NextRows* next) const {
    const float* keys = scratch_.keys + b * keys_.block_floats();
    float* scores = scratch_.scores + i * kBlock;
    const int64_t score_stride = int64_t{step_} * kBlock;
#if KVC_SIMD_DOT
    if (keys_.pairs) {
      const uint32_t* q = scratch_.q_pairs + row * whole_pairs(keys_.dim);
      score_block_pairs(q, keys_.dim, rows, any, reinterpret_cast<const uint32_t*>(keys), scores,
                        score_stride, next);
      if (keys_.apart) scale_scores(rows, scratch_.key_scales + b * kBlock, scores, score_stride);
      return;
    }
#endif
    const int64_t stride = keys_.stride();
    score_block(tile_.q + row * stride, stride, keys_.dim, rows, any, keys, scores, score_stride,
                next);
  }

  void adjust(int64_t block, int i, int row, int rows) const {
    const BlockKeys keys = keys_in_order(kv_, block);
    for (int r = 0; r < rows; ++r) {
      uint64_t& bits = scratch_.row_bits[i * kBandRows + r];
      if (bits == 0) continue;
      bits = adjust_scores(task_, keys, (row + r) / tile_.group, (row + r) % tile_.group, bits,
                           scratch_.scores + (int64_t{r} * step_ + i) * kBlock);
    }
  }

  static void scale_scores(int rows, const float* scales, float* scores, int64_t score_stride) {
    for (int r = 0; r < rows; ++r, scores += score_stride) {
      for (int v = 0; v < kBlock; v += kLanes)
        store(scores + v, load(scores + v) * load(scales + v));
    }
  }

  // The rows of a band from `r` on, over the step that begins with block `b` of the stretch.
  void soften(int r, int rows, [[maybe_unused]] int b, const PartialRows& partial) const {
    float* scores = scratch_.scores + int64_t{r} * step_ * kBlock;
    const uint64_t* bits = scratch_.row_bits + r;
    const int64_t stride = values_.stride();
#if KVC_SIMD_DOT
    if (values_.pairs) {
      uint32_t* weights = scratch_.weights + r * kStepPairs;
      const float* scales = values_.apart ? scratch_.value_scales + b * kBlock : nullptr;
      return soften_rows<kStepBlocks>(rows, bits, kBandRows, scores, partial, stride,
                                      [&](int i, float m) {
                                        return weigh_row_pairs(scores + i * kStepBlocks * kBlock, m,
                                                               scales, weights + i * kStepPairs);
                                      });
    }
#endif
    soften_rows<1>(rows, bits, kBandRows, scores, partial, stride,
                   [&](int i, float m) { return weigh_row(scores + i * kBlock, m); });
  }

  void add_weighted(int rows, const float* values, float* acc) const {
#if KVC_SIMD_DOT
    if (values_.pairs) {
      return add_step_pairs(rows, values_.dim, scratch_.row_bits, kBandRows, scratch_.weights,
                            reinterpret_cast<const uint32_t*>(values), values_.block_floats(), acc);
    }
#endif
    add_block(rows, values_.dim, scratch_.row_bits, scratch_.scores, values, acc);
  }

  const CutTask& task_;
  const QueryTile& tile_;
  const KvRows& kv_;
  const Scratch& scratch_;
  const int rows_;
  const Packing keys_, values_;
  int step_ = 1;  // blocks that the softmax takes together
};

// --- The functions of the table. ---

void attend_cut(const CutTask& task) {
  const QueryTile& tile = *task.tile;
  const int rows = tile.num_queries * tile.group;
  const PartialRows& partial = task.partial;
  Scratch scratch;
  carve(task.scratch, rows, tile.k_dim, tile.v_dim, &scratch);
  for (int64_t i = 0; i < pad(max_of(tile.k_dim, tile.v_dim)); ++i) scratch.zeros[i] = 0;
  for (int r = 0; r < rows; ++r) {
    partial.max[r] = -__builtin_inff();
    partial.sum[r] = 0;
  }
  for (int64_t i = 0; i < rows * pad(tile.v_dim); ++i) partial.acc[i] = 0;
  if (tile.path == Path::kDecode) {
    attend_few(task, scratch.few);
  } else {
    ManyRows(task, scratch).run();
  }
}

void merge(const PartialRows& into, const PartialRows& next, int64_t rows, int64_t v_dim) {
  const int64_t stride = pad(v_dim);
  const float nothing = -__builtin_inff();
  for (int64_t r = 0; r < rows; ++r) {
    if (next.max[r] == nothing && next.sum[r] == 0) continue;
    float* to = into.acc + r * stride;
    const float* from = next.acc + r * stride;
    if (into.max[r] == nothing && into.sum[r] == 0) {
      into.max[r] = next.max[r];
      into.sum[r] = next.sum[r];
      for (int64_t d = 0; d < stride; d += kLanes) store(to + d, load(from + d));
      continue;
    }
    const float m = into.max[r] > next.max[r] ? into.max[r] : next.max[r];
    const F32 a = exp(set1(into.max[r] - m));
    const F32 b = exp(set1(next.max[r] - m));
    into.max[r] = m;
    into.sum[r] = into.sum[r] * a[0] + next.sum[r] * b[0];
    for (int64_t d = 0; d < stride; d += kLanes) {
      store(to + d, fma(load(from + d), b, load(to + d) * a));
    }
  }
}

int64_t scratch_bytes(int64_t rows, int64_t k_dim, int64_t v_dim) {
  Scratch scratch;
  return carve(nullptr, rows, k_dim, v_dim, &scratch);
}

}  // namespace

const AttentionKernels& attention_kernels() {
  static constexpr AttentionKernels kernels = {attend_cut, merge, scratch_bytes};
  return kernels;
}

}  // namespace kvcache::internal::KVC_SIMD
