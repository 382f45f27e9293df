// Element types, layouts and devices: the words of every other header.
#ifndef KVCACHE_TYPES_H_
#define KVCACHE_TYPES_H_

#include <cstdint>

#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// Element type of a tensor. Rows of a cache are floating; indices and positions are kI32 or kI64.
enum class DType : std::uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2, kI32 = 3, kI64 = 4 };

// Size of one element in bytes.
constexpr std::int64_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI64:
      return 8;
  }
  return 0;
}

constexpr bool is_floating(DType dtype) noexcept {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

// "f32", "f16", "bf16", "i32", "i64"; "?" for a value that is none of them.
KVC_API const char* name_of(DType dtype) noexcept;

// IEEE 754 binary16 and bfloat16 as stored bits. Arithmetic is done in float.
struct Float16 {
  std::uint16_t bits = 0;
};
struct BFloat16 {
  std::uint16_t bits = 0;
};

// Widening is exact; narrowing rounds to nearest, ties to even; NaN stays NaN (quiet), values past
// the largest finite become infinite, f16 denormals are kept.
KVC_API float to_float(Float16 value) noexcept;
KVC_API float to_float(BFloat16 value) noexcept;
KVC_API Float16 to_float16(float value) noexcept;
KVC_API BFloat16 to_bfloat16(float value) noexcept;

// Order of the axes of K and V, in storage and in the tensors that go in and come out.
//   kHND  head-first      [batch, num_kv_heads, seq, head_dim]   (the default)
//   kNHD  sequence-first  [batch, seq, num_kv_heads, head_dim]
enum class Layout : std::uint8_t { kHND = 0, kNHD = 1 };

// "hnd", "nhd".
KVC_API const char* name_of(Layout layout) noexcept;

enum class DeviceKind : std::uint8_t { kCpu = 0, kCuda = 1 };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  std::int32_t index = 0;

  friend constexpr bool operator==(const Device&, const Device&) = default;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_TYPES_H_
