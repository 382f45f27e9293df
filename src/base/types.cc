#include "kvcache/types.h"

namespace kvcache {
inline namespace v1 {

const char* name_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
  }
  return "?";
}

const char* name_of(Layout layout) noexcept {
  switch (layout) {
    case Layout::kHND:
      return "hnd";
    case Layout::kNHD:
      return "nhd";
  }
  return "?";
}

}  // namespace v1
}  // namespace kvcache
