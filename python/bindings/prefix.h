// PrefixCache in Python: its handles, and counters as a dict.
#ifndef KVCACHE_PYTHON_BINDINGS_PREFIX_H_
#define KVCACHE_PYTHON_BINDINGS_PREFIX_H_

#include <nanobind/nanobind.h>

#include "kvcache/prefix.h"

namespace kvcache::python {

// PrefixStats by its names; misses by the words of their reasons.
nanobind::dict prefix_stats(const PrefixStats& stats);

void bind_prefix(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_PREFIX_H_
