// Files of caches of transformers, in Python.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_FILES_H_
#define KVCACHE_PYTHON_BINDINGS_HF_FILES_H_

#include <nanobind/nanobind.h>

#include "python/bindings/hf_paged.h"

namespace kvcache::python {

void bind_hf_files(nanobind::module_& hf, nanobind::class_<PagedLayer>& layer);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_FILES_H_
