// What is behind a layered cache. Shared by cache.cc and the two classes derived there.
#ifndef KVCACHE_SRC_API_CACHE_IMPL_H_
#define KVCACHE_SRC_API_CACHE_IMPL_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "cache/layered_storage.h"
#include "kvcache/cache.h"
#include "kvcache/status.h"

namespace kvcache {

struct Cache::Impl {
  Impl(const internal::StorageOptions& options, std::int64_t num_layers)
      : storage(options, num_layers) {}
  explicit Impl(internal::LayeredStorage&& rows) noexcept : storage(std::move(rows)) {}

  // Checks what both kinds of cache are given. `capacity` and `num_layers` are 0 for one that
  // grows. May throw bad_alloc.
  static Result<std::unique_ptr<Impl>> create(const CacheOptions& options, std::int64_t capacity,
                                              std::int64_t num_layers);

  Result<std::unique_ptr<Impl>> clone() const;

  bool fixed() const noexcept { return storage.options().fixed_capacity > 0; }

  internal::LayeredStorage storage;
};

namespace internal {

// Layers of one cache: bounds what a wrong index may allocate.
inline constexpr std::int64_t kMaxLayers = 1 << 16;

}  // namespace internal
}  // namespace kvcache

#endif  // KVCACHE_SRC_API_CACHE_IMPL_H_
