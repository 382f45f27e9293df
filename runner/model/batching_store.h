// The store over a running batch: slots whose sequences join and leave.
#ifndef KVCACHE_RUNNER_MODEL_BATCHING_STORE_H_
#define KVCACHE_RUNNER_MODEL_BATCHING_STORE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runner/model/kv_store.h"

namespace kvcache::runner {

// Its sequences are the slots. In a step every occupied slot brings as many tokens as the others,
// and an idle one none.
class BatchingStore final : public KvStore {
 public:
  // Of `options`, kind, page_size and the sizes are not looked at. Errors: those of
  // BatchingCache::create.
  static Result<std::unique_ptr<BatchingStore>> create(const ModelConfig& config,
                                                       const KvStoreOptions& options,
                                                       std::int64_t slots);

  BatchingStore(BatchingCache cache, std::int64_t num_layers, Layout layout)
      : cache_(std::move(cache)), num_layers_(num_layers), layout_(layout) {}

  // Takes over the rows of a prefilled cache of one sequence, without copying them.
  Status add(std::int64_t slot, Cache& prefilled) { return cache_.add_request(prefilled, slot); }
  Status remove(std::int64_t slot) { return cache_.remove_request(slot); }
  bool occupied(std::int64_t slot) const noexcept { return cache_.occupied(slot); }

  std::int64_t num_sequences() const noexcept override { return cache_.max_active(); }
  Status begin(std::span<const std::int64_t> counts) override;
  Status attend(std::int64_t layer, const AttentionInputs& inputs, const MutableTensorView& out,
                const AttentionOptions& options, const ExecContext& context) override;
  Status end() override;

  void abandon() noexcept override;

  std::int64_t rows_read() const noexcept override {
    return (cache_.stats().rows_read - rows_read_before_) / num_layers_;
  }
  bool keeps_history() const noexcept override { return true; }
  std::int64_t length(std::int64_t sequence) const override;
  std::int64_t next_position(std::int64_t sequence) const override;
  KvUsage usage() const override;

  // kUnsupported: the sequences are independent.
  Status repeat(std::int64_t n, const ExecContext& context) override;
  Status reorder(std::span<const std::int64_t> beam_idx, const ExecContext& context) override;

 private:
  BatchingCache cache_;
  std::int64_t num_layers_;
  Layout layout_;
  std::int64_t new_tokens_ = 0;        // of each occupied slot in the open step
  std::vector<std::int64_t> lengths_;  // [slots] before the open step
  std::int64_t rows_read_before_ = 0;
  std::vector<float> q_, k_, v_, out_;  // [slots * new_tokens, heads, head_dim]
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_BATCHING_STORE_H_
