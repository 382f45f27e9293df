#include "python/bindings/arrays.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <utility>

#include "python/bindings/errors.h"
#include "python/bindings/libraries.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

// --- Element types. ---

static_assert(static_cast<int>(Element::kI64) == static_cast<int>(DType::kI64));

bool is_core(Element element) { return element <= Element::kI64; }

// 1 for a type that is not read.
std::size_t element_bytes(Element element) {
  switch (element) {
    case Element::kF16:
    case Element::kBF16:
      return 2;
    case Element::kF32:
    case Element::kI32:
      return 4;
    case Element::kI64:
    case Element::kF64:
      return 8;
    case Element::kBool:
    case Element::kOther:
      return 1;
  }
  return 1;
}

Element element_of(const DlType& type) {
  if (type.lanes != 1) return Element::kOther;
  if (type.code == kDlFloat && type.bits == 32) return Element::kF32;
  if (type.code == kDlFloat && type.bits == 16) return Element::kF16;
  if (type.code == kDlFloat && type.bits == 64) return Element::kF64;
  if (type.code == kDlBfloat && type.bits == 16) return Element::kBF16;
  if (type.code == kDlInt && type.bits == 32) return Element::kI32;
  if (type.code == kDlInt && type.bits == 64) return Element::kI64;
  if (type.code == kDlBool && type.bits == 8) return Element::kBool;
  return Element::kOther;
}

// A format of the struct module, one element.
Element element_of(const char* name, const char* format, std::int64_t bytes) {
  if (format == nullptr) return Element::kOther;
  const bool swapped = *format == '>' || *format == '!';
  if (std::strchr("@=<>!", *format) != nullptr && *format != '\0') ++format;
  if (*format == '\0' || format[1] != '\0') return Element::kOther;
  if (swapped && bytes > 1) {
    raise(PyExc_ValueError, std::string(name) +
                                ": found elements in big-endian order, expected that of this "
                                "machine");
  }
  switch (*format) {
    case 'e':
      return Element::kF16;
    case 'f':
      return Element::kF32;
    case 'd':
      return Element::kF64;
    case '?':
      return Element::kBool;
    case 'i':
    case 'l':
    case 'q':
      return bytes == 4 ? Element::kI32 : bytes == 8 ? Element::kI64 : Element::kOther;
    default:
      return Element::kOther;
  }
}

std::string shape_text(const std::int64_t* shape, int rank) {
  std::string text = "[";
  for (int axis = 0; axis < rank; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(shape[axis]);
  }
  return text + "]";
}

void expect_rank(const char* name, const std::int64_t* shape, int rank) {
  if (rank <= kMaxRank) return;
  raise(PyExc_ValueError, std::string(name) + ": found shape " + shape_text(shape, rank) +
                              ", expected at most " + std::to_string(kMaxRank) + " axes");
}

// For memory of a device that kvcache knows and has no backend for.
[[noreturn]] void raise_unavailable(const char* name, const std::string& device) {
  raise(Status(StatusCode::kUnavailable,
               std::string(name) + ": found " + device + ", expected a tensor of the CPU"));
}

// For a torch tensor that has no memory to read: of another device, sparse, ...
[[noreturn]] void raise_no_memory(const char* name, nb::handle tensor) {
  const std::string device = text_of(nb::object(tensor.attr("device")));
  const std::string layout = text_of(nb::object(tensor.attr("layout")));
  raise(device == "cpu" ? PyExc_ValueError : PyExc_NotImplementedError,
        std::string(name) + ": found a tensor on " + device + " of layout " + layout +
            ", expected one on cpu of layout torch.strided");
}

// Memory, extents and strides. REQUIRES: at most kMaxRank axes.
TensorView view_of(const DlTensor& tensor) {
  TensorView view;
  view.data = static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
  view.rank = tensor.rank;
  std::int64_t dense = 1;
  for (int axis = tensor.rank - 1; axis >= 0; --axis) {
    view.shape[axis] = tensor.shape[axis];
    const bool given = tensor.strides != nullptr && tensor.shape[axis] > 1;
    view.strides[axis] = given ? tensor.strides[axis] : dense;
    dense *= std::max<std::int64_t>(view.shape[axis], 1);
  }
  return view;
}

bool is_aligned(const TensorView& view, Element element) {
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  return address % element_bytes(element) == 0 || view.num_elements() == 0;
}

bool is_numpy(nb::handle object) { return is_instance(object, numpy().array_type); }

}  // namespace

