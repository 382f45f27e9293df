// The implementations of attention in this build: named, listable, forceable.
#ifndef KVCACHE_BACKEND_H_
#define KVCACHE_BACKEND_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kvcache/status.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

struct BackendInfo {
  std::string name;         // what AttentionOptions::backend and KVCACHE_BACKEND take
  std::string description;  // instruction set and what it is for
  Device device;            // whose memory it reads
  bool available = false;   // whether it runs on this machine
  std::string reason;       // why, or why not
  bool selected = false;    // the one that runs when none is named
};

// All backends that this version knows, best first, also those that this build or machine has not;
// "reference" (float64 inside, the readable definition) is always last and always available.
KVC_API Result<std::vector<BackendInfo>> backends();

// The backend that runs over the CPU's memory when an attention call names none: KVCACHE_BACKEND,
// else the best that is available. The environment is read once, by the first call that needs it.
// Errors: kUnavailable for a KVCACHE_BACKEND that is unknown or does not run here.
KVC_API Result<std::string> selected_backend();

// What decode asks for ahead of reading it: "none", the first lines of "runs" of rows (of pages),
// or whole rows, into a level of cache: "l1", "l2", "l3". Results do not depend on it.
struct PrefetchChoice {
  std::int64_t row_bytes = 0;  // of rows up to so long
  std::string level;
  std::string reason;  // KVCACHE_PREFETCH, or a measurement beside what the family is known for
};

// The choices of selected_backend(): KVCACHE_PREFETCH, else what suits the processor. With `turns`
// > 0 measured anew, so many times over (a millisecond each), changing nothing; else those that
// hold in this process. Errors: kUnavailable for a KVCACHE_PREFETCH that names no level, and those
// of selected_backend().
KVC_API Result<std::vector<PrefetchChoice>> prefetch_choices(std::int32_t turns = 0);

// What is known of the processor, one line: "AMD EPYC; avx2 avx512 avx512bf16; L2 1 MiB, ...".
KVC_API Result<std::string> cpu_description();

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_BACKEND_H_
