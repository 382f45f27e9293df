// The cache as a value: update() gives a new state, and the old one stays readable as it was.
#ifndef KVCACHE_FUNCTIONAL_H_
#define KVCACHE_FUNCTIONAL_H_

#include <cstdint>
#include <memory>

#include "kvcache/executor.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v0 {
namespace functional {

// A state of a history. States of one history share storage: going forward from the newest copies
// nothing; a second update from the same state (a branch) copies that layer's rows first.
// Copying a state copies a reference.
// Thread safety: states are immutable; updates of one history are serialised by the caller.
class KVC_API CacheState {
 public:
  std::int64_t position() const noexcept;  // length of the longest layer
  std::int64_t max_seq_len() const noexcept;
  std::int64_t num_layers() const noexcept;
  std::int64_t copied_bytes() const noexcept;  // by branches of this history

 private:
  friend struct StateAccess;
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

struct InitOptions {
  std::int64_t batch_size = 1;
  std::int64_t num_layers = 1;
  std::int64_t num_heads = 1;
  std::int64_t head_dim = 1;
  std::int64_t max_seq_len = 2048;  // tokens a layer can hold
  DType dtype = DType::kF32;
  MemoryResource* memory = nullptr;  // not owned; null: system_memory()
};

// K and V to date are [B, H, len, D] views, valid while any state of the history lives.
struct Updated {
  CacheState state;
  KeyValueView rows;
};

// An empty state. Errors: kInvalidArgument for a size < 1.
KVC_API Result<CacheState> init(const InitOptions& options);

// Appends k, v [B, H, T, D] to a layer. Errors: kOutOfRange past the layer's capacity.
KVC_API Result<Updated> update(const CacheState& state, std::int64_t layer, const TensorView& k,
                               const TensorView& v, const ExecContext& context = {});

// The valid rows of a layer, [B, H, len, D].
KVC_API Result<KeyValueView> get(const CacheState& state, std::int64_t layer);

KVC_API Result<std::int64_t> seq_length(const CacheState& state, std::int64_t layer = 0);

// An empty state that keeps a hold on the allocation: its first update reuses it when no other
// state of that history is alive by then, and takes new memory otherwise.
KVC_API Result<CacheState> reset(const CacheState& state);

// Attention of one layer over the state: appends k and v, attends with scale 1 / sqrt(head_dim)
// and float32 softmax. Built by build_cached_attention; the field's name for it is
// cached_attention.
class KVC_API CachedAttention {
 public:
  // q [B, num_heads, L, D], k and v [B, num_kv_heads, L, D]; `out` [B, L, num_heads * head_dim],
  // heads merged head-major, belongs to the caller. Returns the new state.
  Result<CacheState> operator()(const TensorView& q, const TensorView& k, const TensorView& v,
                                const CacheState& state, const MutableTensorView& out,
                                const ExecContext& context = {}) const;

 private:
  friend struct StateAccess;
  std::int64_t num_heads_ = 0;
  std::int64_t head_dim_ = 0;
  std::int64_t layer_ = 0;
  bool causal_ = true;
};

// causal = false gives the bidirectional prefill. Errors: kInvalidArgument for a size < 1.
KVC_API Result<CachedAttention> build_cached_attention(std::int64_t num_heads,
                                                       std::int64_t head_dim,
                                                       std::int64_t layer_idx, bool causal = true);

}  // namespace functional
}  // namespace v0
}  // namespace kvcache

#endif  // KVCACHE_FUNCTIONAL_H_