Array::Array(const char* name, nb::handle object) : object_(nb::borrow(object)) {
  if (is_numpy(object)) {
    read_buffer(name, object);
    return;
  }
  const Torch* library = torch();
  if (library != nullptr && is_instance(object, library->tensor_type)) {
    framework_ = Framework::kTorch;
    if (nb::cast<bool>(object.attr(library->requires_grad))) {
      raise(PyExc_ValueError, std::string(name) +
                                  ": found a tensor that requires a gradient, expected one without "
                                  "(see torch.Tensor.detach and torch.no_grad)");
    }
    // A type derived from Tensor may have no memory; its __dlpack__ knows.
    if (object.type().is(library->tensor_type) || object.type().is(library->parameter_type)) {
      DlTensor tensor;
      if (library->exchange->tensor_from_object(object.ptr(), &tensor) != 0) {
        PyErr_Clear();
        raise_no_memory(name, object);
      }
      set(name, tensor);
      return;
    }
  }
  if (nb::hasattr(object.type(), "__dlpack__")) {
    read_dlpack(name, object);
  } else if (PyObject_CheckBuffer(object.ptr())) {
    read_buffer(name, object);
  } else {
    raise(PyExc_TypeError, std::string(name) + ": found " + nb::type_name(object.type()).c_str() +
                               ", expected an array");
  }
}

void Array::Release::operator()(Py_buffer* buffer) const noexcept {
  PyBuffer_Release(buffer);
  delete buffer;
}

void Array::read_buffer(const char* name, nb::handle object) {
  auto raw = std::make_unique<Py_buffer>();
  if (PyObject_GetBuffer(object.ptr(), raw.get(), PyBUF_RECORDS_RO) != 0) {
    // NumPy lends no buffer of a type that it does not know itself, but the same bits as integers.
    if (!is_numpy(object)) throw nb::python_error();
    PyErr_Clear();
    if (text_of(nb::object(object.attr("dtype"))) != "bfloat16") {
      element_ = Element::kOther;
      // That of a derived class may be anything.
      const nb::tuple shape(nb::object(object.attr("shape")));
      raw_.rank = static_cast<std::int32_t>(std::min<std::size_t>(shape.size(), kMaxRank));
      for (int i = 0; i < raw_.rank; ++i) {
        if (nb::try_cast(nb::object(shape[i]), raw_.shape[i])) continue;
        raise(PyExc_TypeError, std::string(name) + ": found a shape of " +
                                   nb::type_name(nb::object(shape[i]).type()).c_str() +
                                   ", expected int");
      }
      return;
    }
    nb::object bits = object.attr("view")("uint16");
    if (PyObject_GetBuffer(bits.ptr(), raw.get(), PyBUF_RECORDS_RO) != 0) {
      throw nb::python_error();
    }
    element_ = Element::kBF16;
  } else {
    element_ = Element::kOther;
  }
  buffer_.reset(raw.release());
  const Py_buffer& b = *buffer_;
  if (element_ == Element::kBF16 && b.itemsize != 2) {  // the view() of a derived class
    raise(PyExc_ValueError, std::string(name) + ": found bfloat16 of " +
                                std::to_string(b.itemsize) + " bytes, expected 2");
  }
  if (element_ != Element::kBF16) element_ = element_of(name, b.format, b.itemsize);
  if (element_ == Element::kOther && b.format != nullptr) type_name_ = b.format;
  if (b.ndim > kMaxRank) {
    raise(PyExc_ValueError, std::string(name) + ": found " + std::to_string(b.ndim) +
                                " axes, expected at most " + std::to_string(kMaxRank));
  }
  read_only_ = b.readonly != 0;
  raw_.data = b.buf;
  raw_.rank = b.ndim;
  std::int64_t dense = 1;
  for (int axis = b.ndim - 1; axis >= 0; --axis) {
    raw_.shape[axis] = b.shape[axis];
    if (b.shape[axis] <= 1 || b.strides == nullptr) {  // ctypes says nothing of dense arrays
      raw_.strides[axis] = dense;
    } else if (element_ != Element::kOther && b.strides[axis] % b.itemsize != 0) {
      raise(PyExc_ValueError, std::string(name) + ": found a stride of " +
                                  std::to_string(b.strides[axis]) +
                                  " bytes, expected a multiple of the " +
                                  std::to_string(b.itemsize) + " of an element");
    } else {
      raw_.strides[axis] = b.strides[axis] / std::max<Py_ssize_t>(b.itemsize, 1);
    }
    dense *= std::max<std::int64_t>(raw_.shape[axis], 1);
  }
  expect_aligned(name);
  if (is_core(element_)) raw_.dtype = static_cast<DType>(element_);
}

