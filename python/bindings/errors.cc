#include "python/bindings/errors.h"

#include <exception>
#include <typeinfo>

namespace nb = nanobind;

namespace kvcache::python {
namespace {

PyObject* retry_later = nullptr;
PyObject* never_fits = nullptr;

PyObject* type_of(StatusCode code) noexcept {
  switch (code) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kCorrupt:
      return PyExc_ValueError;
    case StatusCode::kOutOfRange:
      return PyExc_IndexError;
    case StatusCode::kNotFound:
      return PyExc_KeyError;
    case StatusCode::kRetryLater:
      return retry_later;
    case StatusCode::kNeverFits:
      return never_fits;
    case StatusCode::kUnsupported:
      return PyExc_NotImplementedError;
    case StatusCode::kOutOfMemory:
      return PyExc_MemoryError;
    case StatusCode::kIo:
    case StatusCode::kUnavailable:
      return PyExc_OSError;
    case StatusCode::kOk:
    case StatusCode::kInternal:
      return PyExc_RuntimeError;
  }
  return PyExc_RuntimeError;
}

// Lives as long as the process: errors may be raised until the very end.
PyObject* new_type(nb::module_& module, const char* name, const char* doc) {
  const std::string full = std::string("kvcache._core.") + name;
  PyObject* type = PyErr_NewExceptionWithDoc(full.c_str(), doc, PyExc_MemoryError, nullptr);
  if (type == nullptr) throw nb::python_error();
  module.attr(name) = nb::handle(type);
  return type;
}

}  // namespace

void raise(PyObject* type, const std::string& message) {
  PyErr_SetString(type, message.c_str());
  throw nb::python_error();
}

void raise(const Status& status) { raise(type_of(status.code()), status.message()); }

void bind_errors(nb::module_& module) {
  retry_later = new_type(module, "RetryLater",
                         "No room now; there may be once other sequences release their pages.");
  never_fits = new_type(module, "NeverFits", "No room even if every other sequence were released.");
  // Where a method is called on something else than its object.
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::bad_cast&) {
      PyErr_SetString(PyExc_TypeError,
                      "found an object of another type, or one whose __init__ has not run");
    }
  });
}

}  // namespace kvcache::python
