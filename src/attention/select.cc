#include "attention/select.h"

#include <cstdlib>
#include <string>

namespace kvcache::internal {

Status select_backend(const char* name, const Backend** backend) {
  std::int32_t count = 0;
  const Backend* backends = all_backends(&count);

  const char* asked_by = "options.backend";
  if (name == nullptr) {
    name = std::getenv("KVCACHE_BACKEND");
    asked_by = "KVCACHE_BACKEND";
  }
  if (name == nullptr || *name == '\0') {
    for (std::int32_t i = 0; i < count; ++i) {
      if (backends[i].available) {
        *backend = &backends[i];
        return {};
      }
    }
    return Status(StatusCode::kInternal, "backends: found none available");
  }

  const Backend* found = find_backend(name);
  if (found == nullptr) {
    std::string names;
    for (std::int32_t i = 0; i < count; ++i) {
      if (i > 0) names += ", ";
      names += backends[i].name;
    }
    return Status(StatusCode::kUnavailable,
                  std::string(asked_by) + ": found \"" + name + "\", expected one of " + names);
  }
  if (!found->available) {
    return Status(StatusCode::kUnavailable, std::string(asked_by) + ": found \"" + name +
                                                "\", expected a backend that runs here (" +
                                                found->reason + ")");
  }
  *backend = found;
  return {};
}

}  // namespace kvcache::internal
