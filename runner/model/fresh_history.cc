#include "runner/model/fresh_history.h"

#include "runner/model/paged_history.h"

namespace kvcache::runner {

Result<std::unique_ptr<History>> FreshHistory::create(const ModelConfig& config,
                                                      const HistoryOptions& options) {
  KVC_ASSIGN_OR_RETURN(PagedBatch batch, open_pages(config, options, pages_of(options)));
  return std::unique_ptr<History>(std::make_unique<FreshHistory>(std::move(batch)));
}

Status FreshHistory::reserve(std::span<const std::int64_t> counts, std::span<const std::int32_t>) {
  KVC_RETURN_IF_ERROR(batch_.add(static_cast<std::int64_t>(counts.size())));
  const Status status = batch_.begin(counts);
  if (!status.ok()) batch_.reset();
  return status;
}

Result<OwnedKvView> FreshHistory::write(std::int64_t layer, const TensorView& k,
                                        const TensorView& v, const ExecContext& context) {
  KVC_RETURN_IF_ERROR(batch_.write(layer, k, v, context));
  return batch_.view(layer);
}

}  // namespace kvcache::runner
