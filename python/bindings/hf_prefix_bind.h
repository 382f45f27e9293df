// ModelRows and PrefixBatch in Python.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_PREFIX_BIND_H_
#define KVCACHE_PYTHON_BINDINGS_HF_PREFIX_BIND_H_

#include <nanobind/nanobind.h>

namespace kvcache::python {

void bind_model_rows(nanobind::module_& hf);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_PREFIX_BIND_H_
