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
// only when m moves. Many bf16 rows take the dot product of pairs where there is one
// (attention_dot.inl), unless the tile is exact. All query rows of a KV head share the pass.
//
// Determinism: within a path a score and an output element are sums in an order that depends on
// nothing but the row's own keys, whatever the shape of the register tile that computes it. So a
// row's bits do not depend on the rows beside it. Hidden keys are left out of both, not multiplied
// by zero: what they hold, a NaN even, reaches nobody.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/kernel_table.h"

#include "kernels/cpu/attention_keys.inl"

#include "kernels/cpu/attention_softmax.inl"

#include "kernels/cpu/attention_few.inl"

#include "kernels/cpu/attention_many.inl"

#if KVC_SIMD_DOT
#include "kernels/cpu/attention_dot.inl"
#endif

namespace kvcache::internal::KVC_SIMD {
namespace {

// Memory of one call, carved from the caller's.
struct Scratch {
  float* zeros;  // [dims padded] stands for rows that are not there
  FewScratch few;

  // Many rows.
  uint64_t* query_bits;  // [rows] keys of the block that each query sees by the rules
  uint64_t* row_bits;    // [rows] the same for each row, the mask's -inf left out
  float* scores;         // [rows, 64]; then the weights
  float* keys;           // a packed block
  float* values;         // a packed panel
  uint32_t* q_pairs;     // by pairs: [rows, pairs of k_dim padded]
  uint32_t* weights;     // by pairs: [rows, 32]
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
  scratch->few.q = static_cast<float*>(take(rows * pad(k_dim) * 4));
  scratch->few.bits = static_cast<uint64_t*>(take(chunk * kCutBlocks * 8));
  scratch->few.scores = static_cast<float*>(take(chunk * kCutKeys * 4));
  const int64_t few = used;
  used = before;
  scratch->query_bits = static_cast<uint64_t*>(take(rows * 8));
  scratch->row_bits = static_cast<uint64_t*>(take(rows * 8));
  scratch->scores = static_cast<float*>(take(rows * kBlock * 4));
  scratch->keys = static_cast<float*>(take(pad(k_dim) * kBlock * 4));
  scratch->values = static_cast<float*>(take(kPanel * kBlock * 4));
#if KVC_SIMD_DOT
  scratch->q_pairs = static_cast<uint32_t*>(take(rows * whole_pairs(k_dim) * 4));
  scratch->weights = static_cast<uint32_t*>(take(rows * kBlockPairs * 4));
#endif
  used = max_of(used, few);
  return used;
}

// Many rows: a block after the other, the softmax as it goes.
void attend_many(const CutTask& task, const Scratch& scratch) {
  const QueryTile& tile = *task.tile;
  const KvRows& kv = *task.rows;
  const int rows = tile.num_queries * tile.group;
  const int64_t v_stride = pad(tile.v_dim);
  const PartialRows& partial = task.partial;
#if KVC_SIMD_DOT
  const bool k_pairs = !tile.exact && kv.k.format.dtype == DType::kBF16;
  const bool v_pairs = !tile.exact && kv.v.format.dtype == DType::kBF16;
  if (k_pairs) round_rows(tile.q, rows, tile.k_dim, pad(tile.k_dim), scratch.q_pairs);
#endif

  const auto score = [&](const BlockRows& here, const BlockRows& next) {
#if KVC_SIMD_DOT
    if (k_pairs) {
      auto* keys = reinterpret_cast<uint32_t*>(scratch.keys);
      return score_dot(scratch.q_pairs, tile, rows, here, next, keys, scratch.scores);
    }
#endif
    for_dtype(kv.k.format.dtype, [&]<DType kType>() {
      score_many<kType>(tile, rows, here, next, scratch.keys, scratch.scores);
    });
  };
  const auto add_weighted = [&](const BlockRows& here, const BlockRows& next) {
#if KVC_SIMD_DOT
    if (v_pairs) {
      auto* panel = reinterpret_cast<uint32_t*>(scratch.values);
      return value_dot(tile, rows, here, next, scratch.row_bits, scratch.scores, scratch.weights,
                       panel, partial.acc);
    }
#endif
    for_dtype(kv.v.format.dtype, [&]<DType kType>() {
      value_many<kType>(tile, rows, here, next, scratch.row_bits, scratch.scores, scratch.values,
                        partial.acc);
    });
  };

  const int64_t last = (kv.first_index + task.end - 1) / kBlock;
  BlockRows blocks[2];
  blocks[0].bits = blocks[1].bits = 0;
  int at = 0;
  for (int64_t block = (kv.first_index + task.begin) / kBlock; block <= last; ++block) {
    const BlockKeys keys = keys_in_order(kv, block);
    uint64_t any = 0;
    for (int32_t query = 0; query < tile.num_queries; ++query) {
      scratch.query_bits[query] = visible_keys(task, keys, query);
      any |= scratch.query_bits[query];
    }
    BlockRows& here = blocks[at];
    BlockRows& next = blocks[at ^ 1];
    at ^= 1;
    const uint64_t found = here.bits;  // by the block before this one
    if (any == 0) {
      next.bits = 0;
      continue;
    }
    if (any != found) find_rows(kv, keys, any, scratch.zeros, &here);
    const BlockKeys after = keys_in_order(kv, block + 1);
    find_rows(kv, after, slots_of(after, 0, kv.num_rows), scratch.zeros, &next);

    score(here, next);

    for (int r = 0; r < rows; ++r) {
      const int32_t query = r / tile.group;
      uint64_t bits = scratch.query_bits[query];
      float* scores = scratch.scores + r * kBlock;
      if (adjusts_scores(tile) && bits != 0) {
        bits = adjust_scores(task, keys, query, r % tile.group, bits, scores);
      }
      scratch.row_bits[r] = bits;
      if (bits == 0) continue;
      raise_max(scores, bits, partial.max + r, partial.sum + r, partial.acc + r * v_stride,
                v_stride);
    }
    // A loop of its own: the exponentials of all rows wait for nothing.
    for (int r = 0; r < rows; ++r) {
      if (scratch.row_bits[r] == 0) continue;
      weigh(scratch.scores + r * kBlock, scratch.row_bits[r], partial.max[r], partial.sum + r);
    }

    add_weighted(here, next);
  }
}

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
    attend_few(task, scratch.zeros, scratch.few);
  } else {
    attend_many(task, scratch);
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
