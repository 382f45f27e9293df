// PagedCache, its steps and its batches in Python.
#ifndef KVCACHE_PYTHON_BINDINGS_PAGED_H_
#define KVCACHE_PYTHON_BINDINGS_PAGED_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <mutex>
#include <utility>

#include "kvcache/paged_cache.h"
#include "python/bindings/arrays.h"
#include "python/bindings/paged_config.h"

namespace kvcache::python {

struct PyPaged {
  PyConfig config;
  PagedCache cache;
  Framework framework = Framework::kNumpy;  // of the rows written last
  std::int64_t last_count = 0;              // most new tokens of a sequence in the last step
  mutable std::recursive_mutex mutex;       // of the cache, and of its batches

  PyPaged(PyConfig given, PagedCache made) noexcept
      : config(std::move(given)), cache(std::move(made)) {}
};

void bind_paged(nanobind::module_& module);
void bind_paged_files(nanobind::class_<PyPaged>& paged);  // save, load and the same as bytes
void bind_paged_batch(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_PAGED_H_
