// The history over pages: sequences of any lengths, which may share their beginnings, join and
// leave.
#ifndef KVCACHE_RUNNER_MODEL_PAGED_HISTORY_H_
#define KVCACHE_RUNNER_MODEL_PAGED_HISTORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "runner/model/view_history.h"

namespace kvcache::runner {

// Pages that options.num_sequences sequences of options.max_length tokens need, those that steps
// copy shared tails into included.
std::int64_t pages_of(const HistoryOptions& options) noexcept;

// A pool of `num_pages`, and no sequence.
Result<PagedBatch> open_pages(const ModelConfig& config, const HistoryOptions& options,
                              std::int64_t num_pages);

// Its sequences are the rows of a PagedBatch.
class PagedHistory final : public ViewHistory {
 public:
  // A pool with room for options.num_sequences sequences of options.max_length tokens, and one
  // empty sequence.
  static Result<std::unique_ptr<History>> create(const ModelConfig& config,
                                                 const HistoryOptions& options);
  // A pool of `num_pages`, and no sequence.
  static Result<std::unique_ptr<PagedHistory>> create_empty(const ModelConfig& config,
                                                            const HistoryOptions& options,
                                                            std::int64_t num_pages);

  PagedHistory(PagedBatch batch, std::int64_t row_bytes)
      : batch_(std::move(batch)), row_bytes_(row_bytes) {}

  // An empty sequence after the others. / One leaves: its pages go back, those after it move up.
  Status add() { return batch_.add(); }
  Status release(std::int64_t sequence) { return batch_.release(sequence); }
  const PagedCache& cache() const { return *batch_.cache(); }
  std::int64_t row_bytes() const { return row_bytes_; }  // of one token in all layers

  std::int64_t num_sequences() const noexcept override { return batch_.num_rows(); }
  Status end() override;
  void abandon() noexcept override;
  bool keeps_history() const noexcept override { return true; }
  std::int64_t length(std::int64_t sequence) const override;
  std::int64_t next_position(std::int64_t sequence) const override;
  KvUsage usage() const override;

  // Forks: pages are shared, no row is copied.
  Status repeat(std::int64_t n, const ExecContext& context) override;

  // Moves references. A tail page that is shared afterwards is copied by the next step.
  Status reorder(std::span<const std::int64_t> beam_idx, const ExecContext& context) override;

  Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override;

 private:
  Status reserve(std::span<const std::int64_t> counts) override { return batch_.begin(counts); }

  PagedBatch batch_;
  std::int64_t row_bytes_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_PAGED_HISTORY_H_
