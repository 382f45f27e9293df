// The functional cache in Python: states as values.
#ifndef KVCACHE_PYTHON_BINDINGS_FUNCTIONAL_H_
#define KVCACHE_PYTHON_BINDINGS_FUNCTIONAL_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <mutex>

#include "kvcache/functional.h"
#include "kvcache/memory.h"
#include "kvcache/types.h"
#include "python/bindings/arrays.h"
#include "python/bindings/kv_view.h"

namespace kvcache::python {

// What all states of a history share.
struct History {
  std::shared_ptr<LimitedMemory> memory;
  Layout layout = Layout::kHND;
  DType dtype = DType::kF32;
  std::recursive_mutex mutex;
};

struct PyState {
  std::shared_ptr<History> history;  // outlives the state
  functional::CacheState state;
  Framework framework = Framework::kNumpy;
};

void bind_functional(nanobind::module_& module);

// The view of one layer for attention.
std::unique_ptr<PyKvView> view_of(const PyState& state, std::int64_t layer);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_FUNCTIONAL_H_
