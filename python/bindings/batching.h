// BatchingCache in Python: slots for requests that decode together.
#ifndef KVCACHE_PYTHON_BINDINGS_BATCHING_H_
#define KVCACHE_PYTHON_BINDINGS_BATCHING_H_

#include <nanobind/nanobind.h>

namespace kvcache::python {

void bind_batching(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_BATCHING_H_
