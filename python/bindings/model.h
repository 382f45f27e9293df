// The runner in Python: Model, its tokenizer, sessions that give logits, texts that grow.
#ifndef KVCACHE_PYTHON_BINDINGS_MODEL_H_
#define KVCACHE_PYTHON_BINDINGS_MODEL_H_

#include <nanobind/nanobind.h>

namespace kvcache::python {

// In model.cc; in model_absent.cc where the libraries of the runner were not found.
void bind_model(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_MODEL_H_
