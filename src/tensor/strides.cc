#include "tensor/strides.h"

#include <cstring>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"

namespace kvcache::internal {
namespace {

KvExtents by_name(const std::int64_t (&axes)[kMaxRank], Layout layout) noexcept {
  const KvAxes at = axes_of(layout);
  return {axes[at.batch], axes[at.head], axes[at.seq], axes[at.dim]};
}

template <typename View, typename Pointer>
View make_kv_tensor(Pointer data, DType dtype, Layout layout, const KvExtents& extents,
                    const KvExtents& strides) noexcept {
  View view;
  view.data = data;
  view.dtype = dtype;
  view.rank = 4;
  const KvAxes at = axes_of(layout);
  view.shape[at.batch] = extents.batch;
  view.shape[at.head] = extents.heads;
  view.shape[at.seq] = extents.length;
  view.shape[at.dim] = extents.dim;
  view.strides[at.batch] = strides.batch;
  view.strides[at.head] = strides.heads;
  view.strides[at.seq] = strides.length;
  view.strides[at.dim] = strides.dim;
  return view;
}

std::int64_t byte_offset(const TensorView& view, std::int64_t i0, std::int64_t i1, std::int64_t i2,
                         std::int64_t i3) noexcept {
  const std::int64_t index[kMaxRank] = {i0, i1, i2, i3};
  std::int64_t offset = 0;
  for (int axis = 0; axis < view.rank; ++axis) offset += index[axis] * view.strides[axis];
  return offset * size_of(view.dtype);
}

// Whether the first and the last byte of a tensor that is not empty lie within int64 of its data.
bool spans_fit(const TensorView& view) noexcept {
  std::int64_t elements = 1;
  std::int64_t reach = 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    const std::int64_t stride = view.strides[axis];
    std::int64_t step = 0;
    if (!checked_mul(elements, view.shape[axis], &elements)) return false;
    if (stride == INT64_MIN) return false;
    if (!checked_mul(view.shape[axis] - 1, stride < 0 ? -stride : stride, &step)) return false;
    if (!checked_add(reach, step, &reach)) return false;
  }
  std::int64_t bytes = 0;
  return checked_mul(elements, size_of(view.dtype), &bytes) && checked_add(reach, 1, &reach) &&
         checked_mul(reach, size_of(view.dtype), &bytes);
}

template <typename T>
std::int64_t load_index(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

}  // namespace

KvExtents kv_extents(const TensorView& view, Layout layout) noexcept {
  return by_name(view.shape, layout);
}

KvExtents kv_strides(const TensorView& view, Layout layout) noexcept {
  return by_name(view.strides, layout);
}

MutableTensorView kv_tensor(void* data, DType dtype, Layout layout, const KvExtents& extents,
                            const KvExtents& strides) noexcept {
  return make_kv_tensor<MutableTensorView>(data, dtype, layout, extents, strides);
}

TensorView kv_tensor(const void* data, DType dtype, Layout layout, const KvExtents& extents,
                     const KvExtents& strides) noexcept {
  return make_kv_tensor<TensorView>(data, dtype, layout, extents, strides);
}

const std::byte* element_at(const TensorView& view, std::int64_t i0, std::int64_t i1,
                            std::int64_t i2, std::int64_t i3) noexcept {
  return static_cast<const std::byte*>(view.data) + byte_offset(view, i0, i1, i2, i3);
}

std::byte* element_at(const MutableTensorView& view, std::int64_t i0, std::int64_t i1,
                      std::int64_t i2, std::int64_t i3) noexcept {
  return static_cast<std::byte*>(view.data) + byte_offset(view, i0, i1, i2, i3);
}

bool is_contiguous(const TensorView& view) noexcept {
  if (view.num_elements() == 0) return view.defined();
  std::int64_t dense = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    if (view.shape[axis] != 1 && view.strides[axis] != dense) return false;
    dense *= view.shape[axis];
  }
  return true;
}

std::string describe_shape(const std::int64_t* shape, int rank) {
  std::string text = "[";
  for (int axis = 0; axis < rank; ++axis) {
    if (axis > 0) text += ", ";
    text += shape[axis] == kAnyExtent ? "*" : std::to_string(shape[axis]);
  }
  return text + "]";
}

std::string describe(const Device& device) {
  return (device.kind == DeviceKind::kCpu    ? "cpu:"
          : device.kind == DeviceKind::kCuda ? "cuda:"
                                             : "device of an unknown kind:") +
         std::to_string(device.index);
}

