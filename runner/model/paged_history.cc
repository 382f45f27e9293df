#include "runner/model/paged_history.h"

#include <algorithm>
#include <map>

namespace kvcache::runner {

std::int64_t pages_of(const HistoryOptions& options) noexcept {
  if (options.page_size < 1 || options.max_length < 1) return 0;
  const std::int64_t pages = (options.max_length - 1) / options.page_size + 1;
  // While a step copies a shared tail page, the page itself is still held.
  return options.num_sequences > 1 ? options.num_sequences * (pages + 1) : pages;
}

Result<CacheConfig> paged_config(const ModelConfig& config, const HistoryOptions& options,
                                 std::int64_t num_pages) {
  CacheConfig pages;
  KVC_ASSIGN_OR_RETURN(pages.layers, options.rows.layers(config, options.dtype));
  pages.page_size = options.page_size;
  pages.num_pages = num_pages;
  pages.layout = options.layout;
  pages.residual_tokens = options.rows.residual_tokens();
  pages.memory = options.memory;
  return pages;
}

Result<PagedBatch> open_pages(const ModelConfig& config, const HistoryOptions& options,
                              std::int64_t num_pages) {
  KVC_ASSIGN_OR_RETURN(const CacheConfig pages, paged_config(config, options, num_pages));
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

Result<std::unique_ptr<PagedHistory>> PagedHistory::create_in(PrefixStore::Lease lease,
                                                              std::int64_t tenant) {
  KVC_ASSIGN_OR_RETURN(PagedBatch batch, PagedBatch::create(lease.store().cache()));
  const std::int64_t row_bytes = lease.store().row_bytes();
  return std::make_unique<PagedHistory>(std::move(batch), row_bytes, std::move(lease), tenant);
}

Result<std::unique_ptr<History>> PagedHistory::create(const ModelConfig& config,
                                                      const HistoryOptions& options) {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<PagedHistory> history,
                       create_empty(config, options, pages_of(options)));
  KVC_RETURN_IF_ERROR(history->add());
  return std::unique_ptr<History>(std::move(history));
}

// Rows go back before the room that was spoken for them does.
PagedHistory::~PagedHistory() {
  const auto lock = turn();
  batch_.reset();
}

std::unique_lock<std::mutex> PagedHistory::turn() const {
  return store() == nullptr ? std::unique_lock<std::mutex>() : std::unique_lock(store()->mutex());
}

Status PagedHistory::add() {
  const auto lock = turn();
  return batch_.add();
}

Status PagedHistory::release(std::int64_t sequence) {
  const auto lock = turn();
  return batch_.release(sequence);
}

// Where memory is refused, what nobody holds gives way: its pages need none.
Status PagedHistory::reserve(std::span<const std::int64_t> counts,
                             std::span<const std::int32_t> ids) {
  const auto lock = turn();
  if (store() == nullptr) return batch_.begin(counts);
  std::int64_t pages = 0;
  for (const std::int64_t count : counts) pages += count / cache().page_size() + 2;
  Status status = batch_.begin(counts, ids);
  while (status.code() == StatusCode::kOutOfMemory && store()->prefixes().evict(pages) > 0) {
    status = batch_.begin(counts, ids);
  }
  return status;
}

Result<OwnedKvView> PagedHistory::write(std::int64_t layer, const TensorView& k,
                                        const TensorView& v, const ExecContext& context) {
  const auto lock = turn();
  KVC_RETURN_IF_ERROR(batch_.write(layer, k, v, context));
  return batch_.view(layer);
}

Status PagedHistory::end() {
  const auto lock = turn();
  const Status status = batch_.commit();
  if (!status.ok()) {
    [[maybe_unused]] const Status back = batch_.rollback();  // of an open step: it cannot fail
  }
  return status;
}

void PagedHistory::abandon() noexcept {
  const auto lock = turn();
  if (!batch_.step_open()) return;
  [[maybe_unused]] const Status status = batch_.rollback();  // of an open step: it cannot fail
}

std::int64_t PagedHistory::length(std::int64_t sequence) const {
  const auto lock = turn();
  const auto length = batch_.seq_length(sequence);
  return length.ok() ? *length : 0;
}

std::int64_t PagedHistory::next_position(std::int64_t sequence) const {
  const auto lock = turn();
  const auto position = batch_.next_position(sequence);
  return position.ok() ? *position : 0;
}

KvUsage PagedHistory::usage() const {
  const auto lock = turn();
  KvUsage usage;
  if (store() == nullptr) {
    const PagedStats stats = cache().stats();
    usage.nbytes = cache().nbytes();
    usage.reserved_bytes = cache().reserved_bytes();
    usage.pages = stats.pages_held;
    usage.rows_copied = stats.rows_copied;
    return usage;
  }
  if (batch_.num_rows() == 1) {
    const auto length = batch_.seq_length(0);
    const std::int64_t rows = length.ok() ? *length : 0;
    usage.nbytes = rows * row_bytes_;
    usage.pages = (rows + cache().page_size() - 1) / cache().page_size();
    usage.reserved_bytes = usage.pages * cache().page_size() * row_bytes_;
    return usage;
  }
  std::map<std::int32_t, std::int64_t> rows;  // of each page, which beams may share
  const auto table = cache().page_indices(0, batch_.sequences());
  for (std::size_t i = 0; table.ok() && i + 1 < table->kv_indptr.size(); ++i) {
    for (std::int32_t p = table->kv_indptr[i]; p < table->kv_indptr[i + 1]; ++p) {
      const bool is_last = p + 1 == table->kv_indptr[i + 1];
      std::int64_t& held = rows[table->kv_indices[static_cast<std::size_t>(p)]];
      held =
          std::max<std::int64_t>(held, is_last ? table->kv_last_page_len[i] : cache().page_size());
    }
  }
  for (const auto& [page, held] : rows) usage.nbytes += held * row_bytes_;
  usage.pages = static_cast<std::int64_t>(rows.size());
  usage.reserved_bytes = usage.pages * cache().page_size() * row_bytes_;
  return usage;
}

Result<SequenceId> PagedHistory::open_found(std::span<const std::int32_t> text) {
  PrefixCache& prefixes = store()->prefixes();
  KVC_ASSIGN_OR_RETURN(const PrefixHandle handle, prefixes.match(text, store()->space(tenant_)));
  return prefixes.open(handle);
}

std::int64_t PagedHistory::find(std::int64_t sequence, std::span<const std::int32_t> text) {
  const auto lock = turn();
  if (store() == nullptr) return 0;
  const auto found = open_found(text);
  if (!found.ok()) return 0;
  if (!batch_.replace(sequence, *found).ok()) {
    [[maybe_unused]] const Status released = batch_.cache()->release(*found);
    return 0;
  }
  const auto length = batch_.seq_length(sequence);
  return length.ok() ? *length : 0;
}

Status PagedHistory::repeat(std::int64_t n, const ExecContext&) {
  const auto lock = turn();
  return batch_.repeat(n);
}

Status PagedHistory::reorder(std::span<const std::int64_t> beam_idx, const ExecContext&) {
  const auto lock = turn();
  return batch_.reorder(
      TensorView(beam_idx.data(), DType::kI64, {static_cast<std::int64_t>(beam_idx.size())}));
}

}  // namespace kvcache::runner
