#include "runner/model/history.h"

#include <utility>

#include "runner/model/fresh_history.h"
#include "runner/model/functional_history.h"
#include "runner/model/layered_history.h"
#include "runner/model/paged_history.h"

namespace kvcache::runner {

const char* name_of(HistoryKind kind) noexcept {
  switch (kind) {
    case HistoryKind::kNone:
      return "none";
    case HistoryKind::kDynamic:
      return "dynamic";
    case HistoryKind::kStatic:
      return "static";
    case HistoryKind::kPaged:
      return "paged";
    case HistoryKind::kFunctional:
      return "functional";
    case HistoryKind::kBatching:
      return "batching";
  }
  return "?";
}

Result<HistoryKind> parse_history_kind(std::string_view name) {
  for (const HistoryKind kind :
       {HistoryKind::kNone, HistoryKind::kDynamic, HistoryKind::kStatic, HistoryKind::kPaged,
        HistoryKind::kFunctional, HistoryKind::kBatching}) {
    if (name == name_of(kind)) return kind;
  }
  return Status(StatusCode::kInvalidArgument,
                "cache: found " + std::string(name) +
                    ", expected none, dynamic, static, paged, functional or batching");
}

std::int64_t History::find(std::int64_t, std::span<const std::int32_t>) { return 0; }

Result<std::unique_ptr<History>> make_history(const ModelConfig& config,
                                              const HistoryOptions& options) {
  KVC_ASSIGN_OR_RETURN(const auto layers, options.rows.layers(config, options.dtype));
  const std::optional<DType> dtype = one_dtype(layers);
  if (!dtype.has_value() && options.kind == HistoryKind::kNone) {
    return FreshHistory::create(config, options);
  }
  if (!dtype.has_value() && options.kind != HistoryKind::kPaged) {
    return Status(StatusCode::kUnsupported, std::string("cache: found ") + name_of(options.kind) +
                                                " for rows in " + options.rows.words() +
                                                ", expected paged, batching or none");
  }
  CacheOptions cache;
  cache.dtype = dtype.value_or(options.dtype);
  cache.layout = options.layout;
  cache.memory = options.memory;
  switch (options.kind) {
    case HistoryKind::kNone: {
      KVC_ASSIGN_OR_RETURN(DynamicCache rows, DynamicCache::create(cache));
      return std::unique_ptr<History>(std::make_unique<NoHistory>(std::move(rows), options.layout));
    }
    case HistoryKind::kDynamic: {
      KVC_ASSIGN_OR_RETURN(DynamicCache rows, DynamicCache::create(cache));
      return std::unique_ptr<History>(
          std::make_unique<LayeredHistory>(std::make_unique<DynamicCache>(std::move(rows))));
    }
    case HistoryKind::kStatic: {
      KVC_ASSIGN_OR_RETURN(StaticCache rows,
                           StaticCache::create(options.max_length, config.num_layers, cache));
      return std::unique_ptr<History>(
          std::make_unique<LayeredHistory>(std::make_unique<StaticCache>(std::move(rows))));
    }
    case HistoryKind::kPaged:
      return PagedHistory::create(config, options);
    case HistoryKind::kFunctional:
      return FunctionalHistory::create(config, options);
    case HistoryKind::kBatching:
      break;
  }
  return Status(StatusCode::kInvalidArgument, std::string("cache: found ") + name_of(options.kind) +
                                                  ", expected one that holds a single text");
}

}  // namespace kvcache::runner
