// What goes into a PagedCache in Python: CacheConfig, Append, names of operations; and PageIndices.
#ifndef KVCACHE_PYTHON_BINDINGS_PAGED_CONFIG_H_
#define KVCACHE_PYTHON_BINDINGS_PAGED_CONFIG_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvcache/memory.h"
#include "kvcache/paged_cache.h"

namespace kvcache::python {

struct PyConfig {
  CacheConfig core;
  std::shared_ptr<LimitedMemory> memory;
};

struct PyAppend {
  SequenceId seq{};
  std::int64_t count = 0;
  std::vector<std::int32_t> tokens, parents;
};

inline SequenceId id_of(std::int64_t seq) { return SequenceId{seq}; }

// "fork", "truncate", ... Errors: ValueError.
Operation operation_from(const std::string& name);

void bind_paged_config(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_PAGED_CONFIG_H_
