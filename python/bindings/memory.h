// Where rows live and where work runs, in Python: LimitedMemory, ThreadPool; and what a cache will
// weigh.
#ifndef KVCACHE_PYTHON_BINDINGS_MEMORY_H_
#define KVCACHE_PYTHON_BINDINGS_MEMORY_H_

#include <nanobind/nanobind.h>

#include "kvcache/executor.h"

namespace kvcache::python {

void bind_memory(nanobind::module_& module);

// What an `executor` argument stands for: None or a ThreadPool, which must live through the call.
ExecContext context_from(nanobind::handle executor);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_MEMORY_H_
