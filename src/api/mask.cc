#include "kvcache/mask.h"

#include <string>

#include "base/door.h"

namespace kvcache {
inline namespace v0 {

Result<Mask> Mask::named(std::string_view name) {
  return internal::at_door([&]() -> Result<Mask> {
    if (name == "causal") return causal();
    constexpr std::size_t kShown = 60;
    const std::string shown =
        std::string(name.substr(0, kShown)) + (name.size() > kShown ? "..." : "");
    return Status(StatusCode::kInvalidArgument,
                  "mask: found \"" + shown + "\", expected \"causal\" or a tensor");
  });
}

}  // namespace v0
}  // namespace kvcache
