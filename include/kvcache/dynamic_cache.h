// DynamicCache: grows with the text; no bound but memory.
#ifndef KVCACHE_DYNAMIC_CACHE_H_
#define KVCACHE_DYNAMIC_CACHE_H_

#include "kvcache/cache.h"

namespace kvcache {
inline namespace v1 {

// Layers appear when they are first used (a skipped one has length 0). Growth copies no rows:
// address space is reserved ahead and committed as it is filled.
class KVC_API DynamicCache final : public Cache {
 public:
  // Errors: kInvalidArgument for reserve_tokens < 1 or a dtype that is not floating.
  static Result<DynamicCache> create(const CacheOptions& options = {});

  DynamicCache(DynamicCache&&) noexcept = default;
  DynamicCache& operator=(DynamicCache&&) noexcept = default;

  // A deep copy of the rows, in memory of its own.
  Result<DynamicCache> clone() const;

 private:
  using Cache::Cache;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_DYNAMIC_CACHE_H_
