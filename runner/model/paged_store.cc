#include "runner/model/paged_store.h"

#include <algorithm>
#include <utility>

namespace kvcache::runner {

Result<std::unique_ptr<KvStore>> PagedStore::create(const ModelConfig& config,
                                                    const KvStoreOptions& options) {
  CacheConfig pages;
  pages.layers = layer_specs(config, options.dtype);
  pages.page_size = options.page_size;
  if (options.page_size >= 1 && options.max_length >= 1) {
    pages.num_pages = (options.max_length - 1) / options.page_size + 1;
    // While a step copies a shared tail page, the page itself is still held.
    if (options.num_sequences > 1) pages.num_pages = options.num_sequences * (pages.num_pages + 1);
  }
  pages.layout = options.layout;
  pages.memory = options.memory;
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(pages));
  KVC_ASSIGN_OR_RETURN(const SequenceId sequence, cache.open());
  return std::unique_ptr<KvStore>(
      std::make_unique<PagedStore>(std::move(cache), std::vector<SequenceId>{sequence}));
}

Status PagedStore::reserve(std::span<const std::int64_t> counts) {
  std::vector<Append> appends(sequences_.size());
  for (std::size_t i = 0; i < appends.size(); ++i) {
    appends[i].seq = sequences_[i];
    appends[i].count = counts[i];
  }
  auto step = cache_.reserve(appends);
  if (!step.ok()) return step.status();
  step_.emplace(std::move(step).value());
  return {};
}

Result<OwnedKvView> PagedStore::write(std::int64_t layer, const TensorView& k, const TensorView& v,
                                      const ExecContext& context) {
  KVC_RETURN_IF_ERROR(cache_.write(*step_, layer, k, v, context));
  return cache_.view(*step_, layer);
}

Status PagedStore::end() {
  const Status status = cache_.commit(*step_);
  step_.reset();
  return status;
}

std::int64_t PagedStore::length(std::int64_t sequence) const {
  const auto length = cache_.seq_length(sequences_[static_cast<std::size_t>(sequence)]);
  return length.ok() ? *length : 0;
}

std::int64_t PagedStore::next_position(std::int64_t sequence) const {
  const auto position = cache_.next_position(sequences_[static_cast<std::size_t>(sequence)]);
  return position.ok() ? *position : 0;
}

KvUsage PagedStore::usage() const {
  const PagedStats stats = cache_.stats();
  KvUsage usage;
  usage.nbytes = cache_.nbytes();
  usage.reserved_bytes = cache_.reserved_bytes();
  usage.pages = stats.pages_held;
  usage.rows_copied = stats.rows_copied;
  return usage;
}

Status PagedStore::repeat(std::int64_t n, const ExecContext&) {
  std::vector<SequenceId> repeated;
  repeated.reserve(sequences_.size() * static_cast<std::size_t>(n));
  for (const SequenceId original : sequences_) {
    repeated.push_back(original);
    for (std::int64_t copy = 1; copy < n; ++copy) {
      KVC_ASSIGN_OR_RETURN(const std::int64_t length, cache_.seq_length(original));
      const auto fork = cache_.fork(original, length);
      if (!fork.ok()) {
        for (const SequenceId made : repeated) {
          const bool ours =
              std::find(sequences_.begin(), sequences_.end(), made) == sequences_.end();
          if (ours) KVC_RETURN_IF_ERROR(cache_.release(made));
        }
        return fork.status();
      }
      repeated.push_back(*fork);
    }
  }
  sequences_ = std::move(repeated);
  return {};
}

Status PagedStore::reorder(std::span<const std::int64_t> beam_idx, const ExecContext&) {
  return cache_.reorder(sequences_, TensorView(beam_idx.data(), DType::kI64,
                                               {static_cast<std::int64_t>(beam_idx.size())}));
}

}  // namespace kvcache::runner
