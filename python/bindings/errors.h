// A Status becomes a Python exception with the same message.
#ifndef KVCACHE_PYTHON_BINDINGS_ERRORS_H_
#define KVCACHE_PYTHON_BINDINGS_ERRORS_H_

#include <nanobind/nanobind.h>

#include <string>
#include <utility>

#include "kvcache/status.h"

namespace kvcache::python {

// Adds the exception types RetryLater and NeverFits.
void bind_errors(nanobind::module_& module);

[[noreturn]] void raise(const Status& status);
[[noreturn]] void raise(PyObject* type, const std::string& message);

inline void check(const Status& status) {
  if (!status.ok()) raise(status);
}

template <typename T>
T take(Result<T> result) {
  if (!result.ok()) raise(result.status());
  return std::move(result).value();
}

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_ERRORS_H_
