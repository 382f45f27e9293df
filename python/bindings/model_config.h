// ModelConfig in Python.
#ifndef KVCACHE_PYTHON_BINDINGS_MODEL_CONFIG_H_
#define KVCACHE_PYTHON_BINDINGS_MODEL_CONFIG_H_

#include <nanobind/nanobind.h>

namespace kvcache::python {

void bind_model_config(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_MODEL_CONFIG_H_
