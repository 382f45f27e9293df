// BatchingCache: slots for independent requests of different lengths that decode together.
#ifndef KVCACHE_BATCHING_CACHE_H_
#define KVCACHE_BATCHING_CACHE_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "kvcache/attention.h"
#include "kvcache/cache.h"
#include "kvcache/executor.h"
#include "kvcache/mask.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

struct BatchingOptions {
  std::optional<std::int64_t> num_layers;   // default: those of the first request
  std::optional<std::int64_t> max_seq_len;  // bound on every request's total length

  // Of every request's rows, and of the tensors that go in and come out.
  Layout layout = Layout::kHND;
  std::optional<DType> dtype;  // default: that of the first rows, K and V each its own

  // Where the dense copies of update_and_fetch live (rows stay where their request put them).
  // Not owned; null: system_memory().
  MemoryResource* memory = nullptr;
};

// What update_and_fetch returns: dense copies, row b that of slot b, right-aligned with zeros
// before it. Valid until the next change of the batch; while `storage` is held they stay readable
// memory with unspecified contents.
struct BatchFetch {
  TensorView key;           // [slots, H, S_max, Dk]
  TensorView value;         // [slots, H, S_max, Dv]
  std::int64_t length = 0;  // S_max, the longest request; 0 when no slot is occupied
  TensorView mask;  // float32 [slots, 1, L, S_max]: 0 where query i of the slot's L new ones
                    // sees a key, -inf elsewhere (causality, the zeros before a row, idle
                    // slots), plus the mask given
  std::shared_ptr<const void> storage;
};

// Counted since construction. A row is the K and V of one token in one layer, all heads.
struct BatchingStats {
  std::int64_t rows_appended = 0;
  std::int64_t rows_read = 0;  // by attend(): 0 for idle slots
  std::int64_t copied_bytes =
      0;  // old rows: into dense copies, and by growth where pages cannot move
};

// Each slot holds the cache, all layers, of one request. The requests of a batch agree in layers,
// heads, head sizes and element types: those of the first one hold from then on.
//
// Every failing call leaves the batch as if it had not been made: an append reaches every occupied
// slot or none. Shapes below are head-first; with Layout::kNHD they are [slots, L, H, D].
//
// Thread safety: const calls may run together; changing calls are serialised by the caller.
class KVC_API BatchingCache final {
 public:
  // Errors: kInvalidArgument for max_active_requests outside 1 .. 65536, max_seq_len < 1,
  // num_layers outside 1 .. 65536, a dtype that is not floating.
  static Result<BatchingCache> create(std::int64_t max_active_requests,
                                      const BatchingOptions& options = {});

  BatchingCache(BatchingCache&&) noexcept;
  BatchingCache& operator=(BatchingCache&&) noexcept;
  ~BatchingCache();

  // Takes over the storage of a prefilled or empty cache of batch 1 into slot `id`, without
  // copying; `cache` is empty afterwards. Its bounds go with it: a static cache's capacity, the
  // memory resource.
  // Errors: kOutOfRange for an id outside the slots or a length beyond max_seq_len;
  // kInvalidArgument for an occupied slot, a batch other than 1, layers of unequal length, and
  // layers, heads, head sizes, types or a layout other than the batch's.
  Status add_request(Cache& cache, std::int64_t id);

  // Frees the slot and its memory. Errors: kNotFound for an empty slot, kOutOfRange.
  Status remove_request(std::int64_t id);

  // Appends row b of `key` [slots, H, L, Dk] and `value` [slots, H, L, Dv] to slot b, for every
  // occupied slot or for none (rows of idle slots are ignored), and returns dense copies of
  // everything so far. mask_length is L or none. An additive mask is float32, broadcast against
  // [slots, 1, L, S_max] in the same right-aligned frame, and added to the causal rule; none and
  // "causal" are that rule alone.
  // Errors: kInvalidArgument for shapes, types, mask_length and mask; kOutOfRange for a layer, and
  // past max_seq_len or a static request's capacity; kOutOfMemory.
  Result<BatchFetch> update_and_fetch(const TensorView& key, const TensorView& value,
                                      std::optional<std::int64_t> mask_length = {},
                                      const Mask& mask = {}, std::int64_t layer = 0,
                                      const ExecContext& context = {});

  // Appends likewise, then attends in place over the slots: no padding, no dense copy. q
  // [slots, num_heads, L, Dk], out [slots, num_heads, L, Dv]; rows of idle slots become 0.
  // A mask in `options` counts a slot's own rows from its first: see AttentionOptions. The bits of
  // a slot's rows are those of its request alone.
  // Errors: those of update_and_fetch and of AttentionPlan.
  Status attend(const TensorView& q, const TensorView& key, const TensorView& value,
                const MutableTensorView& out, std::int64_t layer = 0,
                const AttentionOptions& options = {}, const ExecContext& context = {});

  // Drops the newest n tokens of one request, in every layer. Errors: kNotFound for an empty slot,
  // kOutOfRange for the slot or if its shortest layer is shorter than n, kInvalidArgument for n <
  // 0.
  Status rewind(std::int64_t id, std::int64_t n);

  // Keeps the first n tokens of one request; layers that are shorter are left alone. Errors: those
  // of seq_length, kInvalidArgument for n < 0.
  Status truncate(std::int64_t id, std::int64_t n);

  // Tokens of a request; 0 in a layer it has not used. Errors: kNotFound for an empty slot,
  // kOutOfRange.
  Result<std::int64_t> seq_length(std::int64_t id, std::int64_t layer = 0) const;

  // The position that a request's next token is rotated with. Errors: those of seq_length.
  Result<std::int64_t> next_position(std::int64_t id, std::int64_t layer = 0) const;

  std::int64_t active() const noexcept;      // occupied slots
  std::int64_t max_active() const noexcept;  // slots
  bool occupied(std::int64_t id) const noexcept;

  // Bytes of the rows stored, and those held for them and for the dense copies.
  std::int64_t nbytes() const noexcept;
  std::int64_t reserved_bytes() const noexcept;

  BatchingStats stats() const noexcept;

 private:
  struct Impl;
  explicit BatchingCache(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_BATCHING_CACHE_H_
