// Softmax of scores: of a block after the others (many rows), or of a whole cut (few). Part of
// attention.inl.
namespace kvcache::internal::KVC_SIMD {
namespace {

// Whether adjust_scores has something to do.
KVC_SIMD_FN bool adjusts_scores(const QueryTile& tile) {
  return tile.softcap > 0 || tile.alibi_slopes != nullptr || tile.mask != nullptr;
}

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

// Softmax of a row over a cut: scores[kCutKeys] become weights exp(s - m). Hidden are the keys
// without a bit; theirs stay undefined in vectors without any, and are 0 beside others.
void soften(float* scores, const uint64_t* bits, float* max_out, float* sum_out) {
  const F32 hidden = set1(-__builtin_inff());
  F32 top = hidden;
  for (int b = 0; b < kCutBlocks; ++b) {
    float* s = scores + b * kBlock;
    if (bits[b] == kAllKeys) {
#pragma GCC unroll 16
      for (int v = 0; v < kBlockVecs; ++v) top = max(top, load(s + v * kLanes));
      continue;
    }
    for (int v = 0; v < kBlockVecs; ++v) {
      if (lanes_of(bits[b], v) == 0) continue;
      const F32 x = choose(lanes_of(bits[b], v), load(s + v * kLanes), hidden);
      store(s + v * kLanes, x);
      top = max(top, x);
    }
  }
  // Where every score is -inf (or NaN), weights are 0 (or NaN) and there is no maximum.
  const float m = reduce_max(top);
  const bool any = m > -__builtin_inff();
  const F32 origin = set1(any ? m : 0.0f);
  F32 sum = zero();
  const auto weigh_vector = [&](float* at) __attribute__((always_inline)) {
    const F32 weight = exp(load(at) - origin);
    store(at, weight);
    sum = sum + weight;
  };
  for (int b = 0; b < kCutBlocks; ++b) {
    float* s = scores + b * kBlock;
    if (bits[b] == kAllKeys) {
#pragma GCC unroll 4
      for (int v = 0; v < kBlockVecs; ++v) weigh_vector(s + v * kLanes);
      continue;
    }
    for (int v = 0; v < kBlockVecs; ++v) {
      if (lanes_of(bits[b], v) != 0) weigh_vector(s + v * kLanes);
    }
  }
  *max_out = any ? m : -__builtin_inff();
  *sum_out = reduce_add(sum);
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
