// StaticCache: a fixed number of layers and tokens, allocated once.
#ifndef KVCACHE_STATIC_CACHE_H_
#define KVCACHE_STATIC_CACHE_H_

#include "kvcache/cache.h"

namespace kvcache {
inline namespace v1 {

// A layer's shape is fixed, and its whole capacity committed, by its first successful update;
// reset, batch_select and batch_repeat_interleave may change the batch. Updates past the capacity
// are kOutOfRange and name capacity, length and request.
class KVC_API StaticCache final : public Cache {
 public:
  // Errors: kInvalidArgument for max_length < 1, num_layers < 1 or a dtype that is not floating.
  static Result<StaticCache> create(std::int64_t max_length, std::int64_t num_layers,
                                    const CacheOptions& options = {});

  StaticCache(StaticCache&&) noexcept = default;
  StaticCache& operator=(StaticCache&&) noexcept = default;

  // A deep copy of the rows, in memory of its own.
  Result<StaticCache> clone() const;

 private:
  using Cache::Cache;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_STATIC_CACHE_H_
