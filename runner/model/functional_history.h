// The history over functional states: a step makes new states, and taking it back is going on from
// the old one.
#ifndef KVCACHE_RUNNER_MODEL_FUNCTIONAL_HISTORY_H_
#define KVCACHE_RUNNER_MODEL_FUNCTIONAL_HISTORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "runner/model/view_history.h"

namespace kvcache::runner {

class FunctionalHistory final : public ViewHistory {
 public:
  // One sequence of at most options.max_length tokens. REQUIRES: rows of one plain type.
  static Result<std::unique_ptr<History>> create(const ModelConfig& config,
                                                 const HistoryOptions& options);

  FunctionalHistory(functional::CacheState state, Layout layout)
      : state_(std::move(state)), layout_(layout) {}

  std::int64_t num_sequences() const noexcept override { return 1; }
  Status end() override;
  void abandon() noexcept override { state_ = std::exchange(before_, {}); }
  bool keeps_history() const noexcept override { return true; }
  std::int64_t length(std::int64_t) const override { return state_.position(); }
  std::int64_t next_position(std::int64_t) const override { return state_.position(); }
  KvUsage usage() const override;

  // kUnsupported: a state has no beam operations.
  Status repeat(std::int64_t n, const ExecContext& context) override;
  Status reorder(std::span<const std::int64_t> beam_idx, const ExecContext& context) override;

  Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override;

 private:
  Status reserve(std::span<const std::int64_t> counts, std::span<const std::int32_t> ids) override;

  functional::CacheState state_;
  functional::CacheState before_;  // of the open step
  Layout layout_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_FUNCTIONAL_HISTORY_H_
