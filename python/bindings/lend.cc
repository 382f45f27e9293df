// Arrays out: memory of ours as arrays, and new arrays.
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/libraries.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

// What a torch tensor over memory of ours holds.
struct Lent {
  DlManaged managed;
  std::int64_t shape[kMaxRank];
  std::int64_t strides[kMaxRank];
  std::shared_ptr<const void> owner;
};

DlType dl_type(DType dtype) {
  const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
  const std::uint8_t code = dtype == DType::kBF16 ? kDlBfloat
                            : is_floating(dtype)  ? kDlFloat
                                                  : kDlInt;
  return {code, bits, 1};
}

const Torch& expect_torch() {
  const Torch* library = torch();
  if (library == nullptr) raise(PyExc_ImportError, "torch: found none, expected it imported");
  return *library;
}

nb::tuple shape_tuple(const std::int64_t* shape, int rank) {
  PyObject* tuple = PyTuple_New(rank);
  if (tuple == nullptr) throw nb::python_error();
  for (int axis = 0; axis < rank; ++axis) {
    PyObject* extent = PyLong_FromLongLong(shape[axis]);
    if (extent == nullptr) {
      Py_DECREF(tuple);
      throw nb::python_error();
    }
    PyTuple_SET_ITEM(tuple, axis, extent);
  }
  return nb::steal<nb::tuple>(tuple);
}

nb::object lend_torch(const TensorView& view, const void* data, std::shared_ptr<const void> owner) {
  const Torch& library = expect_torch();
  auto lent = std::make_unique<Lent>();
  std::copy(std::begin(view.shape), std::end(view.shape), lent->shape);
  std::copy(std::begin(view.strides), std::end(view.strides), lent->strides);
  lent->owner = std::move(owner);
  DlManaged& managed = lent->managed;
  managed.major = 1;
  managed.minor = 0;
  managed.context = lent.get();
  managed.deleter = [](DlManaged* self) { delete static_cast<Lent*>(self->context); };
  managed.flags = 0;
  managed.tensor = {const_cast<void*>(data),
                    {kDlCpu, 0},
                    view.rank,
                    dl_type(view.dtype),
                    lent->shape,
                    lent->strides,
                    0};
  void* object = nullptr;
  if (library.exchange->managed_to_object(&lent.release()->managed, &object) != 0) {
    throw nb::python_error();
  }
  return nb::steal(static_cast<PyObject*>(object));
}

}  // namespace

nb::object lend(const TensorView& view, std::shared_ptr<const void> owner, Framework framework) {
  // Empty tensors may have no memory; arrays have some.
  static const std::int64_t nothing = 0;
  const void* data = view.data != nullptr ? view.data : &nothing;
  if (framework == Framework::kTorch) return lend_torch(view, data, std::move(owner));

  auto holder = std::make_unique<std::shared_ptr<const void>>(std::move(owner));
  nb::capsule capsule(holder.get(), [](void* held) noexcept {
    delete static_cast<std::shared_ptr<const void>*>(held);
  });
  (void)holder.release();
  std::size_t shape[kMaxRank];
  std::copy(std::begin(view.shape), std::end(view.shape), shape);
  DlType type = dl_type(view.dtype);
  if (view.dtype == DType::kBF16) type.code = kDlUInt;
  const nb::dlpack::dtype element{type.code, type.bits, type.lanes};
  const nb::ndarray<nb::numpy, nb::ro> array(data, static_cast<std::size_t>(view.rank), shape,
                                             capsule, view.strides, element, kDlCpu);
  nb::object made = nb::cast(array, nb::rv_policy::reference);
  if (view.dtype != DType::kBF16) return made;
  return made.attr("view")(numpy_dtype(DType::kBF16));
}

void expect_lendable(DType dtype, Framework framework) {
  if (framework == Framework::kTorch) {
    (void)expect_torch();
  } else if (dtype == DType::kBF16) {
    (void)numpy_dtype(dtype);
  }
}

nb::object new_array(Framework framework, DType dtype, const std::int64_t* shape, int rank) {
  if (framework == Framework::kNumpy) {
    return numpy().empty(shape_tuple(shape, rank), numpy_dtype(dtype));
  }
  MutableTensorView view;
  return new_tensor(dtype, shape, rank, &view);
}

nb::object new_tensor(DType dtype, const std::int64_t* shape, int rank, MutableTensorView* view) {
  // Memory of ours: asking torch.empty for it takes longer than all else that a short call does.
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  view->rank = rank;
  view->dtype = dtype;
  std::int64_t bytes = size_of(dtype);
  for (int axis = rank - 1; axis >= 0; --axis) {
    view->shape[axis] = shape[axis];
    view->strides[axis] = bytes / size_of(dtype);
    if (__builtin_mul_overflow(bytes, std::max<std::int64_t>(shape[axis], 1), &bytes)) {
      throw std::bad_alloc();
    }
  }
  const std::shared_ptr<Line[]> memory(new Line[static_cast<std::size_t>(bytes) / 64 + 1]);
  view->data = memory.get();
  return lend_torch(*view, view->data, memory);
}

Int32Array array_of(const std::vector<std::int32_t>& values, std::int64_t rows) {
  const auto count = static_cast<std::int64_t>(values.size());
  const std::int64_t shape[2] = {rows < 0 ? count : rows, rows > 0 ? count / rows : 0};
  nb::object array = new_array(Framework::kNumpy, DType::kI32, shape, rows < 0 ? 1 : 2);
  const Array out("array", array);
  if (count > 0) {
    std::memcpy(const_cast<void*>(out.raw().data), values.data(),
                values.size() * sizeof(std::int32_t));
  }
  return array;
}

}  // namespace kvcache::python
