#include "kvcache/static_cache.h"

#include <string>

#include "api/cache_impl.h"
#include "base/door.h"
#include "base/expect.h"

namespace kvcache {
inline namespace v0 {

Result<StaticCache> StaticCache::create(std::int64_t max_length, std::int64_t num_layers,
                                        const CacheOptions& options) {
  return internal::at_door([&]() -> Result<StaticCache> {
    KVC_RETURN_IF_ERROR(internal::expect_at_least("max_length", max_length, 1));
    KVC_RETURN_IF_ERROR(
        internal::expect_between("num_layers", num_layers, 1, internal::kMaxLayers));
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, Impl::create(options, max_length, num_layers));
    return StaticCache(std::move(impl));
  });
}

Result<StaticCache> StaticCache::clone() const {
  return internal::at_door([&]() -> Result<StaticCache> {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, impl_->clone());
    return StaticCache(std::move(impl));
  });
}

}  // namespace v0
}  // namespace kvcache
