#include "python/bindings/hf_weights.h"

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "python/bindings/signatures.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

constexpr char kTensors[] = "list[kvcache.typing.Tensor]";
constexpr std::int64_t kElements = 8;  // that are looked at of each tensor, at most

// A name of torch.Tensor's, looked up as quickly as may be.
class Name {
 public:
  explicit Name(const char* text) : name_(PyUnicode_InternFromString(text)) {}

  nb::object of(nb::handle object) const { return checked(PyObject_GetAttr(object.ptr(), name_)); }
  nb::object call(nb::handle object) const {
    return checked(PyObject_CallMethodNoArgs(object.ptr(), name_));
  }

 private:
  static nb::object checked(PyObject* found) {
    if (found == nullptr) throw nb::python_error();
    return nb::steal(found);
  }
  PyObject* name_;
};

struct Names {
  Name is_cpu{"is_cpu"}, version{"_version"}, dtype{"dtype"}, itemsize{"itemsize"};
  Name shape{"shape"}, stride{"stride"}, storage_offset{"storage_offset"}, data_ptr{"data_ptr"};
  Name untyped_storage{"untyped_storage"}, nbytes{"nbytes"}, cdata{"_cdata"};
};

std::int64_t number(nb::handle object) {
  const long long value = PyLong_AsLongLong(object.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
  return value;
}

void add(std::string* state, std::int64_t value) {
  state->append(reinterpret_cast<const char*>(&value), sizeof value);
}

// False: a change of it could not be seen.
bool add_tensor(const Names& names, nb::handle tensor, std::string* state) {
  if (!nb::cast<bool>(names.is_cpu.of(tensor))) return false;
  const nb::object storage = names.untyped_storage.call(tensor);
  const std::int64_t data = number(names.data_ptr.call(tensor));
  const std::int64_t itemsize = number(names.itemsize.of(tensor));
  for (const PyObject* each : {tensor.ptr(), names.dtype.of(tensor).ptr()}) {
    add(state, static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(each)));
  }
  add(state, number(names.cdata.of(storage)));
  add(state, data);
  add(state, number(names.version.of(tensor)));
  // A few elements along a diagonal: from one to the last in steps.
  const nb::object shape = names.shape.of(tensor);
  const nb::object stride = names.stride.call(tensor);
  const auto rank = static_cast<Py_ssize_t>(nb::len(shape));
  std::int64_t count = kElements, begin = 0, step = 0, elements = 1;
  add(state, rank);
  for (Py_ssize_t axis = 0; axis < rank; ++axis) {
    const std::int64_t size = number(PyTuple_GET_ITEM(shape.ptr(), axis));
    const std::int64_t apart = number(PyTuple_GET_ITEM(stride.ptr(), axis));
    add(state, size);
    add(state, apart);
    begin += size / (2 * kElements) * apart;
    step += size / kElements * apart;
    elements *= size;
  }
  count = std::min(count, elements);
  if (count == 0) return true;
  const std::int64_t last = number(names.storage_offset.call(tensor)) + begin + (count - 1) * step;
  if (data == 0 || begin < 0 || step < 0 ||
      (last + 1) * itemsize > number(names.nbytes.call(storage))) {
    return false;
  }
  const char* at = reinterpret_cast<const char*>(static_cast<std::intptr_t>(data));
  for (at += begin * itemsize; count > 0; --count, at += step * itemsize) {
    state->append(at, static_cast<std::size_t>(itemsize));
  }
  return true;
}

std::optional<nb::bytes> weights_state(Given<kTensors> tensors) {
  static const Names names;
  if (!PyList_Check(tensors.ptr())) {
    throw nb::type_error("tensors: found no list, expected one");
  }
  std::string state;
  state.reserve(nb::len(tensors) * 160);
  try {
    for (nb::handle tensor : nb::borrow<nb::list>(tensors)) {
      if (!add_tensor(names, tensor, &state)) return std::nullopt;
    }
  } catch (nb::python_error& error) {
    if (error.matches(PyExc_AttributeError) || error.matches(PyExc_RuntimeError)) {
      return std::nullopt;  // NotImplementedError is a RuntimeError
    }
    throw;
  }
  return nb::bytes(state.data(), state.size());
}

}  // namespace

void bind_weights(nb::module_& hf) {
  hf.def("weights_state", &weights_state, "tensors"_a,
         "What tells tensors from themselves after a change, while they and their memory live: "
         "identity, memory,\nversion, shape and type of each, and a few elements along a diagonal. "
         "What is written through `tensor.data`\ncounts nowhere else: to merge an adapter so "
         "changes nearly all of them. None where a change could not be seen:\nof tensors made in "
         "inference mode, without memory of their own, or elsewhere than in the CPU's.");
}

}  // namespace kvcache::python
