#include "tensor/convert.h"

#include <cstring>

#include "tensor/half.h"

namespace kvcache::internal {
namespace {

// How each type is stored, and how it goes to float and back.
struct F32 {
  using Stored = float;
  static float widen(float value) noexcept { return value; }
  static float narrow(float value) noexcept { return value; }
};
struct F16 {
  using Stored = std::uint16_t;
  static float widen(std::uint16_t bits) noexcept { return f16_to_f32(bits); }
  static std::uint16_t narrow(float value) noexcept { return f32_to_f16(value); }
};
struct BF16 {
  using Stored = std::uint16_t;
  static float widen(std::uint16_t bits) noexcept { return bf16_to_f32(bits); }
  static std::uint16_t narrow(float value) noexcept { return f32_to_bf16(value); }
};

// Elements are read and written through memcpy: rows of the caller need no alignment.
template <typename T>
T load(const char* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
void store(char* to, T value) noexcept {
  std::memcpy(to, &value, sizeof(T));
}

// Strides in bytes.
using RowFn = void (*)(const char* src, std::int64_t src_stride, char* dst, std::int64_t dst_stride,
                       std::int64_t count);

template <typename From, typename To>
void convert(const char* src, std::int64_t src_stride, char* dst, std::int64_t dst_stride,
             std::int64_t count) noexcept {
  using In = typename From::Stored;
  using Out = typename To::Stored;
  constexpr std::int64_t kIn = sizeof(In);
  constexpr std::int64_t kOut = sizeof(Out);
  if (src_stride == kIn && dst_stride == kOut) {
    for (std::int64_t i = 0; i < count; ++i) {
      store<Out>(dst + i * kOut, To::narrow(From::widen(load<In>(src + i * kIn))));
    }
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    store<Out>(dst + i * dst_stride, To::narrow(From::widen(load<In>(src + i * src_stride))));
  }
}

// Equal types: bits are moved, so that NaN payloads survive.
template <typename T>
void move_bits(const char* src, std::int64_t src_stride, char* dst, std::int64_t dst_stride,
               std::int64_t count) noexcept {
  constexpr std::int64_t kSize = sizeof(T);
  if (src_stride == kSize && dst_stride == kSize) {
    std::memcpy(dst, src, static_cast<std::size_t>(count * kSize));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    store<T>(dst + i * dst_stride, load<T>(src + i * src_stride));
  }
}

template <typename From>
RowFn row_fn_from(DType to) noexcept {
  switch (to) {
    case DType::kF16:
      return convert<From, F16>;
    case DType::kBF16:
      return convert<From, BF16>;
    default:
      return convert<From, F32>;
  }
}

RowFn row_fn(DType from, DType to) noexcept {
  if (from == to) return size_of(from) == 4 ? move_bits<std::uint32_t> : move_bits<std::uint16_t>;
  switch (from) {
    case DType::kF16:
      return row_fn_from<F16>(to);
    case DType::kBF16:
      return row_fn_from<BF16>(to);
    default:
      return row_fn_from<F32>(to);
  }
}

}  // namespace

void convert_row(const void* src, DType src_dtype, std::int64_t src_stride, void* dst,
                 DType dst_dtype, std::int64_t count) noexcept {
  if (count <= 0) return;
  row_fn(src_dtype, dst_dtype)(static_cast<const char*>(src), src_stride * size_of(src_dtype),
                               static_cast<char*>(dst), size_of(dst_dtype), count);
}

void copy_rows(const RowCopy& copy) noexcept {
  const RowFn fn = row_fn(copy.src_dtype, copy.dst_dtype);
  for_each_row(copy, size_of(copy.src_dtype), size_of(copy.dst_dtype), fn);
}

RowCopy row_copy(const TensorView& src, const MutableTensorView& dst) noexcept {
  RowCopy copy;
  copy.src = src.data;
  copy.dst = dst.data;
  copy.src_dtype = src.dtype;
  copy.dst_dtype = dst.dtype;
  for (int axis = 0; axis < 4; ++axis) {
    copy.shape[axis] = src.shape[axis];
    copy.src_strides[axis] = src.strides[axis] * size_of(src.dtype);
    copy.dst_strides[axis] = dst.strides[axis] * size_of(dst.dtype);
  }
  return copy;
}

}  // namespace kvcache::internal
