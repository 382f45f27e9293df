#include "runner/model/layered_history.h"

#include <utility>

namespace kvcache::runner {

Status NoHistory::reserve(std::span<const std::int64_t> counts, std::span<const std::int32_t>) {
  return check_equal_counts(counts);
}

Result<OwnedKvView> NoHistory::write(std::int64_t, const TensorView& k, const TensorView& v,
                                     const ExecContext& context) {
  rows_.reset();
  const std::int64_t batch = num_sequences();
  auto updated =
      rows_.update(as_batch(k, batch, layout_), as_batch(v, batch, layout_), 0, {}, context);
  if (!updated.ok()) return updated.status();
  return rows_.view(0);
}

Status LayeredHistory::reserve(std::span<const std::int64_t> counts,
                               std::span<const std::int32_t>) {
  KVC_RETURN_IF_ERROR(check_equal_counts(counts));
  before_ = length(0);
  return {};
}

Result<OwnedKvView> LayeredHistory::write(std::int64_t layer, const TensorView& k,
                                          const TensorView& v, const ExecContext& context) {
  const Layout layout = cache_->layout();
  auto updated =
      cache_->update(as_batch(k, batch_, layout), as_batch(v, batch_, layout), layer, {}, context);
  if (!updated.ok()) return updated.status();
  return cache_->view(layer);
}

void LayeredHistory::abandon() noexcept {
  // Layers that were written go back to the length they had; truncate leaves shorter ones alone.
  const Status status = cache_->truncate(before_);
  (void)status;  // a length >= 0 cannot fail
}

std::int64_t LayeredHistory::length(std::int64_t) const {
  const auto length = cache_->seq_length(0);
  return length.ok() ? *length : 0;
}

std::int64_t LayeredHistory::next_position(std::int64_t) const {
  const auto position = cache_->next_position(0);
  return position.ok() ? *position : 0;
}

KvUsage LayeredHistory::usage() const {
  KvUsage usage;
  usage.nbytes = cache_->nbytes();
  usage.reserved_bytes = cache_->reserved_bytes();
  usage.copied_bytes = cache_->copied_bytes();
  return usage;
}

Status LayeredHistory::repeat(std::int64_t n, const ExecContext& context) {
  KVC_RETURN_IF_ERROR(cache_->batch_repeat_interleave(n, context));
  batch_ *= n;
  return {};
}

Status LayeredHistory::reorder(std::span<const std::int64_t> beam_idx, const ExecContext& context) {
  return cache_->reorder(
      TensorView(beam_idx.data(), DType::kI64, {static_cast<std::int64_t>(beam_idx.size())}),
      context);
}

}  // namespace kvcache::runner
