// The public words of coded forms.
#include <cstring>

#include "base/door.h"
#include "base/expect.h"
#include "kvcache/layer_spec.h"

namespace kvcache {
inline namespace v1 {

const char* name_of(RowFormat::Kind kind) noexcept {
  switch (kind) {
    case RowFormat::kStrided:
      return "plain";
    case RowFormat::kInt8:
      return "int8";
    case RowFormat::kFp8E4M3:
      return "fp8_e4m3";
    case RowFormat::kInt4:
      return "int4";
    case RowFormat::kLm4:
      return "lm4";
    case RowFormat::kQ8_0:
      return "q8_0";
    case RowFormat::kQ4_0:
      return "q4_0";
  }
  return "?";
}

Result<RowFormat::Kind> coded_form(const char* field, const char* name) {
  return internal::at_door([&]() -> Result<RowFormat::Kind> {
    for (int kind = RowFormat::kInt8; kind <= RowFormat::kQ4_0; ++kind) {
      const auto each = static_cast<RowFormat::Kind>(kind);
      if (std::strcmp(name, name_of(each)) == 0) return each;
    }
    return internal::refusal(field, name, "int8, fp8_e4m3, int4, lm4, q8_0 or q4_0");
  });
}

}  // namespace v1
}  // namespace kvcache
