// The layered caches in Python: KVCache, and what else holds one.
#ifndef KVCACHE_PYTHON_BINDINGS_LAYERED_H_
#define KVCACHE_PYTHON_BINDINGS_LAYERED_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "kvcache/cache.h"
#include "kvcache/memory.h"
#include "kvcache/types.h"
#include "python/bindings/arrays.h"
#include "python/bindings/kv_view.h"
#include "python/bindings/signatures.h"

namespace kvcache::python {

enum class Kind : std::uint8_t { kDynamic, kStatic, kFull };

// What a PyCache is made of.
struct CacheParts {
  Kind kind = Kind::kDynamic;
  std::shared_ptr<LimitedMemory> memory;  // outlives the cache
  std::unique_ptr<Cache> cache;
  std::optional<DType> dtype;
  std::int64_t reserve_tokens = 0;                // of growing ones
  std::optional<std::string> k_format, v_format;  // as they were given
  std::optional<bool> rotate;
  Framework framework = Framework::kNumpy;  // of the arrays that came in last
  std::int64_t last_count = 0;              // tokens of the last update
};

// KVCache: any of the three kinds.
struct PyCache : CacheParts {
  explicit PyCache(CacheParts parts) noexcept : CacheParts(std::move(parts)) {}

  mutable std::recursive_mutex mutex;

  // Rows that outlive the cache, with the memory they lie in. REQUIRES: a Turn.
  std::shared_ptr<const void> retain(std::int64_t layer) const;
};

struct PyDynamic : PyCache {
  using PyCache::PyCache;
};
struct PyStatic : PyCache {
  using PyCache::PyCache;
};
struct PyFull : PyCache {
  using PyCache::PyCache;
};

// One layer of a cache, which it keeps alive.
struct PyLayer {
  nanobind::object owner;
  PyCache* cache = nullptr;
  std::int64_t layer = 0;
};

void bind_layered(nanobind::module_& module);
void bind_layered_files(nanobind::class_<PyCache>& cache);  // save, load and the same as bytes

// The view of one layer for attention.
std::unique_ptr<PyKvView> view_of(const PyCache& cache, std::int64_t layer);

// (K, V) as arrays. REQUIRES: both defined.
AnyPair lend_pair(const KeyValueView& rows, const std::shared_ptr<const void>& owner,
                  Framework framework);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_LAYERED_H_
