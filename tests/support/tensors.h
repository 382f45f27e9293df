// Owned tensors for tests: built from nested values, read back as float.
//
//   T({1, 2, 3})                     T[1,2,3] of docs: one batch row, one head, head_dim 1
//   rows({{1, 2}, {3, 4}})           {[1,2],[3,4]}: batch rows of one head, head_dim 1
//   tensor({2, 3}, {0, 1, ...})      any shape, row-major
//   iota({2, 3, 4, 8})               0, 1, 2, ...
//   values(view)                     what a view shows, row-major, whatever its strides and type
#ifndef KVCACHE_TESTS_SUPPORT_TENSORS_H_
#define KVCACHE_TESTS_SUPPORT_TENSORS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "kvcache/tensor_view.h"
#include "kvcache/types.h"

namespace kvcache::testing {

// A dense row-major tensor that owns its memory. Converts to the views of the library.
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DType dtype, std::vector<std::int64_t> shape)
      : dtype_(dtype), shape_(std::move(shape)) {
    bytes_.resize(static_cast<std::size_t>(num_elements() * size_of(dtype)));
  }

  DType dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t num_elements() const {
    std::int64_t count = 1;
    for (std::int64_t extent : shape_) count *= extent;
    return count;
  }

  // The value of element `i` in row-major order, rounded to the tensor's type.
  template <typename Value>
  void set(std::int64_t i, Value value) {
    std::byte* at = bytes_.data() + i * size_of(dtype_);
    switch (dtype_) {
      case DType::kF32:
        return store(at, static_cast<float>(value));
      case DType::kF16:
        return store(at, to_float16(static_cast<float>(value)));
      case DType::kBF16:
        return store(at, to_bfloat16(static_cast<float>(value)));
      case DType::kI32:
        return store(at, static_cast<std::int32_t>(value));
      case DType::kI64:
        return store(at, static_cast<std::int64_t>(value));
    }
  }

  MutableTensorView mutable_view() {
    MutableTensorView view;
    fill(&view);
    view.data = bytes_.data();
    return view;
  }
  TensorView view() const {
    TensorView view;
    fill(&view);
    view.data = bytes_.data();
    return view;
  }
  operator TensorView() const { return view(); }  // NOLINT: implicit, tests read better

 private:
  template <typename V>
  static void store(std::byte* at, V value) {
    std::memcpy(at, &value, sizeof(value));
  }
  template <typename View>
  void fill(View* view) const {
    view->rank = static_cast<std::int32_t>(shape_.size());
    view->dtype = dtype_;
    std::int64_t stride = 1;
    for (int axis = view->rank - 1; axis >= 0; --axis) {
      view->shape[axis] = shape_[static_cast<std::size_t>(axis)];
      view->strides[axis] = stride;
      stride *= view->shape[axis];
    }
  }

  DType dtype_ = DType::kF32;
  std::vector<std::int64_t> shape_;
  std::vector<std::byte> bytes_;
};

// `values` in row-major order; REQUIRES: as many as the shape holds.
template <typename Value>
HostTensor tensor_of(std::vector<std::int64_t> shape, const std::vector<Value>& values,
                     DType dtype = DType::kF32) {
  HostTensor result(dtype, std::move(shape));
  std::int64_t i = 0;
  for (Value value : values) result.set(i++, value);
  return result;
}
inline HostTensor tensor(std::vector<std::int64_t> shape, std::initializer_list<double> values,
                         DType dtype = DType::kF32) {
  return tensor_of(std::move(shape), std::vector<double>(values), dtype);
}

// first, first + 1, ...: exact in every type as long as they stay small.
inline HostTensor iota(std::vector<std::int64_t> shape, DType dtype = DType::kF32,
                       double first = 0) {
  HostTensor result(dtype, std::move(shape));
  for (std::int64_t i = 0; i < result.num_elements(); ++i) {
    result.set(i, first + static_cast<double>(i));
  }
  return result;
}

// {[..],[..]}: batch rows of one head and head_dim 1. REQUIRES: equal lengths.
inline HostTensor rows(const std::vector<std::vector<double>>& batch, DType dtype = DType::kF32,
                       Layout layout = Layout::kHND) {
  const auto b = static_cast<std::int64_t>(batch.size());
  const auto t = static_cast<std::int64_t>(batch.empty() ? 0 : batch.front().size());
  std::vector<double> flat;
  for (const auto& row : batch) flat.insert(flat.end(), row.begin(), row.end());
  if (layout == Layout::kHND) return tensor_of<double>({b, 1, t, 1}, flat, dtype);
  return tensor_of<double>({b, t, 1, 1}, flat, dtype);
}

// T[a,b,...].
inline HostTensor T(const std::vector<double>& tokens, DType dtype = DType::kF32,
                    Layout layout = Layout::kHND) {
  return rows({tokens}, dtype, layout);
}

// Index tensors: scalar, [n] and [m, n].
inline HostTensor index(std::int64_t value, DType dtype = DType::kI64) {
  return tensor_of<std::int64_t>({}, {value}, dtype);
}
inline HostTensor indices(const std::vector<std::int64_t>& list, DType dtype = DType::kI64) {
  return tensor_of<std::int64_t>({static_cast<std::int64_t>(list.size())}, list, dtype);
}
inline HostTensor index_table(const std::vector<std::vector<std::int64_t>>& table,
                              DType dtype = DType::kI64) {
  std::vector<std::int64_t> flat;
  for (const auto& row : table) flat.insert(flat.end(), row.begin(), row.end());
  const auto columns = static_cast<std::int64_t>(table.empty() ? 0 : table.front().size());
  return tensor_of<std::int64_t>({static_cast<std::int64_t>(table.size()), columns}, flat, dtype);
}

// One element of a tensor as double, whatever its type.
inline double read_element(const void* at, DType dtype) {
  const auto load = [at](auto value) {
    std::memcpy(&value, at, sizeof(value));
    return value;
  };
  switch (dtype) {
    case DType::kF32:
      return static_cast<double>(load(float{}));
    case DType::kF16:
      return static_cast<double>(to_float(load(Float16{})));
    case DType::kBF16:
      return static_cast<double>(to_float(load(BFloat16{})));
    case DType::kI32:
      return static_cast<double>(load(std::int32_t{}));
    case DType::kI64:
      return static_cast<double>(load(std::int64_t{}));
  }
  return 0;
}

// What the view shows, row-major, through its strides.
inline std::vector<float> values(const TensorView& view) {
  std::vector<float> result;
  const std::int64_t count = view.num_elements();
  result.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i;
    std::int64_t offset = 0;
    for (int axis = view.rank - 1; axis >= 0; --axis) {
      offset += rest % view.shape[axis] * view.strides[axis];
      rest /= view.shape[axis];
    }
    const std::byte* at = static_cast<const std::byte*>(view.data) + offset * size_of(view.dtype);
    result.push_back(static_cast<float>(read_element(at, view.dtype)));
  }
  return result;
}

inline std::vector<std::int64_t> shape_of(const TensorView& view) {
  return {view.shape, view.shape + (view.defined() ? view.rank : 0)};
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_TENSORS_H_
