// Attention of a tile of query rows over one cut of keys: the algorithm, once. A short file per
// instruction set includes it after its simd header; everything has internal linkage.
//
//   per block of 64 keys:  S = Q K^T      [rows, 64]
//                          softmax        the running max m and sum l of Milakov and Gimelshein
//                                         (2018); what is accumulated is rescaled only when m moves
//                          acc += P V     [rows, v_dim]
//
// The products have two forms, chosen by the path of the sequence (QueryTile::path): few rows
// (attention_few.inl) are bound by memory, many (attention_many.inl) by arithmetic; many bf16 rows
// take the dot product of pairs where there is one (attention_dot.inl), unless the tile is exact.
// All query rows of a KV head share the pass over a block.
//
// Determinism: within a path a score and an output element are sums in an order that depends on
// nothing but the row's own keys, whatever the shape of the register tile that computes it. So a
// row's bits do not depend on the rows beside it. Hidden keys are left out of both, not multiplied
// by zero: what they hold, a NaN even, reaches nobody.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/kernel_table.h"

#include "kernels/cpu/attention_keys.inl"

#include "kernels/cpu/attention_few.inl"

#include "kernels/cpu/attention_many.inl"

#if KVC_SIMD_DOT
#include "kernels/cpu/attention_dot.inl"
#endif

namespace kvcache::internal::KVC_SIMD {
namespace {

// Memory of one call, carved from the caller's.
struct Scratch {
  uint64_t* query_bits;  // [rows] keys of the block that each query sees by the rules
  uint64_t* row_bits;    // [rows] the same for each row, the mask's -inf left out
  float* scores;         // [rows, 64]; then the weights
  float* zeros;          // [dims padded] stands for rows that are not there
  float* q;              // few rows: [rows, k_dim padded] in the order of their products
  float* keys;           // many rows: a packed block
  float* values;         // many rows: a packed panel
  uint32_t* q_pairs;     // many rows by pairs: [rows, pairs of k_dim padded]
  uint32_t* weights;     // many rows by pairs: [rows, 32]
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
  scratch->query_bits = static_cast<uint64_t*>(take(rows * 8));
  scratch->row_bits = static_cast<uint64_t*>(take(rows * 8));
  scratch->scores = static_cast<float*>(take(rows * kBlock * 4));
  scratch->zeros = static_cast<float*>(take(pad(max_of(k_dim, v_dim)) * 4));
  // A tile takes one of the paths.
  const int64_t before = used;
  scratch->q = static_cast<float*>(take(rows * pad(k_dim) * 4));
  const int64_t few = used;
  used = before;
  scratch->keys = static_cast<float*>(take(pad(k_dim) * kBlock * 4));
  scratch->values = static_cast<float*>(take(kPanel * kBlock * 4));
#if KVC_SIMD_DOT
  scratch->q_pairs = static_cast<uint32_t*>(take(rows * whole_pairs(k_dim) * 4));
  scratch->weights = static_cast<uint32_t*>(take(rows * kBlockPairs * 4));
#endif
  used = max_of(used, few);
  return used;
}

// --- Softmax. ---

// What is added to, or taken from, the scores of a row beside softcap. Returns the keys it sees.
uint64_t adjust_scores(const CutTask& task, const BlockKeys& keys, int32_t query, int32_t head,
                       uint64_t bits, float* scores) {
  const QueryTile& tile = *task.tile;
  if (tile.softcap > 0) {
    const F32 cap = set1(tile.softcap);
    for (int v = 0; v < kBlockVecs; ++v) {
      store(scores + v * kLanes, cap * tanh(load(scores + v * kLanes) / cap));
    }
  }
  if (tile.alibi_slopes != nullptr) {
    const float slope = tile.alibi_slopes[head];
    for (uint64_t rest = bits; rest != 0; rest &= rest - 1) {
      const int key = __builtin_ctzll(rest);
      const int64_t distance = tile.position[query] - position_of(*task.rows, keys.row(key));
      scores[key] = scores[key] - slope * static_cast<float>(distance);
    }
  }
  if (tile.mask != nullptr) {
    const float* mask = tile.mask + head * tile.mask_head_stride + query * tile.mask_query_stride +
                        task.mask_key * tile.mask_key_stride;
    for (uint64_t rest = bits; rest != 0; rest &= rest - 1) {
      const int key = __builtin_ctzll(rest);
      const float bias = mask[keys.row(key) * tile.mask_key_stride];
      if (bias == -__builtin_inff()) bits &= ~(uint64_t{1} << key);
      scores[key] = scores[key] + bias;
    }
  }
  return bits;
}

// The bits of vector v of a block.
KVC_SIMD_FN uint32_t lanes_of(uint64_t bits, int v) {
  constexpr uint64_t kAll = kAllKeys >> (kBlock - kLanes);
  return static_cast<uint32_t>(bits >> (v * kLanes) & kAll);
}

// The scores of one row against the maximum so far: raised, and what is accumulated rescaled, if
// they hold a larger one. Hidden keys get -inf. REQUIRES: bits != 0.
KVC_SIMD_FN void raise_max(float* scores, uint64_t bits, float* max_inout, float* sum_inout,
                           float* acc, int64_t v_stride) {
  const F32 hidden = set1(-__builtin_inff());
  F32 top = hidden;
#pragma GCC unroll 16
  for (int v = 0; v < kBlockVecs; ++v) {
    F32 s = load(scores + v * kLanes);
    if (bits != kAllKeys) {
      if (lanes_of(bits, v) == 0) continue;
      s = choose(lanes_of(bits, v), s, hidden);
      store(scores + v * kLanes, s);
    }
    top = max(top, s);
  }
  const float block_max = reduce_max(top);
  const float m = *max_inout;
  if (!(block_max > m)) return;
  if (m != -__builtin_inff() || *sum_inout != 0) {
    const float factor = exp1(m - block_max);
    *sum_inout *= factor;
    const F32 scale = set1(factor);
    for (int64_t d = 0; d < v_stride; d += kLanes) store(acc + d, load(acc + d) * scale);
  }
  *max_inout = block_max;
}

// Scores of one row become weights exp(s - m), 0 for hidden keys; their sum is added to `sum`.
// Hidden are those of -inf, and vectors without a bit.
KVC_SIMD_FN void weigh(float* scores, uint64_t bits, float m, float* sum_inout) {
  // Every score so far is -inf: weights are 0.
  const F32 origin = set1(m == -__builtin_inff() ? 0.0f : m);
  F32 sum = zero();
#pragma GCC unroll 16
  for (int v = 0; v < kBlockVecs; ++v) {
    if (lanes_of(bits, v) == 0) {
      store(scores + v * kLanes, zero());
      continue;
    }
    const F32 weight = exp(load(scores + v * kLanes) - origin);
    store(scores + v * kLanes, weight);
    sum = sum + weight;
  }
  *sum_inout += reduce_add(sum);
}

// Calls f.template operator()<type>().
template <typename F>
KVC_SIMD_FN void for_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::kF16:
      return f.template operator()<DType::kF16>();
    case DType::kBF16:
      return f.template operator()<DType::kBF16>();
    default:
      return f.template operator()<DType::kF32>();
  }
}

