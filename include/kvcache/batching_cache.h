// BatchingCache: slots for independent requests of different lengths that decode together.
#ifndef KVCACHE_BATCHING_CACHE_H_
#define KVCACHE_BATCHING_CACHE_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "kvcache/attention.h"
#include "kvcache/cache.h"
#include "kvcache/executor.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v0 {

struct BatchingOptions {
  CacheOptions cache;
  std::optional<std::int64_t> num_layers;   // default: those of the first request
  std::optional<std::int64_t> max_seq_len;  // bound on every request's total length
};

// What update_and_fetch returns: row b belongs to slot b and is right-aligned, with zeros before
// it. Valid until the next change of the batch.
struct BatchFetch {
  TensorView key;           // [slots, H, S_max, Dk]
  TensorView value;         // [slots, H, S_max, Dv]
  std::int64_t length = 0;  // S_max; 0 when no slot is occupied
  TensorView mask;          // float32 [slots, 1, L, S_max]: 0 or -inf, bottom-right causal per row,
                            // plus the mask given; idle rows all -inf
};

// Each slot holds the cache, all layers, of one request. Idle slots cost no attention work.
// Thread safety: const calls may run together; changing calls are serialised by the caller.
class KVC_API BatchingCache final {
 public:
  // Errors: kInvalidArgument for max_active_requests < 1, max_seq_len < 1 or num_layers < 1.
  static Result<BatchingCache> create(std::int64_t max_active_requests,
                                      const BatchingOptions& options = {});

  BatchingCache(BatchingCache&&) noexcept;
  BatchingCache& operator=(BatchingCache&&) noexcept;
  ~BatchingCache();

  // Takes over a prefilled or empty cache of batch 1 into slot `id`; `cache` is empty afterwards.
  // Errors: kOutOfRange for the slot, kInvalidArgument for an occupied slot, a batch other than 1,
  // layers of unequal length or other heads.
  Status add_request(Cache& cache, std::int64_t id);

  // Frees the slot and its memory. Errors: kNotFound for an empty slot, kOutOfRange.
  Status remove_request(std::int64_t id);

  // Appends row b of key and value [slots, H, L, D] to slot b, for every occupied slot or for
  // none (rows of idle slots are ignored), and returns dense copies of everything so far.
  // mask_length is L or none; mask is undefined or additive float32, broadcast against
  // [slots, 1, L, S_max] in the right-aligned frame and added to the causal rule.
  Result<BatchFetch> update_and_fetch(const TensorView& key, const TensorView& value,
                                      std::optional<std::int64_t> mask_length = {},
                                      const TensorView& mask = {}, std::int64_t layer = 0,
                                      const ExecContext& context = {});

  // Appends, then attends in place over the slots: no padding, no dense copy. q and out
  // [slots, num_heads, L, D]; rows of idle slots become 0.
  Status attend(const TensorView& q, const TensorView& key, const TensorView& value,
                const MutableTensorView& out, std::int64_t layer = 0,
                const AttentionOptions& options = {}, const ExecContext& context = {});

  // Drops the newest n tokens of one request.
  Status rewind(std::int64_t id, std::int64_t n);

  Result<std::int64_t> seq_length(std::int64_t id, std::int64_t layer = 0) const;
  std::int64_t active() const noexcept;      // occupied slots
  std::int64_t max_active() const noexcept;  // slots
  bool occupied(std::int64_t id) const noexcept;

 private:
  struct Impl;
  explicit BatchingCache(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v0
}  // namespace kvcache

#endif  // KVCACHE_BATCHING_CACHE_H_