std::string describe(const TensorView& view) {
  if (!view.defined()) return "none";
  if (view.rank > kMaxRank) return "rank " + std::to_string(view.rank);
  // A negative extent of a tensor is a number, not a star.
  std::string text = "[";
  for (int axis = 0; axis < view.rank; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(view.shape[axis]);
  }
  return text + "] " + name_of(view.dtype);
}

Status expect_tensor(const char* name, const TensorView& view) {
  if (!view.defined()) return refusal(name, "none", "a tensor");
  if (view.rank > kMaxRank) {
    return refusal(name, describe(view), "rank 0 .. " + std::to_string(kMaxRank));
  }
  if (size_of(view.dtype) == 0) return refusal(name, describe(view), "a known dtype");
  bool empty = false;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] < 0) return refusal(name, describe(view), "extents of at least 0");
    empty = empty || view.shape[axis] == 0;
  }
  if (view.device.kind != DeviceKind::kCpu) {
    return refusal(StatusCode::kUnavailable, name, describe(view.device), "a tensor of the CPU");
  }
  if (empty) return {};
  if (!spans_fit(view)) return refusal(name, describe(view), "a size below 2^63 bytes");
  if (view.data == nullptr) return refusal(name, describe(view) + " without data", "data");
  return {};
}

Status expect_rank(const char* name, const TensorView& view, int rank) {
  if (view.rank == rank) return {};
  return refusal(name, describe(view), "rank " + std::to_string(rank));
}

Status expect_dtype_floating(const char* name, const TensorView& view) {
  if (view.defined() && is_floating(view.dtype)) return {};
  return refusal(name, describe(view), "f32, f16 or bf16");
}

Status expect_dtype(const char* name, const TensorView& view, DType dtype) {
  if (view.defined() && view.dtype == dtype) return {};
  return refusal(name, describe(view), name_of(dtype));
}

Status expect_shape(const char* name, const TensorView& view,
                    std::initializer_list<std::int64_t> shape) {
  return expect_shape(name, view, shape.begin(), static_cast<int>(shape.size()));
}

Status expect_shape(const char* name, const TensorView& view, const std::int64_t* shape, int rank) {
  bool same = view.rank == rank;
  for (int axis = 0; same && axis < rank; ++axis) {
    same = shape[axis] == kAnyExtent ? view.shape[axis] >= 0 : view.shape[axis] == shape[axis];
  }
  if (same) return {};
  const std::string found = view.defined() && view.rank <= kMaxRank
                                ? describe_shape(view.shape, view.rank)
                                : describe(view);
  return refusal(name, found, describe_shape(shape, rank));
}

Status expect_kv(const char* name, const TensorView& view, Layout layout,
                 const KvExtents& extents) {
  KVC_RETURN_IF_ERROR(expect_tensor(name, view));
  KVC_RETURN_IF_ERROR(expect_dtype_floating(name, view));
  std::int64_t shape[kMaxRank];
  const KvAxes at = axes_of(layout);
  shape[at.batch] = extents.batch;
  shape[at.head] = extents.heads;
  shape[at.seq] = extents.length;
  shape[at.dim] = extents.dim;
  return expect_shape(name, view, shape, kMaxRank);
}

Result<std::vector<std::int64_t>> read_indices(const char* name, const TensorView& view) {
  KVC_RETURN_IF_ERROR(expect_tensor(name, view));
  if (view.dtype != DType::kI32 && view.dtype != DType::kI64) {
    return refusal(name, describe(view), "i32 or i64");
  }
  if (view.rank > 2) return refusal(name, describe(view), "rank 0, 1 or 2");
  // As a matrix: a scalar is [1, 1], a list [1, n].
  const std::int64_t rows = view.rank == 2 ? view.shape[0] : 1;
  const std::int64_t columns = view.rank == 0 ? 1 : view.shape[view.rank - 1];
  const std::int64_t size = size_of(view.dtype);
  const std::int64_t row_stride = view.rank == 2 ? view.strides[0] * size : 0;
  const std::int64_t stride = view.rank == 0 ? 0 : view.strides[view.rank - 1] * size;
  std::vector<std::int64_t> values;
  if (rows == 0 || columns == 0) return values;
  values.reserve(static_cast<std::size_t>(rows * columns));
  const std::byte* data = static_cast<const std::byte*>(view.data);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const std::byte* from = data + row * row_stride + column * stride;
      values.push_back(view.dtype == DType::kI32 ? load_index<std::int32_t>(from)
                                                 : load_index<std::int64_t>(from));
    }
  }
  return values;
}

}  // namespace kvcache::internal
