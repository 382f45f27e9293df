// The store over pages: sequences of any lengths, which may share their beginnings.
#ifndef KVCACHE_RUNNER_MODEL_PAGED_STORE_H_
#define KVCACHE_RUNNER_MODEL_PAGED_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "runner/model/view_store.h"

namespace kvcache::runner {

class PagedStore final : public ViewStore {
 public:
  // A pool with room for options.num_sequences sequences of options.max_length tokens, and one
  // empty sequence.
  static Result<std::unique_ptr<KvStore>> create(const ModelConfig& config,
                                                 const KvStoreOptions& options);

  PagedStore(PagedCache cache, std::vector<SequenceId> sequences)
      : cache_(std::move(cache)), sequences_(std::move(sequences)) {}

  std::int64_t num_sequences() const noexcept override {
    return static_cast<std::int64_t>(sequences_.size());
  }
  Status end() override;
  void abandon() noexcept override { step_.reset(); }
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
  Status reserve(std::span<const std::int64_t> counts) override;

  PagedCache cache_;
  std::vector<SequenceId> sequences_;
  std::optional<PagedCache::Step> step_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_PAGED_STORE_H_
