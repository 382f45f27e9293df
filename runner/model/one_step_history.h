// OneStepHistory: the histories that keep nothing from one step to the next.
#ifndef KVCACHE_RUNNER_MODEL_ONE_STEP_HISTORY_H_
#define KVCACHE_RUNNER_MODEL_ONE_STEP_HISTORY_H_

#include <cstdint>
#include <span>

#include "runner/model/view_history.h"

namespace kvcache::runner {

class OneStepHistory : public ViewHistory {
 public:
  std::int64_t num_sequences() const noexcept final { return sequences_; }
  bool keeps_history() const noexcept final { return false; }
  std::int64_t length(std::int64_t) const final { return 0; }
  std::int64_t next_position(std::int64_t) const final { return 0; }
  KvUsage usage() const final { return {}; }
  Status reorder(std::span<const std::int64_t>, const ExecContext&) final { return {}; }
  Status repeat(std::int64_t n, const ExecContext&) final {
    sequences_ *= n;
    return {};
  }
  Status end() final {
    abandon();
    return {};
  }

 private:
  std::int64_t sequences_ = 1;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_ONE_STEP_HISTORY_H_
