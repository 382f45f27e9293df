#include "runner/model/view_history.h"

#include <string>
#include <utility>

namespace kvcache::runner {

ViewHistory::LikeLayers& ViewHistory::alike(const KvView& view) {
  std::vector<RowFormat> formats;
  for (std::int32_t part = 0; part < view.num_parts; ++part) {
    formats.push_back(view.parts[part].k.format);
    formats.push_back(view.parts[part].v.format);
  }
  for (LikeLayers& each : plans_) {
    if (each.formats == formats) return each;
  }
  plans_.emplace_back().formats = std::move(formats);
  return plans_.back();
}

Status ViewHistory::begin(std::span<const std::int64_t> counts, std::span<const std::int32_t> ids) {
  for (LikeLayers& each : plans_) each.planned = false;
  qo_indptr_.assign(1, 0);
  for (const std::int64_t count : counts) {
    qo_indptr_.push_back(qo_indptr_.back() + static_cast<std::int32_t>(count));
  }
  return reserve(counts, ids);
}

Status ViewHistory::attend(std::int64_t layer, const AttentionInputs& inputs,
                           const MutableTensorView& out, const AttentionOptions& options,
                           const ExecContext& context) {
  KVC_ASSIGN_OR_RETURN(const OwnedKvView view, write(layer, inputs.k, inputs.v, context));
  LikeLayers& layers = alike(view);
  if (!layers.planned) {
    KVC_RETURN_IF_ERROR(layers.plan.plan(view, qo_indptr_, inputs.q.shape[1], options, context));
    layers.planned = true;
  }
  if (layer == 0) rows_read_ = layers.plan.rows_read();
  return layers.plan.run(inputs.q, view, out, {}, options, context);
}

Status check_equal_counts(std::span<const std::int64_t> counts) {
  for (const std::int64_t count : counts) {
    if (count != counts.front()) {
      return Status(StatusCode::kInvalidArgument,
                    "counts: found " + std::to_string(counts.front()) + " and " +
                        std::to_string(count) +
                        ", expected as many new tokens for every sequence of a batch");
    }
  }
  return {};
}

TensorView as_batch(const TensorView& packed, std::int64_t batch, Layout layout) {
  TensorView view = packed;
  view.rank = 4;
  const std::int64_t tokens = packed.shape[0] / batch;
  const int seq = layout == Layout::kHND ? 2 : 1;
  const int head = layout == Layout::kHND ? 1 : 2;
  view.shape[0] = batch;
  view.strides[0] = tokens * packed.strides[0];
  view.shape[seq] = tokens;
  view.strides[seq] = packed.strides[0];
  view.shape[head] = packed.shape[1];
  view.strides[head] = packed.strides[1];
  view.shape[3] = packed.shape[2];
  view.strides[3] = packed.strides[2];
  return view;
}

}  // namespace kvcache::runner
