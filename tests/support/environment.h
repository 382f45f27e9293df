// The environment that backends are selected by, for a test.
#ifndef KVCACHE_TESTS_SUPPORT_ENVIRONMENT_H_
#define KVCACHE_TESTS_SUPPORT_ENVIRONMENT_H_

#include <utility>

#include "kernels/select.h"

namespace kvcache::testing {

// Puts another environment in the place of the process's, for its lifetime.
class GivenEnvironment {
 public:
  explicit GivenEnvironment(internal::Environment given)
      : before_(std::exchange(internal::environment(), std::move(given))) {}
  ~GivenEnvironment() { internal::environment() = before_; }

 private:
  internal::Environment before_;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_ENVIRONMENT_H_
