// Softmax of scores: what is added to them, which keys are hidden, maxima and weights. Part of
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

// The largest scores of a row so far, lane by lane, with those of a block: scores[kBlock]. Hidden
// keys, those without a bit, get -inf.
KVC_SIMD_FN F32 max_of_block(float* scores, uint64_t bits, F32 top) {
#pragma GCC unroll 4
  for (int v = 0; v < kBlockVecs; ++v) {
    F32 x = load(scores + v * kLanes);
    if (bits != kAllKeys) {
      x = choose(lanes_of(bits, v), x, set1(-__builtin_inff()));
      store(scores + v * kLanes, x);
    }
    top = max(top, x);
  }
  return top;
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
