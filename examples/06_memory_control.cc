// What a cache weighs, before and after; a budget; and the ways to make a text shorter.
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView;

void say(const char* what, const kvcache::Cache& cache) {
  std::printf("%-24s %5lld tokens, next position %5lld, %4lld KiB of rows, %4lld KiB held\n", what,
              static_cast<long long>(*cache.seq_length()),
              static_cast<long long>(*cache.next_position()),
              static_cast<long long>(cache.nbytes() / 1024),
              static_cast<long long>(cache.reserved_bytes() / 1024));
}

kvcache::Status run() {
  // One layer of 2 heads of 64 in bf16, planned for 2 000 tokens.
  const auto spec = kvcache::LayerSpec::kv(2, 64, 64, DType::kBF16);
  kvcache::MemoryPlanRequest request;
  request.layers = {&spec, 1};
  request.seq_length = 2000;
  KVC_ASSIGN_OR_RETURN(const auto planned,
                       kvcache::plan_memory(kvcache::CacheKind::kDynamic, request));
  std::printf("planned: %lld KiB of rows, %lld KiB held\n",
              static_cast<long long>(planned.nbytes / 1024),
              static_cast<long long>(planned.reserved_bytes / 1024));

  // A budget of exactly that: the 2 000 tokens fit, twice as many do not.
  kvcache::LimitedMemory budget(planned.reserved_bytes);
  kvcache::CacheOptions options;
  options.dtype = DType::kBF16;
  options.memory = &budget;
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create(options));
  const std::vector<float> rows(2 * 2000 * 64, 0.5f);
  const TensorView text(rows.data(), DType::kF32, {1, 2, 2000, 64});
  KVC_RETURN_IF_ERROR(cache.update(text, text).status());
  say("2 000 tokens", cache);
  const kvcache::Status refused = cache.update(text, text).status();
  std::printf("2 000 more: %s\n", refused.to_string().c_str());
  say("unchanged", cache);

  KVC_RETURN_IF_ERROR(cache.crop(1024));  // the most recent; positions go on
  say("crop(1024)", cache);
  KVC_RETURN_IF_ERROR(cache.truncate(1000));  // the first
  say("truncate(1000)", cache);
  KVC_RETURN_IF_ERROR(cache.rewind(100));  // without the newest
  say("rewind(100)", cache);
  cache.shrink();
  say("shrink()", cache);
  cache.reset();
  say("reset()", cache);
  return refused.code() == kvcache::StatusCode::kOutOfMemory ? kvcache::Status() : refused;
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
