// The backends that a test goes through.
#ifndef KVCACHE_TESTS_SUPPORT_BACKENDS_H_
#define KVCACHE_TESTS_SUPPORT_BACKENDS_H_

#include <string>
#include <vector>

#include "kvcache/backend.h"
#include "support/slow.h"

namespace kvcache::testing {

// Those that run here, fastest first.
inline std::vector<std::string> available_backends() {
  std::vector<std::string> names;
  const std::vector<BackendInfo> all = backends().value();
  for (const BackendInfo& info : all) {
    if (info.available) names.push_back(info.name);
  }
  if (kOneBackend) names.resize(1);
  return names;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_BACKENDS_H_
