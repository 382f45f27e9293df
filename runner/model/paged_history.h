// The history over pages: sequences of any lengths, which may share their beginnings, join and
// leave.
#ifndef KVCACHE_RUNNER_MODEL_PAGED_HISTORY_H_
#define KVCACHE_RUNNER_MODEL_PAGED_HISTORY_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>

#include "runner/model/prefix_store.h"
#include "runner/model/view_history.h"

namespace kvcache::runner {

// Pages that options.num_sequences sequences of options.max_length tokens need, those that steps
// copy shared tails into included.
std::int64_t pages_of(const HistoryOptions& options) noexcept;

// What a pool of `num_pages` is made of. Errors: those of KvDtype::layers.
Result<CacheConfig> paged_config(const ModelConfig& config, const HistoryOptions& options,
                                 std::int64_t num_pages);
// Such a pool, and no sequence.
Result<PagedBatch> open_pages(const ModelConfig& config, const HistoryOptions& options,
                              std::int64_t num_pages);

// Its sequences are the rows of a PagedBatch, in pages of their own or in those of a PrefixStore,
// where they find the beginnings of their texts and leave their rows behind.
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
  // In the pages of a store, as a tenant's, and no sequence. REQUIRES: the lease has room for its
  // sequences, and for a page more each: one that is found in part is held while it is copied.
  static Result<std::unique_ptr<PagedHistory>> create_in(PrefixStore::Lease lease,
                                                         std::int64_t tenant);

  PagedHistory(PagedBatch batch, std::int64_t row_bytes,
               std::optional<PrefixStore::Lease> lease = {}, std::int64_t tenant = 0)
      : lease_(std::move(lease)),
        tenant_(tenant),
        batch_(std::move(batch)),
        row_bytes_(row_bytes) {}
  ~PagedHistory() override;

  // An empty sequence after the others. / One leaves: its pages go back, those after it move up.
  Status add();
  Status release(std::int64_t sequence);
  const PagedBatch& batch() const { return batch_; }
  const PagedCache& cache() const { return *batch_.cache(); }
  PrefixStore* store() const { return lease_.has_value() ? &lease_->store() : nullptr; }
  std::int64_t row_bytes() const { return row_bytes_; }  // of one token in all layers

  std::int64_t num_sequences() const noexcept override { return batch_.num_rows(); }
  Status end() override;
  void abandon() noexcept override;
  bool keeps_history() const noexcept override { return true; }
  std::int64_t length(std::int64_t sequence) const override;
  std::int64_t next_position(std::int64_t sequence) const override;
  // In the pages of a store: of its sequences alone, without tables.
  KvUsage usage() const override;
  std::int64_t find(std::int64_t sequence, std::span<const std::int32_t> text) override;

  // Forks: pages are shared, no row is copied.
  Status repeat(std::int64_t n, const ExecContext& context) override;

  // Moves references. A tail page that is shared afterwards is copied by the next step.
  Status reorder(std::span<const std::int64_t> beam_idx, const ExecContext& context) override;

  Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override;

 private:
  Status reserve(std::span<const std::int64_t> counts, std::span<const std::int32_t> ids) override;
  // The turn of a call: nobody else's in a pool of its own.
  std::unique_lock<std::mutex> turn() const;
  Result<SequenceId> open_found(std::span<const std::int32_t> text);

  std::optional<PrefixStore::Lease> lease_;
  std::int64_t tenant_;  // see PrefixNamespace
  PagedBatch batch_;
  std::int64_t row_bytes_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_PAGED_HISTORY_H_
