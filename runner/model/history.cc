#include "runner/model/kv_store.h"

#include <utility>

#include "runner/model/functional_store.h"
#include "runner/model/layered_store.h"
#include "runner/model/paged_store.h"

namespace kvcache::runner {

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
    case StoreKind::kFunctional:
      return "functional";
    case StoreKind::kBatching:
      return "batching";
  }
  return "?";
}

Result<StoreKind> parse_store_kind(std::string_view name) {
  for (const StoreKind kind : {StoreKind::kNone, StoreKind::kDynamic, StoreKind::kStatic,
                               StoreKind::kPaged, StoreKind::kFunctional, StoreKind::kBatching}) {
    if (name == name_of(kind)) return kind;
  }
  return Status(StatusCode::kInvalidArgument,
                "cache: found " + std::string(name) +
                    ", expected none, dynamic, static, paged, functional or batching");
}

std::vector<LayerSpec> layer_specs(const ModelConfig& config, DType dtype) {
  return std::vector<LayerSpec>(
      static_cast<std::size_t>(config.num_layers),
      LayerSpec::kv(config.num_kv_heads, config.head_dim, config.head_dim, dtype));
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
          std::make_unique<LayeredStore>(std::make_unique<DynamicCache>(std::move(rows))));
    }
    case StoreKind::kStatic: {
      KVC_ASSIGN_OR_RETURN(StaticCache rows,
                           StaticCache::create(options.max_length, config.num_layers, cache));
      return std::unique_ptr<KvStore>(
          std::make_unique<LayeredStore>(std::make_unique<StaticCache>(std::move(rows))));
    }
    case StoreKind::kPaged:
      return PagedStore::create(config, options);
    case StoreKind::kFunctional:
      return FunctionalStore::create(config, options);
    case StoreKind::kBatching:
      break;
  }
  return Status(StatusCode::kInvalidArgument, std::string("cache: found ") + name_of(options.kind) +
                                                  ", expected one that holds a single text");
}

}  // namespace kvcache::runner
