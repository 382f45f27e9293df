// What tells a model's weights from themselves after a change.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_WEIGHTS_H_
#define KVCACHE_PYTHON_BINDINGS_HF_WEIGHTS_H_

#include <nanobind/nanobind.h>

namespace kvcache::python {

void bind_weights(nanobind::module_& hf);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_WEIGHTS_H_
