#include "kvcache/mask.h"

#include <string>

#include "base/door.h"
#include "base/expect.h"

namespace kvcache {
inline namespace v0 {

Result<Mask> Mask::named(std::string_view name) {
  return internal::at_door([&]() -> Result<Mask> {
    if (name == "causal") return causal();
    return internal::refusal("mask", "\"" + std::string(name) + "\"", "\"causal\" or a tensor");
  });
}

}  // namespace v0
}  // namespace kvcache
