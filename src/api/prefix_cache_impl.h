// What is behind a PrefixCache, for the files that share it.
#ifndef KVCACHE_SRC_API_PREFIX_CACHE_IMPL_H_
#define KVCACHE_SRC_API_PREFIX_CACHE_IMPL_H_

#include <memory>
#include <string>
#include <vector>

#include "api/paged_cache_impl.h"
#include "base/expect.h"
#include "kvcache/prefix.h"

namespace kvcache {
inline namespace v1 {

struct PrefixHandle::Impl {
  std::shared_ptr<PagedCache::Impl> owner;
  const internal::PrefixIndex* index =
      nullptr;  // compared, never followed: handles may live longer
  SequenceId seq{};
  std::int64_t length = 0;
  PrefixMiss reason = PrefixMiss::kNone;

  ~Impl() {
    if (is_alive()) (void)owner->store->release(seq);
  }
  bool is_alive() const noexcept {
    return owner != nullptr && owner->store != nullptr && owner->index.get() == index;
  }
};

struct PrefixCache::Impl {
  struct Pin {
    SequenceId seq;
    std::int32_t last;  // its last block
    std::int64_t length;
  };

  std::shared_ptr<PagedCache::Impl> cache;
  std::vector<Pin> pins;

  ~Impl() {
    if (cache == nullptr || cache->store == nullptr || cache->index == nullptr) return;
    for (const std::int64_t id : cache->store->handles())
      (void)cache->store->release(SequenceId{id});
    cache->index.reset();
  }
  internal::PrefixIndex& index() const noexcept { return *cache->index; }

  Status check_cache() const {
    if (cache->store != nullptr && cache->index != nullptr) return {};
    return internal::refusal(StatusCode::kNotFound, "cache", "one that is gone",
                             "the one it was created over");
  }
  // only: the one namespace whose texts are taken; null: all. May throw bad_alloc.
  [[gnu::visibility("hidden")]] Result<std::int64_t> load(const std::string& path,
                                                          const PrefixNamespace* only,
                                                          const ExecContext& context) const;
  // The sequence behind a handle. Errors: kNotFound.
  Result<const internal::PagedSequence*> sequence(const PrefixHandle::Impl* handle) const {
    KVC_RETURN_IF_ERROR(check_cache());
    if (handle == nullptr || !handle->is_alive() || handle->owner != cache) {
      return internal::refusal(StatusCode::kNotFound, "handle",
                               "one of another cache or moved from", "one of this cache");
    }
    return cache->store->find(handle->seq);
  }
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_SRC_API_PREFIX_CACHE_IMPL_H_
