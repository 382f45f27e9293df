// The histories over layered caches: a batch of sequences of equal length, and no cache at all.
#ifndef KVCACHE_RUNNER_MODEL_LAYERED_HISTORY_H_
#define KVCACHE_RUNNER_MODEL_LAYERED_HISTORY_H_

#include <cstdint>
#include <memory>
#include <span>

#include "runner/model/one_step_history.h"
#include "runner/model/view_history.h"

namespace kvcache::runner {

// No cache: rows live for one layer of one step, rounded as a cache would round them.
class NoHistory final : public OneStepHistory {
 public:
  NoHistory(DynamicCache rows, Layout layout) : rows_(std::move(rows)), layout_(layout) {}

  void abandon() noexcept override { rows_.reset(); }
  Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override;

 private:
  Status reserve(std::span<const std::int64_t> counts, std::span<const std::int32_t> ids) override;

  DynamicCache rows_;
  Layout layout_;
};

// A DynamicCache or StaticCache.
class LayeredHistory final : public ViewHistory {
 public:
  explicit LayeredHistory(std::unique_ptr<Cache> cache) : cache_(std::move(cache)) {}

  std::int64_t num_sequences() const noexcept override { return batch_; }
  Status end() override { return {}; }
  void abandon() noexcept override;
  bool keeps_history() const noexcept override { return true; }
  std::int64_t length(std::int64_t sequence) const override;
  std::int64_t next_position(std::int64_t sequence) const override;
  KvUsage usage() const override;
  Status repeat(std::int64_t n, const ExecContext& context) override;
  Status reorder(std::span<const std::int64_t> beam_idx, const ExecContext& context) override;

  Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override;

 private:
  Status reserve(std::span<const std::int64_t> counts, std::span<const std::int32_t> ids) override;

  std::unique_ptr<Cache> cache_;
  std::int64_t batch_ = 1;
  std::int64_t before_ = 0;  // length before the open step
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_LAYERED_HISTORY_H_
