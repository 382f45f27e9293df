#include "runner/model/functional_store.h"

namespace kvcache::runner {
namespace {

// A view of one sequence over rows [1, H, len, D] (or [1, len, H, D]) that somebody else holds.
OwnedKvView view_of(const KeyValueView& rows, Layout layout) {
  const int seq = layout == Layout::kHND ? 2 : 1;
  const int head = layout == Layout::kHND ? 1 : 2;
  struct Tables {
    KvPart part;
    std::int32_t length;
  };
  auto tables = std::make_shared<Tables>();
  tables->length = static_cast<std::int32_t>(rows.key.shape[seq]);
  KvPart& part = tables->part;
  part.k = rows.key.data;
  part.v = rows.value.data;
  part.k_format.dtype = rows.key.dtype;
  part.v_format.dtype = rows.value.dtype;
  part.k_page_stride = rows.key.strides[0];
  part.v_page_stride = rows.value.strides[0];
  part.k_head_stride = rows.key.strides[head];
  part.v_head_stride = rows.value.strides[head];
  part.k_token_stride = rows.key.strides[seq];
  part.v_token_stride = rows.value.strides[seq];
  part.page_size = tables->length;
  part.lengths = &tables->length;
  KvView view;
  view.num_seqs = 1;
  view.num_kv_heads = static_cast<std::int32_t>(rows.key.shape[head]);
  view.k_head_dim = static_cast<std::int32_t>(rows.key.shape[3]);
  view.v_head_dim = static_cast<std::int32_t>(rows.value.shape[3]);
  view.num_parts = 1;
  view.parts = &part;
  return OwnedKvView(view, std::move(tables));
}

Status unsupported() {
  return Status(StatusCode::kUnsupported,
                "beams: found a functional cache, expected a dynamic, static or paged one");
}

}  // namespace

Result<std::unique_ptr<KvStore>> FunctionalStore::create(const ModelConfig& config,
                                                         const KvStoreOptions& options) {
  functional::InitOptions init;
  init.num_layers = config.num_layers;
  init.num_heads = config.num_kv_heads;
  init.head_dim = config.head_dim;
  init.max_seq_len = options.max_length;
  init.dtype = options.dtype;
  init.layout = options.layout;
  init.memory = options.memory;
  KVC_ASSIGN_OR_RETURN(functional::CacheState state, functional::init(init));
  return std::unique_ptr<KvStore>(
      std::make_unique<FunctionalStore>(std::move(state), options.layout));
}

Status FunctionalStore::reserve(std::span<const std::int64_t>) {
  before_ = state_;
  return {};
}

Result<OwnedKvView> FunctionalStore::write(std::int64_t layer, const TensorView& k,
                                           const TensorView& v, const ExecContext& context) {
  KVC_ASSIGN_OR_RETURN(
      functional::Updated updated,
      functional::update(state_, layer, as_batch(k, 1, layout_), as_batch(v, 1, layout_), context));
  state_ = std::move(updated.state);
  return view_of(updated.rows, layout_);
}

Status FunctionalStore::end() {
  before_ = {};
  return {};
}

KvUsage FunctionalStore::usage() const {
  KvUsage usage;
  usage.nbytes = state_.nbytes();
  usage.reserved_bytes = state_.reserved_bytes();
  usage.copied_bytes = state_.copied_bytes();
  return usage;
}

Status FunctionalStore::repeat(std::int64_t, const ExecContext&) { return unsupported(); }
Status FunctionalStore::reorder(std::span<const std::int64_t>, const ExecContext&) {
  return unsupported();
}

}  // namespace kvcache::runner
