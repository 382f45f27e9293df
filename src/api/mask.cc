#include "kvcache/mask.h"

#include <string>

#include "base/door.h"

namespace kvcache {
inline namespace v0 {

Result<Mask> Mask::named(std::string_view name) {
  return internal::at_door([&]() -> Result<Mask> {
    if (name == "causal") return causal();
    return Status(StatusCode::kInvalidArgument,
                  "mask: found \"" + std::string(name) + "\", expected \"causal\" or a tensor");
  });
}

}  // namespace v0
}  // namespace kvcache
