// What kvcache.hf needs of C++: a paged layer for torch tensors, and attention over them.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_H_
#define KVCACHE_PYTHON_BINDINGS_HF_H_

#include <nanobind/nanobind.h>

namespace kvcache::python {

// Adds the submodule `hf`, whose names are for kvcache.hf alone.
void bind_hf(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_H_