// --- The functions of the table. ---

void attend_cut(const CutTask& task) {
  const QueryTile& tile = *task.tile;
  const KvRows& kv = *task.rows;
  const int rows = tile.num_queries * tile.group;
  const bool few = tile.path == Path::kDecode;
  const int64_t v_stride = pad(tile.v_dim);
  const PartialRows& partial = task.partial;
  Scratch scratch;
  carve(task.scratch, rows, tile.k_dim, tile.v_dim, &scratch);
  for (int64_t i = 0; i < pad(max_of(tile.k_dim, tile.v_dim)); ++i) scratch.zeros[i] = 0;
  for (int r = 0; r < rows; ++r) {
    partial.max[r] = -__builtin_inff();
    partial.sum[r] = 0;
  }
  for (int64_t i = 0; i < rows * v_stride; ++i) partial.acc[i] = 0;
  const float* q = tile.q;
  if (few && kv.k_dtype == DType::kBF16) {
    to_pairs(tile.q, rows, tile.k_dim, pad(tile.k_dim), scratch.q);
    q = scratch.q;
  }

#if KVC_SIMD_DOT
  const bool k_pairs = !few && !tile.exact && kv.k_dtype == DType::kBF16;
  const bool v_pairs = !few && !tile.exact && kv.v_dtype == DType::kBF16;
  if (k_pairs) round_rows(tile.q, rows, tile.k_dim, pad(tile.k_dim), scratch.q_pairs);
#endif

  const int64_t k_bytes = tile.k_dim * (kv.k_dtype == DType::kF32 ? 4 : 2);
  const int64_t v_bytes = tile.v_dim * (kv.v_dtype == DType::kF32 ? 4 : 2);
  const auto score = [&](const BlockRows& here, const BlockRows& next) {
#if KVC_SIMD_DOT
    if (k_pairs) {
      auto* keys = reinterpret_cast<uint32_t*>(scratch.keys);
      return score_dot(scratch.q_pairs, tile, rows, here, next, keys, scratch.scores);
    }
#endif
    for_dtype(kv.k_dtype, [&]<DType kType>() {
      if (few) {
        score_few<kType>(q, tile, rows, here, v_bytes, scratch.scores);
      } else {
        score_many<kType>(tile, rows, here, next, scratch.keys, scratch.scores);
      }
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
    for_dtype(kv.v_dtype, [&]<DType kType>() {
      if (few) {
        value_few<kType>(tile, rows, here, next, k_bytes, scratch.row_bits, scratch.scores,
                         partial.acc);
      } else {
        value_many<kType>(tile, rows, here, next, scratch.row_bits, scratch.scores, scratch.values,
                          partial.acc);
      }
    });
  };

  const bool adjusts = tile.softcap > 0 || tile.alibi_slopes != nullptr || tile.mask != nullptr;
  // Few rows read the blocks of the whole cut, which each take keys of all its parts.
  constexpr int64_t kBlocks = kCutKeys / kBlock;
  int64_t block = (kv.first_index + task.begin) / kBlock;
  int64_t last = (kv.first_index + task.end - 1) / kBlock;
  if (few) {
    block = block / kBlocks * kBlocks;
    last = block + kBlocks - 1;
  }
  const bool looks_ahead = !few || tile.prefetch != Prefetch::kNone;
  BlockRows blocks[2];
  blocks[0].bits = blocks[1].bits = 0;
  int at = 0;
  for (; block <= last; ++block) {
    const BlockKeys keys = block_keys(kv, few, block);
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
    next.bits = 0;
    if (looks_ahead) {
      const BlockKeys after = block_keys(kv, few, block + 1);
      find_rows(kv, after, slots_of(after, 0, kv.num_rows), scratch.zeros, &next);
    }

    score(here, next);

    for (int r = 0; r < rows; ++r) {
      const int32_t query = r / tile.group;
      uint64_t bits = scratch.query_bits[query];
      float* scores = scratch.scores + r * kBlock;
      if (adjusts && bits != 0) {
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
  if (few && kv.v_dtype == DType::kBF16) from_pairs(partial.acc, rows, tile.v_dim, v_stride);
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
