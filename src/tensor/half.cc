#include "tensor/half.h"

#include "kvcache/types.h"

namespace kvcache {
inline namespace v1 {

float to_float(Float16 value) noexcept { return internal::f16_to_f32(value.bits); }
float to_float(BFloat16 value) noexcept { return internal::bf16_to_f32(value.bits); }
Float16 to_float16(float value) noexcept { return {internal::f32_to_f16(value)}; }
BFloat16 to_bfloat16(float value) noexcept { return {internal::f32_to_bf16(value)}; }

}  // namespace v1
}  // namespace kvcache
