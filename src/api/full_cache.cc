#include "kvcache/full_cache.h"

#include "api/cache_impl.h"
#include "base/door.h"

namespace kvcache {
inline namespace v1 {

Result<FullCache> FullCache::create(const CacheOptions& options) {
  return internal::at_door([&]() -> Result<FullCache> {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, Impl::create(options, 0, 1));
    return FullCache(std::move(impl));
  });
}

Result<FullCache> FullCache::clone() const {
  return internal::at_door([&]() -> Result<FullCache> {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, impl_->clone());
    return FullCache(std::move(impl));
  });
}

std::int64_t FullCache::offset() const noexcept {
  const internal::ContiguousLayer* rows = impl_->storage.find(0);
  return rows != nullptr ? rows->length() : 0;
}

KeyValueView FullCache::key_values() const noexcept {
  const Result<KeyValueView> rows = get(0);
  return rows.ok() ? *rows : KeyValueView{};
}

}  // namespace v1
}  // namespace kvcache
