#include "runner/model/functional_history.h"

namespace kvcache::runner {
namespace {

Status unsupported() {
  return Status(StatusCode::kUnsupported,
                "beams: found a functional cache, expected a dynamic, static or paged one");
}

}  // namespace

Result<std::unique_ptr<History>> FunctionalHistory::create(const ModelConfig& config,
                                                           const HistoryOptions& options) {
  KVC_ASSIGN_OR_RETURN(const auto layers, options.rows.layers(config, options.dtype));
  functional::InitOptions init;
  init.num_layers = config.num_layers;
  init.num_heads = config.num_kv_heads;
  init.head_dim = config.head_dim;
  init.max_seq_len = options.max_length;
  init.dtype = one_dtype(layers).value_or(options.dtype);
  init.layout = options.layout;
  init.memory = options.memory;
  KVC_ASSIGN_OR_RETURN(functional::CacheState state, functional::init(init));
  return std::unique_ptr<History>(
      std::make_unique<FunctionalHistory>(std::move(state), options.layout));
}

Status FunctionalHistory::reserve(std::span<const std::int64_t>, std::span<const std::int32_t>) {
  before_ = state_;
  return {};
}

Result<OwnedKvView> FunctionalHistory::write(std::int64_t layer, const TensorView& k,
                                             const TensorView& v, const ExecContext& context) {
  KVC_ASSIGN_OR_RETURN(
      functional::Updated updated,
      functional::update(state_, layer, as_batch(k, 1, layout_), as_batch(v, 1, layout_), context));
  state_ = std::move(updated.state);
  return dense_view(updated.rows, layout_);
}

Status FunctionalHistory::end() {
  before_ = {};
  return {};
}

KvUsage FunctionalHistory::usage() const {
  KvUsage usage;
  usage.nbytes = state_.nbytes();
  usage.reserved_bytes = state_.reserved_bytes();
  usage.copied_bytes = state_.copied_bytes();
  return usage;
}

Status FunctionalHistory::repeat(std::int64_t, const ExecContext&) { return unsupported(); }
Status FunctionalHistory::reorder(std::span<const std::int64_t>, const ExecContext&) {
  return unsupported();
}

}  // namespace kvcache::runner
