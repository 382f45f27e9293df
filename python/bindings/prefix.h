// PrefixCache in Python: its handles, and counters as a dict.
#ifndef KVCACHE_PYTHON_BINDINGS_PREFIX_H_
#define KVCACHE_PYTHON_BINDINGS_PREFIX_H_

#include <nanobind/nanobind.h>

#include <cstdint>

#include "kvcache/prefix.h"

namespace kvcache::python {

// Bytes of the caller's, at most 32, as a namespace. Errors: TypeError, ValueError.
PrefixNamespace space_from(nanobind::handle name, std::int64_t tenant);

// PrefixStats by its names; misses by the words of their reasons.
nanobind::dict prefix_stats(const PrefixStats& stats);

void bind_prefix(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_PREFIX_H_
