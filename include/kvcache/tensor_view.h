// A view of somebody's memory as a strided tensor. Plain data: owns nothing, copies freely.
#ifndef KVCACHE_TENSOR_VIEW_H_
#define KVCACHE_TENSOR_VIEW_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kvcache/types.h"

namespace kvcache {
inline namespace v1 {

inline constexpr int kMaxRank = 4;

// `Pointer` is const void* (TensorView) or void* (MutableTensorView). Shapes and strides count
// elements, never bytes. A default-constructed view is "no tensor": defined() is false. A tensor
// with an axis of 0 is defined and empty; its data may be null. Rank 0 is a scalar.
template <typename Pointer>
struct BasicTensorView {
  Pointer data = nullptr;
  std::int64_t shape[kMaxRank] = {0, 0, 0, 0};
  std::int64_t strides[kMaxRank] = {0, 0, 0, 0};
  std::int32_t rank = -1;
  DType dtype = DType::kF32;
  Device device;

  constexpr BasicTensorView() = default;

  // A dense row-major tensor. REQUIRES: at most kMaxRank axes.
  BasicTensorView(Pointer data_in, DType dtype_in, std::initializer_list<std::int64_t> shape_in)
      : data(data_in), rank(static_cast<std::int32_t>(shape_in.size())), dtype(dtype_in) {
    int axis = 0;
    for (std::int64_t extent : shape_in) shape[axis++] = extent;
    std::int64_t stride = 1;
    for (axis = rank - 1; axis >= 0; --axis) {
      strides[axis] = stride;
      stride *= shape[axis];
    }
  }

  constexpr bool defined() const noexcept { return rank >= 0; }

  // Product of the extents; 1 for a scalar, 0 for an undefined view.
  constexpr std::int64_t num_elements() const noexcept {
    if (!defined()) return 0;
    std::int64_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= shape[axis];
    return count;
  }
};

using TensorView = BasicTensorView<const void*>;

struct MutableTensorView : BasicTensorView<void*> {
  using BasicTensorView<void*>::BasicTensorView;

  operator TensorView() const noexcept {  // NOLINT: implicit, as T* to const T*
    TensorView view;
    view.data = data;
    for (int axis = 0; axis < kMaxRank; ++axis) {
      view.shape[axis] = shape[axis];
      view.strides[axis] = strides[axis];
    }
    view.rank = rank;
    view.dtype = dtype;
    view.device = device;
    return view;
  }
};

// Keys and values that belong together.
struct KeyValueView {
  TensorView key;
  TensorView value;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_TENSOR_VIEW_H_
