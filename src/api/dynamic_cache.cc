#include "kvcache/dynamic_cache.h"

#include "api/cache_impl.h"
#include "base/door.h"

namespace kvcache {
inline namespace v1 {

Result<DynamicCache> DynamicCache::create(const CacheOptions& options) {
  return internal::at_door([&]() -> Result<DynamicCache> {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, Impl::create(options, 0, 0));
    return DynamicCache(std::move(impl));
  });
}

Result<DynamicCache> DynamicCache::clone() const {
  return internal::at_door([&]() -> Result<DynamicCache> {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, impl_->clone());
    return DynamicCache(std::move(impl));
  });
}

}  // namespace v1
}  // namespace kvcache
