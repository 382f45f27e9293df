// What is behind a layered cache. Shared by cache.cc, the classes derived from Cache, and those
// that take a cache's rows over.
#ifndef KVCACHE_SRC_API_CACHE_IMPL_H_
#define KVCACHE_SRC_API_CACHE_IMPL_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "cache/contiguous/decoded.h"
#include "cache/contiguous/storage.h"
#include "kvcache/cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache {

struct Cache::Impl {
  Impl(const internal::StorageOptions& options, std::int64_t num_layers)
      : storage(options, num_layers), fixed_layers(num_layers) {}
  Impl(internal::LayeredStorage&& rows, std::int64_t num_layers) noexcept
      : storage(std::move(rows)), fixed_layers(num_layers) {}

  // Hidden one by one: a class within an exported class is exported too.

  // Checks what all kinds of cache are given. `capacity` is 0 for rows that grow, `num_layers` for
  // layers that appear when they are used. May throw bad_alloc.
  [[gnu::visibility("hidden")]] static Result<std::unique_ptr<Impl>> create(
      const CacheOptions& options, std::int64_t capacity, std::int64_t num_layers);

  [[gnu::visibility("hidden")]] Result<std::unique_ptr<Impl>> clone() const;

  // Where layers appear when they are used, every layer that could appear exists. May throw
  // bad_alloc.
  [[gnu::visibility("hidden")]] Status check_layer(std::int64_t layer) const;

  // All rows of a layer as tensors: those of coded buffers decoded, once until the next change. May
  // throw bad_alloc. Thread safety: as const calls of Cache.
  [[gnu::visibility("hidden")]] Result<KeyValueView> rows(std::int64_t layer) const;

  // The same of a layer that was just changed, decoded into room made before. REQUIRES: a place for
  // it in `decoded`.
  [[gnu::visibility("hidden")]] KeyValueView hand_out(std::int64_t layer,
                                                      std::shared_ptr<internal::DecodedRows> room,
                                                      const ExecContext& context) const noexcept;

  // Lets copies go that are handed out until rows change.
  [[gnu::visibility("hidden")]] void changed() noexcept {
    for (auto& copy : decoded) copy.reset();
  }

  internal::LayeredStorage storage;
  std::int64_t fixed_layers = 0;  // as given to create()
  mutable std::mutex mutex;       // of what const calls decode
  mutable std::vector<std::shared_ptr<internal::DecodedRows>> decoded;  // by layer
  mutable std::int64_t decoded_bytes = 0;
};

namespace internal {

// mask_length of update_and_fetch: none, or the number of new tokens of `key`. A key that is no
// tensor of rank 4 is left to the checks that follow. May throw bad_alloc.
Status check_mask_length(std::optional<std::int64_t> mask_length, const TensorView& key,
                         Layout layout);

}  // namespace internal
}  // namespace kvcache

#endif  // KVCACHE_SRC_API_CACHE_IMPL_H_
