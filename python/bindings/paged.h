// PagedCache and its steps in Python.
#ifndef KVCACHE_PYTHON_BINDINGS_PAGED_H_
#define KVCACHE_PYTHON_BINDINGS_PAGED_H_

#include <nanobind/nanobind.h>

namespace kvcache::python {

void bind_paged(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_PAGED_H_
