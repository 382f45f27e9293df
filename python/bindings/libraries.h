// The array libraries that are known: NumPy, and PyTorch where the program has imported it. What is
// held of them lives as long as the process.
#ifndef KVCACHE_PYTHON_BINDINGS_LIBRARIES_H_
#define KVCACHE_PYTHON_BINDINGS_LIBRARIES_H_

#include <nanobind/nanobind.h>

#include <string>

#include "kvcache/types.h"
#include "python/bindings/dlpack.h"

namespace kvcache::python {

struct Numpy {
  nanobind::handle array_type;
  nanobind::handle empty;
  nanobind::handle asarray;
  nanobind::handle dtypes[5];  // by DType, but for bfloat16: see numpy_dtype()
};
const Numpy& numpy();

// Errors: ImportError for bfloat16 without ml_dtypes.
nanobind::handle numpy_dtype(DType dtype);

struct Torch {
  nanobind::handle tensor_type;
  nanobind::handle parameter_type;
  nanobind::handle requires_grad;  // the word, as attributes are looked up quickest
  const DlExchange* exchange = nullptr;
};

// Null if the program has not imported it; never imports it. Errors: ImportError if it is too old.
const Torch* torch();

// As both say it: "float32".
const char* python_name(DType dtype) noexcept;

// str(object).
std::string text_of(nanobind::handle object);

// Whether `object` is an instance of `type` or a type derived from it.
inline bool is_instance(nanobind::handle object, nanobind::handle type) {
  return PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(type.ptr()));
}

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_LIBRARIES_H_
