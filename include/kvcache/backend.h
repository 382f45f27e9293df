// The implementations of attention in this build: named, listable, forceable.
#ifndef KVCACHE_BACKEND_H_
#define KVCACHE_BACKEND_H_

#include <string>
#include <vector>

#include "kvcache/status.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v0 {

struct BackendInfo {
  std::string name;         // what AttentionOptions::backend and KVCACHE_BACKEND take
  std::string description;  // instruction set and what it is for
  bool available = false;   // whether it runs on this machine
  std::string reason;       // why, or why not
  bool selected = false;    // the one that runs when none is named
};

// All backends of this build, best first; "reference" (float64 inside, the readable definition)
// is always last and always available.
KVC_API Result<std::vector<BackendInfo>> backends();

// The backend that runs when an attention call names none: KVCACHE_BACKEND, else the best that is
// available. Errors: kUnavailable for a KVCACHE_BACKEND that is unknown or does not run here.
KVC_API Result<std::string> selected_backend();

// What decode asks for ahead of reading it: "none", the first lines of "runs" of rows (of pages),
// or whole rows, into a level of cache: "l1", "l2", "l3". KVCACHE_PREFETCH, else what suits the
// processor. Results do not depend on it.
// Errors: kUnavailable for a KVCACHE_PREFETCH that names no level.
KVC_API Result<std::string> selected_prefetch();

// What is known of the processor, one line: "AMD EPYC; avx2 avx512 avx512bf16; L2 1 MiB, ...".
KVC_API Result<std::string> cpu_description();

}  // namespace v0
}  // namespace kvcache

#endif  // KVCACHE_BACKEND_H_
