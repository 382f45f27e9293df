// FullCache: a dynamic cache of one layer, for use inside an attention layer.
#ifndef KVCACHE_FULL_CACHE_H_
#define KVCACHE_FULL_CACHE_H_

#include <cstdint>
#include <optional>

#include "kvcache/cache.h"

namespace kvcache {
inline namespace v1 {

// Every call of Cache, and those of its only layer's handle. Other layers are kOutOfRange.
class KVC_API FullCache final : public Cache {
 public:
  // Errors: those of DynamicCache::create.
  static Result<FullCache> create(const CacheOptions& options = {});

  FullCache(FullCache&&) noexcept = default;
  FullCache& operator=(FullCache&&) noexcept = default;

  // See LayerHandle.
  Result<LayerFetch> update_and_fetch(const TensorView& key, const TensorView& value,
                                      std::optional<std::int64_t> mask_length = {},
                                      const Mask& mask = {}, const ExecContext& context = {}) {
    return layer(0).update_and_fetch(key, value, mask_length, mask, context);
  }

  // Tokens stored.
  std::int64_t offset() const noexcept;

  // The filled rows; undefined tensors if there never were any.
  KeyValueView key_values() const noexcept;

  // A deep copy of the rows, in memory of its own.
  Result<FullCache> clone() const;

 private:
  using Cache::Cache;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_FULL_CACHE_H_
