#include "kvcache/mask.h"

#include <string>

#include "base/door.h"
#include "base/expect.h"

namespace kvcache {
inline namespace v1 {

Result<Mask> Mask::named(std::string_view name) {
  return internal::at_door([&]() -> Result<Mask> {
    if (name == "causal") return causal();
    constexpr std::size_t kShown = 60;
    const std::string shown =
        std::string(name.substr(0, kShown)) + (name.size() > kShown ? "..." : "");
    return internal::refusal("mask", "\"" + shown + "\"", "\"causal\" or a tensor");
  });
}

}  // namespace v1
}  // namespace kvcache
