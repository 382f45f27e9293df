// Where rows live and where work runs, in Python: LimitedMemory, ThreadPool; and what a cache will
// weigh.
#ifndef KVCACHE_PYTHON_BINDINGS_MEMORY_H_
#define KVCACHE_PYTHON_BINDINGS_MEMORY_H_

#include <nanobind/nanobind.h>

#include <optional>
#include <string>

#include "kvcache/executor.h"
#include "kvcache/row_format.h"
#include "kvcache/types.h"

namespace kvcache::python {

void bind_memory(nanobind::module_& module);

// What an `executor` argument stands for: None or a ThreadPool, which must live through the call.
ExecContext context_from(nanobind::handle executor);

// A `k_format` argument, None or the name of a coded form, beside `rotate`: None leaves it to the
// form. `dtype` is that of plain rows, and of copies of coded ones. Errors: ValueError.
RowFormat format_from(const char* name, const std::optional<std::string>& form, DType dtype,
                      std::optional<bool> rotate);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_MEMORY_H_
