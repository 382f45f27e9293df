// The cache as a value: update() gives a new state, and the old one stays readable as it was.
#ifndef KVCACHE_FUNCTIONAL_H_
#define KVCACHE_FUNCTIONAL_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "kvcache/executor.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {
namespace functional {

// A state of a history: all states that come from one init() by updates. They share storage.
// Going forward from the newest state of a layer copies nothing; a second update from the same
// state (a branch) copies that layer's rows first. Copying a CacheState copies a reference.
//
// Rows below a state's length are never rewritten: tensors that update() and get() return are valid
// while the state lives that they are the rows of. Hold it to keep them. The memory of a layer goes
// with the last state that has rows there: a branch that is dropped costs nothing.
//
// Thread safety: a state never changes, and may be read, copied and destroyed on any thread, while
// others of its history are updated too. Updates of one history are serialised by the caller.
class KVC_API CacheState {
 public:
  // No state: lengths and counts are 0, every function refuses it.
  CacheState() noexcept = default;

  std::int64_t position() const noexcept;  // length of the longest layer
  std::int64_t max_seq_len() const noexcept;
  std::int64_t num_layers() const noexcept;

  // Bytes of this state's rows; bytes held for all states of its history; bytes that branches of
  // its history copied.
  std::int64_t nbytes() const noexcept;
  std::int64_t reserved_bytes() const noexcept;
  std::int64_t copied_bytes() const noexcept;

 private:
  friend struct StateAccess;
  struct Impl;
  explicit CacheState(std::shared_ptr<const Impl> impl) noexcept : impl_(std::move(impl)) {}

  std::shared_ptr<const Impl> impl_;
};

struct InitOptions {
  std::int64_t batch_size = 1;
  std::int64_t num_layers = 1;
  std::int64_t num_heads = 1;  // of K and V
  std::int64_t head_dim = 1;
  std::int64_t max_seq_len = 2048;   // tokens a layer can hold
  DType dtype = DType::kF32;         // of the stored rows
  Layout layout = Layout::kHND;      // of storage and of q, k, v and the rows that come out
  MemoryResource* memory = nullptr;  // not owned; null: system_memory()
};

struct Updated {
  CacheState state;
  KeyValueView rows;  // K and V to date, [B, H, len, D] views of the storage
};

// An empty state. A layer takes the memory of its whole capacity with its first update. Shapes
// below are head-first; with Layout::kNHD they are [B, T, H, D]. Errors: kInvalidArgument for a
// size < 1, num_layers beyond 65536, a dtype that is not floating, a layout that is neither, or a
// layer beyond 2^62 bytes.
KVC_API Result<CacheState> init(const InitOptions& options);

// Appends k, v [B, H, T, D] to a layer, converted to the state's dtype. T == 0 gives the same
// state. Errors: kInvalidArgument for shapes and types; kOutOfRange for the layer, and past its
// capacity; kOutOfMemory.
KVC_API Result<Updated> update(const CacheState& state, std::int64_t layer, const TensorView& k,
                               const TensorView& v, const ExecContext& context = {});

// The valid rows of a layer, [B, H, len, D]. Errors: kOutOfRange.
KVC_API Result<KeyValueView> get(const CacheState& state, std::int64_t layer);

// Tokens of a layer. Errors: kOutOfRange.
KVC_API Result<std::int64_t> seq_length(const CacheState& state, std::int64_t layer = 0);

// An empty state that keeps a hold on the allocation, but is no state of the history any more: its
// first update begins another, in the same memory when no state of the old history is alive by
// then, in new memory otherwise.
KVC_API Result<CacheState> reset(const CacheState& state);

// Attention of one layer over the state: appends k and v, attends with scale 1 / sqrt(head_dim)
// and float32 softmax.
class KVC_API CachedAttention {
 public:
  // q [B, num_heads, L, D], k and v [B, H, L, D] with num_heads a multiple of H; `out`
  // [B, L, num_heads * D], heads merged head-major, belongs to the caller. Returns the new state.
  // Errors: those of update; kInvalidArgument for q, out and the state's heads.
  Result<CacheState> operator()(const TensorView& q, const TensorView& k, const TensorView& v,
                                const CacheState& state, const MutableTensorView& out,
                                const ExecContext& context = {}) const;

 private:
  friend struct StateAccess;
  CachedAttention() noexcept = default;

  std::int64_t num_heads_ = 0;
  std::int64_t head_dim_ = 0;
  std::int64_t layer_ = 0;
  bool causal_ = true;
};

// Causal is bottom-right aligned; causal = false gives the bidirectional prefill.
// Errors: kInvalidArgument for num_heads outside 1 .. 2^20 or head_dim outside 1 .. 65536;
// kOutOfRange for a layer_idx that no state has.
KVC_API Result<CachedAttention> build_cached_attention(std::int64_t num_heads,
                                                       std::int64_t head_dim,
                                                       std::int64_t layer_idx, bool causal = true);

// build_cached_attention under its other name.
inline Result<CachedAttention> cached_attention(std::int64_t num_heads, std::int64_t head_dim,
                                                std::int64_t layer_idx, bool causal = true) {
  return build_cached_attention(num_heads, head_dim, layer_idx, causal);
}

}  // namespace functional
}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_FUNCTIONAL_H_
