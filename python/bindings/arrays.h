// Arrays of Python, in and out without copies.
//
// In: NumPy arrays and whatever else has the buffer protocol, PyTorch CPU tensors and whatever else
// speaks DLPack; any strides. Out: NumPy arrays (read-only) or PyTorch tensors over memory of ours
// that a shared owner keeps alive.
#ifndef KVCACHE_PYTHON_BINDINGS_ARRAYS_H_
#define KVCACHE_PYTHON_BINDINGS_ARRAYS_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "python/bindings/dlpack.h"
#include "python/bindings/libraries.h"
#include "python/bindings/signatures.h"

namespace kvcache::python {

// Whose arrays come out: those of the library that the arrays came in from.
enum class Framework : std::uint8_t { kNumpy, kTorch };

// The element types that arrays may have here, those of the core and some that are converted.
enum class Element : std::uint8_t { kF32, kF16, kBF16, kI32, kI64, kF64, kBool, kOther };

// Memory of a Python object, borrowed until this is destroyed (with the GIL held). Move-only; what
// was moved from is only destroyed.
class Array {
 public:
  Array() noexcept = default;

  // Reads `object`, any element type. Errors: TypeError for what is no array, ValueError for more
  // than four axes, another byte order, elements off their natural alignment, tensors that require
  // a gradient; OSError for memory of CUDA, NotImplementedError for that of another device.
  Array(const char* name, nanobind::handle object);

  // A tensor of numbers: ValueError for elements that are not float32, float16 or bfloat16.
  const TensorView& view(const char* name) const;
  // For writing: ValueError for a read-only array, too.
  MutableTensorView writable(const char* name) const;

  bool defined() const noexcept { return raw_.rank >= 0; }
  Element element() const noexcept { return element_; }
  // Extents, strides in elements and data, whatever the element type.
  const TensorView& raw() const noexcept { return raw_; }
  Framework framework() const noexcept { return framework_; }
  // Holds on to the memory that a tensor of PyTorch has now, and not to what it is given later by
  // set_() or .data.
  void keep_memory();
  // For an array that is read again in a later call. Errors: ValueError if its memory has been
  // replaced or its extents have changed since, as resize() does.
  void expect_memory(const char* name) const;
  // "[2, 3] float64"
  std::string describe() const;

 private:
  struct Release {
    void operator()(Py_buffer* buffer) const noexcept;
  };

  void read_buffer(const char* name, nanobind::handle object);
  void read_dlpack(const char* name, nanobind::handle object);
  void set(const char* name, const DlTensor& tensor);
  void expect_aligned(const char* name) const;

  TensorView raw_;
  Element element_ = Element::kOther;
  Framework framework_ = Framework::kNumpy;
  bool read_only_ = false;
  std::string type_name_;     // of Element::kOther
  nanobind::object object_;   // what is borrowed from
  nanobind::object capsule_;  // of DLPack
  std::unique_ptr<Py_buffer, Release> buffer_;
};

// A torch.Tensor that can be read as it is: elements of a type of the core in strided memory of the
// CPU, no type derived from Tensor, nothing that autograd follows. None for all others, and no
// error: `Array` knows what they are. Borrowed from `object`.
std::optional<TensorView> plain_tensor(nanobind::handle object);

// Numbers of a 0-, 1- or 2-axis index array: a Python int, lists of them, or an int32 / int64
// array.
class Indices {
 public:
  Indices(const char* name, nanobind::handle object);
  Indices(const Indices&) = delete;
  Indices& operator=(const Indices&) = delete;
  TensorView view() const noexcept { return view_; }

 private:
  Array array_;
  std::int64_t scalar_ = 0;
  TensorView view_;
};

// int32 values of a 1-axis index array. Errors: ValueError, also for a value beyond int32.
std::vector<std::int32_t> int32_values(const char* name, nanobind::handle object);
std::vector<std::int64_t> int64_values(const char* name, nanobind::handle object);

// A floating array of any floating type (f64, too) as dense float32 values.
std::vector<float> float_values(const Array& array, const char* name);
// A floating or boolean array (0 where true, -inf where false) as an additive float32 mask over the
// values returned, `*converted`: four axes, each number of a broadcast axis once. Errors:
// ValueError.
std::vector<float> additive_values(const Array& array, const char* name, TensorView* converted);
// The same tensor with axes of 1 before its own, four in all.
TensorView with_leading_axes(TensorView view) noexcept;
// An array, or a list of numbers made one.
Array number_array(const char* name, nanobind::handle object);

// A word that was given, for an error: a string or a number as it is, cut where it is long;
// anything else by its type, since a tensor's own words are all of its elements.
std::string found_word(nanobind::handle object);

// "f32", "float32", numpy.float16, torch.bfloat16, ml_dtypes.bfloat16, ...; None is none.
std::optional<DType> dtype_from(nanobind::handle object, const char* name = "dtype");
// "hnd" or "nhd".
Layout layout_from(nanobind::handle object);

// Memory of ours as an array. `owner` lives as long as the array does; it may go on any thread,
// without the GIL. NumPy arrays are read-only. Errors: ImportError for bfloat16 in NumPy without
// ml_dtypes.
nanobind::object lend(const TensorView& view, std::shared_ptr<const void> owner,
                      Framework framework);

// Raises now what lend() of this type would raise later.
void expect_lendable(DType dtype, Framework framework);

// A new array of the framework, its contents not set.
nanobind::object new_array(Framework framework, DType dtype, const std::int64_t* shape, int rank);
// The same of PyTorch; `view` becomes its memory.
nanobind::object new_tensor(DType dtype, const std::int64_t* shape, int rank,
                            MutableTensorView* view);

// A new array of values of ours.
Int32Array array_of(const std::vector<std::int32_t>& values, std::int64_t rows = -1);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_ARRAYS_H_
