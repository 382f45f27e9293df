#include "python/bindings/libraries.h"

#include <nanobind/stl/string.h>

#include <string>

#include "python/bindings/errors.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

nb::handle numpy_bfloat16() {
  static nb::handle found;
  if (!found.is_valid()) {
    try {
      nb::object type = nb::module_::import_("ml_dtypes").attr("bfloat16");
      found = nb::module_::import_("numpy").attr("dtype")(type).release();
    } catch (nb::python_error& error) {
      if (!error.matches(PyExc_ImportError)) throw;
      raise(PyExc_ImportError,
            "ml_dtypes: found none, expected it installed (NumPy has no bfloat16 of its own)");
    }
  }
  return found;
}

}  // namespace

std::string text_of(nb::handle object) { return nb::cast<std::string>(nb::str(object)); }

const char* python_name(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
  }
  return "?";
}

const Numpy& numpy() {
  static const Numpy found = [] {
    nb::module_ module = nb::module_::import_("numpy");
    Numpy n;
    n.array_type = nb::object(module.attr("ndarray")).release();
    n.empty = nb::object(module.attr("empty")).release();
    n.asarray = nb::object(module.attr("asarray")).release();
    for (DType dtype : {DType::kF32, DType::kF16, DType::kI32, DType::kI64}) {
      n.dtypes[static_cast<int>(dtype)] = module.attr("dtype")(python_name(dtype)).release();
    }
    return n;
  }();
  return found;
}

nb::handle numpy_dtype(DType dtype) {
  return dtype == DType::kBF16 ? numpy_bfloat16() : numpy().dtypes[static_cast<int>(dtype)];
}

const Torch* torch() {
  static const Torch* found = nullptr;
  if (found != nullptr) return found;
  static nb::handle name = nb::str("torch").release();
  nb::handle modules = PyImport_GetModuleDict();
  nb::handle module = PyDict_GetItemWithError(modules.ptr(), name.ptr());
  if (!module.is_valid() || !nb::hasattr(module, "nn")) return nullptr;
  Torch t;
  t.tensor_type = nb::object(module.attr("Tensor")).release();
  t.parameter_type = nb::object(module.attr("nn").attr("Parameter")).release();
  t.requires_grad = nb::steal(PyUnicode_InternFromString("requires_grad")).release();
  constexpr const char* kExchange = "__dlpack_c_exchange_api__";
  const auto* exchange = static_cast<const DlExchange*>(
      nb::hasattr(t.tensor_type, kExchange)
          ? PyCapsule_GetPointer(nb::object(t.tensor_type.attr(kExchange)).ptr(),
                                 "dlpack_exchange_api")
          : nullptr);
  PyErr_Clear();
  if (exchange == nullptr || exchange->major != 1 || exchange->tensor_from_object == nullptr) {
    raise(PyExc_ImportError, std::string("torch: found ") +
                                 text_of(nb::object(module.attr("__version__"))) +
                                 ", expected 2.10 or newer (its Tensor." + kExchange + ")");
  }
  t.exchange = exchange;
  found = new Torch(t);
  return found;
}

}  // namespace kvcache::python
