// The libraries whose arrays come out, by name.
#ifndef KVCACHE_PYTHON_BINDINGS_FRAMEWORKS_H_
#define KVCACHE_PYTHON_BINDINGS_FRAMEWORKS_H_

#include <string>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"

namespace kvcache::python {

inline const char* library_name(Framework framework) noexcept {
  return framework == Framework::kTorch ? "torch" : "numpy";
}

// Errors: ValueError.
inline Framework library_from(const std::string& name) {
  if (name == "numpy") return Framework::kNumpy;
  if (name == "torch") return Framework::kTorch;
  raise(PyExc_ValueError, "library: found " + name + ", expected numpy or torch");
}

inline constexpr char kLibraryDoc[] =
    "\"numpy\" or \"torch\": of the arrays that come out, that of those that came in last; set it "
    "to "
    "have the other.";

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_FRAMEWORKS_H_
