// The absence of a cache over pages: rows live for one step, in the form in which a cache would
// hold them.
#ifndef KVCACHE_RUNNER_MODEL_FRESH_HISTORY_H_
#define KVCACHE_RUNNER_MODEL_FRESH_HISTORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "runner/model/one_step_history.h"

namespace kvcache::runner {

// What NoHistory is to rows of one plain type, for rows that only pages hold.
class FreshHistory final : public OneStepHistory {
 public:
  // Steps of at most options.max_length tokens for each of options.num_sequences sequences.
  static Result<std::unique_ptr<History>> create(const ModelConfig& config,
                                                 const HistoryOptions& options);

  explicit FreshHistory(PagedBatch batch) : batch_(std::move(batch)) {}

  void abandon() noexcept override { batch_.reset(); }
  Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override;

 private:
  Status reserve(std::span<const std::int64_t> counts, std::span<const std::int32_t> ids) override;

  PagedBatch batch_;  // empty between steps
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_FRESH_HISTORY_H_