void Array::expect_aligned(const char* name) const {
  if (is_aligned(raw_, element_)) return;
  raise(PyExc_ValueError, std::string(name) +
                              ": found elements off their natural alignment, expected aligned "
                              "ones");
}

void Array::read_dlpack(const char* name, nb::handle object) {
  nb::object method = object.attr("__dlpack__");
  try {
    capsule_ = method(nb::arg("max_version") = nb::make_tuple(1, 0));
  } catch (nb::python_error& error) {  // from before version 1 of the standard
    if (!error.matches(PyExc_TypeError)) throw;
    capsule_ = method();
  }
  if (PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned")) {
    const auto* managed =
        static_cast<const DlManaged*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned"));
    if (managed->major != 1) {
      raise(PyExc_ValueError, std::string(name) + ": found DLPack version " +
                                  std::to_string(managed->major) + ", expected 1");
    }
    read_only_ = (managed->flags & kDlReadOnly) != 0;
    set(name, managed->tensor);
  } else if (PyCapsule_IsValid(capsule_.ptr(), "dltensor")) {
    set(name,
        static_cast<const DlManagedOld*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"))->tensor);
  } else {
    raise(PyExc_TypeError, std::string(name) + ": found a __dlpack__ that gives no DLPack tensor");
  }
}

void Array::set(const char* name, const DlTensor& tensor) {
  if (tensor.device.type == kDlCuda) {
    raise_unavailable(name, "cuda:" + std::to_string(tensor.device.index));
  }
  if (tensor.device.type != kDlCpu) {
    if (framework_ == Framework::kTorch) raise_no_memory(name, object_);
    raise(PyExc_NotImplementedError, std::string(name) + ": found a tensor on device " +
                                         std::to_string(tensor.device.type) +
                                         " of DLPack, expected one on the CPU");
  }
  expect_rank(name, tensor.shape, tensor.rank);
  element_ = element_of(tensor.type);
  if (element_ == Element::kOther) {
    type_name_ = "DLPack type " + std::to_string(tensor.type.code) + " of " +
                 std::to_string(tensor.type.bits) + " bits";
  }
  raw_ = view_of(tensor);
  expect_aligned(name);
  if (is_core(element_)) raw_.dtype = static_cast<DType>(element_);
}

std::optional<TensorView> plain_tensor(nb::handle object) {
  const Torch* library = torch();
  if (library == nullptr || !object.type().is(library->tensor_type)) return std::nullopt;
  const nb::object followed = object.attr(library->requires_grad);
  if (followed.ptr() != Py_False) return std::nullopt;
  DlTensor tensor;
  if (library->exchange->tensor_from_object(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  const Element element = element_of(tensor.type);
  if (tensor.device.type != kDlCpu || tensor.rank > kMaxRank || !is_core(element)) {
    return std::nullopt;
  }
  TensorView view = view_of(tensor);
  view.dtype = static_cast<DType>(element);
  if (!is_aligned(view, element)) return std::nullopt;
  return view;
}

void Array::keep_memory() {
  if (framework_ == Framework::kTorch) object_ = object_.attr("detach")();
}

void Array::expect_memory(const char* name) const {
  if (!object_.is_valid() || capsule_.is_valid()) return;  // a capsule's memory is held as it is
  const Array now(name, object_);
  const int rank = raw_.rank;
  if (now.raw_.data == raw_.data && now.element_ == element_ && now.raw_.rank == rank &&
      std::equal(raw_.shape, raw_.shape + rank, now.raw_.shape) &&
      std::equal(raw_.strides, raw_.strides + rank, now.raw_.strides)) {
    return;
  }
  raise(PyExc_ValueError, std::string(name) + ": found " + now.describe() +
                              " in other memory than before, expected " + describe() +
                              " where it was");
}

std::string Array::describe() const {
  std::string type = is_core(element_)            ? python_name(static_cast<DType>(element_))
                     : element_ == Element::kF64  ? "float64"
                     : element_ == Element::kBool ? "bool"
                                                  : type_name_;
  if (element_ == Element::kOther) {
    if (object_.is_valid() && nb::hasattr(object_, "dtype")) {
      type = text_of(nb::object(object_.attr("dtype")));
    }
  }
  return shape_text(raw_.shape, raw_.rank) + " " + type;
}

const TensorView& Array::view(const char* name) const {
  if (element_ <= Element::kBF16) return raw_;
  raise(PyExc_ValueError,
        std::string(name) + ": found " + describe() + ", expected float32, float16 or bfloat16");
}

MutableTensorView Array::writable(const char* name) const {
  const TensorView& read = view(name);
  if (read_only_) {
    raise(PyExc_ValueError,
          std::string(name) + ": found a read-only array, expected one that can be written to");
  }
  MutableTensorView out;
  out.data = const_cast<void*>(read.data);
  std::copy(std::begin(read.shape), std::end(read.shape), std::begin(out.shape));
  std::copy(std::begin(read.strides), std::end(read.strides), std::begin(out.strides));
  out.rank = read.rank;
  out.dtype = read.dtype;
  return out;
}

Indices::Indices(const char* name, nb::handle object) {
  if (PyLong_Check(object.ptr()) && !PyBool_Check(object.ptr())) {
    scalar_ = PyLong_AsLongLong(object.ptr());
    if (scalar_ == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      raise(PyExc_ValueError,
            std::string(name) + ": found " + found_word(object) + ", expected an int64");
    }
    view_ = TensorView(&scalar_, DType::kI64, {});
    return;
  }
  if (PyList_Check(object.ptr()) || PyTuple_Check(object.ptr())) {
    const bool empty = PyObject_Length(object.ptr()) == 0;
    nb::object array = empty ? numpy().empty(0, numpy_dtype(DType::kI64)) : numpy().asarray(object);
    array_ = Array(name, array);
  } else {
    array_ = Array(name, object);
  }
  if (array_.element() != Element::kI32 && array_.element() != Element::kI64) {
    raise(PyExc_ValueError,
          std::string(name) + ": found " + array_.describe() + ", expected int32 or int64");
  }
  view_ = array_.raw();
}

std::vector<std::int64_t> int64_values(const char* name, nb::handle object) {
  const Indices indices(name, object);
  const TensorView view = indices.view();
  if (view.rank != 1) {
    raise(PyExc_ValueError, std::string(name) + ": found shape " +
                                shape_text(view.shape, view.rank) + ", expected one axis");
  }
  if (view.shape[0] > std::numeric_limits<std::int32_t>::max()) {  // of one number, broadcast
    raise(PyExc_ValueError, std::string(name) + ": found " + std::to_string(view.shape[0]) +
                                " entries, expected fewer than 2^31");
  }
  std::vector<std::int64_t> values(static_cast<std::size_t>(view.shape[0]));
  for (std::int64_t i = 0; i < view.shape[0]; ++i) {
    const std::int64_t at = i * view.strides[0];
    values[static_cast<std::size_t>(i)] = view.dtype == DType::kI32
                                              ? static_cast<const std::int32_t*>(view.data)[at]
                                              : static_cast<const std::int64_t*>(view.data)[at];
  }
  return values;
}

std::vector<std::int32_t> int32_values(const char* name, nb::handle object) {
  const std::vector<std::int64_t> wide = int64_values(name, object);
  std::vector<std::int32_t> values;
  values.reserve(wide.size());
  for (std::int64_t value : wide) {
    if (value < std::numeric_limits<std::int32_t>::min() ||
        value > std::numeric_limits<std::int32_t>::max()) {
      raise(PyExc_ValueError,
            std::string(name) + ": found " + std::to_string(value) + ", expected an int32");
    }
    values.push_back(static_cast<std::int32_t>(value));
  }
  return values;
}

namespace {

float float_at(const void* data, Element element, std::int64_t index) {
  switch (element) {
    case Element::kF32:
      return static_cast<const float*>(data)[index];
    case Element::kF64:
      return static_cast<float>(static_cast<const double*>(data)[index]);
    case Element::kF16:
      return to_float(static_cast<const Float16*>(data)[index]);
    case Element::kBool:
      return static_cast<const std::uint8_t*>(data)[index] != 0
                 ? 0.0f
                 : -std::numeric_limits<float>::infinity();
    default:
      return to_float(static_cast<const BFloat16*>(data)[index]);
  }
}

// Row-major, booleans as an additive mask. REQUIRES: floating or boolean.
std::vector<float> all_floats(TensorView v, Element element) {
  v = with_leading_axes(v);
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(v.num_elements()));
  for (std::int64_t a = 0; a < v.shape[0]; ++a) {
    for (std::int64_t b = 0; b < v.shape[1]; ++b) {
      for (std::int64_t c = 0; c < v.shape[2]; ++c) {
        for (std::int64_t d = 0; d < v.shape[3]; ++d) {
          values.push_back(
              float_at(v.data, element,
                       a * v.strides[0] + b * v.strides[1] + c * v.strides[2] + d * v.strides[3]));
        }
      }
    }
  }
  return values;
}

}  // namespace

TensorView with_leading_axes(TensorView view) noexcept {
  while (view.rank < kMaxRank) {
    for (int axis = view.rank; axis > 0; --axis) {
      view.shape[axis] = view.shape[axis - 1];
      view.strides[axis] = view.strides[axis - 1];
    }
    view.shape[0] = 1;
    view.strides[0] = 0;
    ++view.rank;
  }
  return view;
}

std::vector<float> float_values(const Array& array, const char* name) {
  if (array.element() > Element::kBF16 && array.element() != Element::kF64) {
    raise(PyExc_ValueError,
          std::string(name) + ": found " + array.describe() + ", expected floating numbers");
  }
  return all_floats(array.raw(), array.element());
}

std::vector<float> additive_values(const Array& array, const char* name, TensorView* converted) {
  if (array.element() == Element::kI32 || array.element() == Element::kI64 ||
      array.element() == Element::kOther) {
    raise(PyExc_ValueError, std::string(name) + ": found " + array.describe() +
                                ", expected floating numbers or booleans");
  }
  TensorView once = with_leading_axes(array.raw());
  *converted = once;
  for (int axis = 0; axis < kMaxRank; ++axis) {
    if (once.strides[axis] == 0 && once.shape[axis] > 1) once.shape[axis] = 1;
  }
  std::vector<float> values = all_floats(once, array.element());
  std::int64_t dense = 1;
  for (int axis = kMaxRank - 1; axis >= 0; --axis) {
    converted->strides[axis] = once.strides[axis] == 0 ? 0 : dense;
    dense *= once.shape[axis];
  }
  converted->data = values.data();
  converted->dtype = DType::kF32;
  return values;
}

Array number_array(const char* name, nb::handle object) {
  if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) return Array(name, object);
  const nb::object array = numpy().asarray(object);
  const nb::object dtype = array.attr("dtype");
  const std::string kind = text_of(nb::object(dtype.attr("kind")));
  if (kind != "f" && kind != "i" && kind != "u") {  // text and booleans would convert, too
    raise(PyExc_ValueError,
          std::string(name) + ": found a list of " + text_of(dtype) + ", expected numbers");
  }
  return Array(name, array.attr("astype")(numpy_dtype(DType::kF32)));
}

// --- Words. ---

std::string found_word(nb::handle object) {
  if (!nb::isinstance<nb::str>(object) && !PyLong_Check(object.ptr()) &&
      !PyFloat_Check(object.ptr()) && !PyType_Check(object.ptr()) && !object.is_none()) {
    return nb::type_name(object.type()).c_str();
  }
  constexpr std::size_t kMost = 60;
  std::string word;
  try {
    word = text_of(object);
  } catch (nb::python_error&) {  // an int of too many digits
    PyErr_Clear();
    return nb::type_name(object.type()).c_str();
  }
  if (word.size() <= kMost) return word;
  std::size_t cut = kMost;
  while ((static_cast<unsigned char>(word[cut]) & 0xc0) == 0x80) --cut;  // not within a character
  return word.substr(0, cut) + "...";
}

std::optional<DType> dtype_from(nb::handle object, const char* name) {
  if (object.is_none()) return {};
  std::string text;
  if (nb::isinstance<nb::str>(object)) {
    text = nb::cast<std::string>(object);
  } else if (PyType_Check(object.ptr())) {  // numpy.float32, ml_dtypes.bfloat16
    text = nb::cast<std::string>(object.attr("__name__"));
  } else {  // numpy.dtype("float32"), torch.float32
    text = text_of(object);
  }
  if (text.starts_with("torch.")) text.erase(0, 6);
  for (int i = 0; i < 5; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (text == python_name(dtype) || text == name_of(dtype)) return dtype;
  }
  raise(PyExc_ValueError, std::string(name) + ": found " + found_word(object) +
                              ", expected float32, float16 or bfloat16");
}

Layout layout_from(nb::handle object) {
  const std::string text = nb::isinstance<nb::str>(object) ? nb::cast<std::string>(object) : "";
  if (text == "hnd" || text == "HND") return Layout::kHND;
  if (text == "nhd" || text == "NHD") return Layout::kNHD;
  raise(PyExc_ValueError, "layout: found " + found_word(object) + ", expected hnd or nhd");
}

}  // namespace kvcache::python
