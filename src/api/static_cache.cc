#include "kvcache/static_cache.h"

#include <string>

#include "api/cache_impl.h"
#include "base/door.h"

namespace kvcache {
inline namespace v0 {

Result<StaticCache> StaticCache::create(std::int64_t max_length, std::int64_t num_layers,
                                        const CacheOptions& options) {
  return internal::at_door([&]() -> Result<StaticCache> {
    if (max_length < 1) {
      return Status(StatusCode::kInvalidArgument,
                    "max_length: found " + std::to_string(max_length) + ", expected at least 1");
    }
    if (num_layers < 1 || num_layers > internal::kMaxLayers) {
      return Status(StatusCode::kInvalidArgument,
                    "num_layers: found " + std::to_string(num_layers) + ", expected 1 .. " +
                        std::to_string(internal::kMaxLayers));
    }
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
