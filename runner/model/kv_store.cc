#include "runner/model/kv_store.h"

#include <utility>

namespace kvcache::runner {
namespace {

// Packed rows [tokens, heads, dim] as the batch-1 tensor of a layout.
TensorView as_batch_of_one(const TensorView& packed, Layout layout) {
  TensorView view = packed;
  view.rank = 4;
  const int seq = layout == Layout::kHND ? 2 : 1;
  const int head = layout == Layout::kHND ? 1 : 2;
  view.shape[0] = 1;
  view.strides[0] = packed.shape[0] * packed.strides[0];
  view.shape[seq] = packed.shape[0];
  view.strides[seq] = packed.strides[0];
  view.shape[head] = packed.shape[1];
  view.strides[head] = packed.strides[1];
  view.shape[3] = packed.shape[2];
  view.strides[3] = packed.strides[2];
  return view;
}

// No cache: rows live for one layer of one step, rounded as a cache would round them.
class NoStore final : public KvStore {
 public:
  NoStore(DynamicCache rows, Layout layout) : rows_(std::move(rows)), layout_(layout) {}

  Status begin(std::int64_t) override { return {}; }
  Result<OwnedKvView> write(std::int64_t, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override {
    rows_.reset();
    auto updated =
        rows_.update(as_batch_of_one(k, layout_), as_batch_of_one(v, layout_), 0, {}, context);
    if (!updated.ok()) return updated.status();
    return rows_.view(0);
  }
  Status end() override {
    rows_.reset();
    return {};
  }
  void abandon() noexcept override { rows_.reset(); }
  bool keeps_history() const noexcept override { return false; }
  std::int64_t length() const override { return 0; }
  std::int64_t next_position() const override { return 0; }
  KvUsage usage() const override { return {}; }

 private:
  DynamicCache rows_;
  Layout layout_;
};

template <typename LayeredCache>
class LayeredStore final : public KvStore {
 public:
  LayeredStore(LayeredCache cache, Layout layout) : cache_(std::move(cache)), layout_(layout) {}

  Status begin(std::int64_t) override {
    before_ = length();
    return {};
  }
  Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override {
    auto updated =
        cache_.update(as_batch_of_one(k, layout_), as_batch_of_one(v, layout_), layer, {}, context);
    if (!updated.ok()) return updated.status();
    return cache_.view(layer);
  }
  Status end() override { return {}; }
  void abandon() noexcept override {
    // Layers that were written go back to the length they had; truncate leaves shorter ones alone.
    const Status status = cache_.truncate(before_);
    (void)status;  // a length >= 0 cannot fail
  }
  bool keeps_history() const noexcept override { return true; }
  std::int64_t length() const override { return value_or_zero(cache_.seq_length(0)); }
  std::int64_t next_position() const override { return value_or_zero(cache_.next_position(0)); }
  KvUsage usage() const override {
    return {cache_.nbytes(), cache_.reserved_bytes(), cache_.copied_bytes(), 0};
  }

 private:
  static std::int64_t value_or_zero(const Result<std::int64_t>& result) {
    return result.ok() ? *result : 0;
  }

  LayeredCache cache_;
  Layout layout_;
  std::int64_t before_ = 0;
};

class PagedStore final : public KvStore {
 public:
  PagedStore(PagedCache cache, SequenceId seq) : cache_(std::move(cache)), seq_(seq) {}

  Status begin(std::int64_t num_new_tokens) override {
    const Append append{seq_, num_new_tokens};
    auto step = cache_.reserve({&append, 1});
    if (!step.ok()) return step.status();
    step_.emplace(std::move(step).value());
    return {};
  }
  Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                            const ExecContext& context) override {
    KVC_RETURN_IF_ERROR(cache_.write(*step_, layer, k, v, context));
    return cache_.view(*step_, layer);
  }
  Status end() override {
    const Status status = cache_.commit(*step_);
    step_.reset();
    return status;
  }
  void abandon() noexcept override { step_.reset(); }
  bool keeps_history() const noexcept override { return true; }
  std::int64_t length() const override {
    const auto length = cache_.seq_length(seq_);
    return length.ok() ? *length : 0;
  }
  std::int64_t next_position() const override {
    const auto position = cache_.next_position(seq_);
    return position.ok() ? *position : 0;
  }
  KvUsage usage() const override {
    return {cache_.nbytes(), cache_.reserved_bytes(), 0, cache_.stats().pages_held};
  }

 private:
  PagedCache cache_;
  SequenceId seq_;
  std::optional<PagedCache::Step> step_;
};

Result<std::unique_ptr<KvStore>> make_paged(const ModelConfig& config,
                                            const KvStoreOptions& options) {
  CacheConfig pages;
  pages.layers = layer_specs(config, options.dtype);
  pages.page_size = options.page_size;
  if (options.page_size >= 1) {
    pages.num_pages = (options.max_length + options.page_size - 1) / options.page_size;
  }
  pages.layout = options.layout;
  pages.memory = options.memory;
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(pages));
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, cache.open());
  return std::unique_ptr<KvStore>(std::make_unique<PagedStore>(std::move(cache), seq));
}

}  // namespace

const char* name_of(StoreKind kind) noexcept {
  switch (kind) {
    case StoreKind::kNone:
      return "none";
    case StoreKind::kDynamic:
      return "dynamic";
    case StoreKind::kStatic:
      return "static";
    case StoreKind::kPaged:
      return "paged";
  }
  return "?";
}

Result<StoreKind> parse_store_kind(std::string_view name) {
  for (const StoreKind kind :
       {StoreKind::kNone, StoreKind::kDynamic, StoreKind::kStatic, StoreKind::kPaged}) {
    if (name == name_of(kind)) return kind;
  }
  return Status(StatusCode::kInvalidArgument,
                "cache: found " + std::string(name) + ", expected none, dynamic, static or paged");
}

std::vector<LayerSpec> layer_specs(const ModelConfig& config, DType dtype) {
  LayerSpec spec;
  spec.num_kv_heads = config.num_kv_heads;
  spec.k_head_dim = config.head_dim;
  spec.v_head_dim = config.head_dim;
  spec.k_format.dtype = dtype;
  spec.v_format.dtype = dtype;
  return std::vector<LayerSpec>(static_cast<std::size_t>(config.num_layers), spec);
}

Result<std::unique_ptr<KvStore>> make_kv_store(const ModelConfig& config,
                                               const KvStoreOptions& options) {
  CacheOptions cache;
  cache.dtype = options.dtype;
  cache.layout = options.layout;
  cache.memory = options.memory;
  switch (options.kind) {
    case StoreKind::kNone: {
      KVC_ASSIGN_OR_RETURN(DynamicCache rows, DynamicCache::create(cache));
      return std::unique_ptr<KvStore>(std::make_unique<NoStore>(std::move(rows), options.layout));
    }
    case StoreKind::kDynamic: {
      KVC_ASSIGN_OR_RETURN(DynamicCache rows, DynamicCache::create(cache));
      return std::unique_ptr<KvStore>(
          std::make_unique<LayeredStore<DynamicCache>>(std::move(rows), options.layout));
    }
    case StoreKind::kStatic: {
      KVC_ASSIGN_OR_RETURN(StaticCache rows,
                           StaticCache::create(options.max_length, config.num_layers, cache));
      return std::unique_ptr<KvStore>(
          std::make_unique<LayeredStore<StaticCache>>(std::move(rows), options.layout));
    }
    case StoreKind::kPaged:
      return make_paged(config, options);
  }
  return Status(StatusCode::kInvalidArgument, "cache: found an unknown kind");
}

}  // namespace kvcache::runner
