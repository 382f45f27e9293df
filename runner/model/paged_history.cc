#include "runner/model/paged_history.h"

namespace kvcache::runner {

std::int64_t pages_of(const HistoryOptions& options) noexcept {
  if (options.page_size < 1 || options.max_length < 1) return 0;
  const std::int64_t pages = (options.max_length - 1) / options.page_size + 1;
  // While a step copies a shared tail page, the page itself is still held.
  return options.num_sequences > 1 ? options.num_sequences * (pages + 1) : pages;
}

Result<PagedBatch> open_pages(const ModelConfig& config, const HistoryOptions& options,
                              std::int64_t num_pages) {
  CacheConfig pages;
  KVC_ASSIGN_OR_RETURN(pages.layers, options.rows.layers(config, options.dtype));
  pages.page_size = options.page_size;
  pages.num_pages = num_pages;
  pages.layout = options.layout;
  pages.memory = options.memory;
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(pages));
  return PagedBatch::create(std::make_shared<PagedCache>(std::move(cache)));
}

Result<std::unique_ptr<PagedHistory>> PagedHistory::create_empty(const ModelConfig& config,
                                                                 const HistoryOptions& options,
                                                                 std::int64_t num_pages) {
  KVC_ASSIGN_OR_RETURN(const auto layers, options.rows.layers(config, options.dtype));
  KVC_ASSIGN_OR_RETURN(PagedBatch batch, open_pages(config, options, num_pages));
  return std::make_unique<PagedHistory>(std::move(batch), bytes_per_token(layers));
}

Result<std::unique_ptr<History>> PagedHistory::create(const ModelConfig& config,
                                                      const HistoryOptions& options) {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<PagedHistory> history,
                       create_empty(config, options, pages_of(options)));
  KVC_RETURN_IF_ERROR(history->add());
  return std::unique_ptr<History>(std::move(history));
}

Result<OwnedKvView> PagedHistory::write(std::int64_t layer, const TensorView& k,
                                        const TensorView& v, const ExecContext& context) {
  KVC_RETURN_IF_ERROR(batch_.write(layer, k, v, context));
  return batch_.view(layer);
}

Status PagedHistory::end() {
  const Status status = batch_.commit();
  if (!status.ok()) abandon();
  return status;
}

void PagedHistory::abandon() noexcept {
  if (!batch_.step_open()) return;
  [[maybe_unused]] const Status status = batch_.rollback();  // of an open step: it cannot fail
}

std::int64_t PagedHistory::length(std::int64_t sequence) const {
  const auto length = batch_.seq_length(sequence);
  return length.ok() ? *length : 0;
}

std::int64_t PagedHistory::next_position(std::int64_t sequence) const {
  const auto position = batch_.next_position(sequence);
  return position.ok() ? *position : 0;
}

KvUsage PagedHistory::usage() const {
  const PagedStats stats = cache().stats();
  KvUsage usage;
  usage.nbytes = cache().nbytes();
  usage.reserved_bytes = cache().reserved_bytes();
  usage.pages = stats.pages_held;
  usage.rows_copied = stats.rows_copied;
  return usage;
}

Status PagedHistory::repeat(std::int64_t n, const ExecContext&) { return batch_.repeat(n); }

Status PagedHistory::reorder(std::span<const std::int64_t> beam_idx, const ExecContext&) {
  return batch_.reorder(
      TensorView(beam_idx.data(), DType::kI64, {static_cast<std::int64_t>(beam_idx.size())}));
}

}  // namespace kvcache::runner
