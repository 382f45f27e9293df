// What decode prefetches: what the environment names, else what suits the processor.
#ifndef KVCACHE_SRC_ATTENTION_CPU_PREFETCH_H_
#define KVCACHE_SRC_ATTENTION_CPU_PREFETCH_H_

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/cut.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// The level that the environment's KVCACHE_PREFETCH names, or `named` false. Errors: kUnavailable
// for one that names no level.
Status named_prefetch(Prefetch* level, bool* named);

// The rows that are read.
struct ReadRows {
  std::int64_t row_bytes = 0;
  std::int64_t bytes = 0;  // of all of them
  bool coded = false;
};

// That, else what suits the processor for such rows: calibrate.h. Rows that caches hold are not
// worth a measurement: for these the table decides. Coded rows are always asked for, which is
// faster on Zen 3 too, where plain rows are faster without. Errors: as above.
Status select_prefetch(const Backend& backend, const ReadRows& rows, Prefetch* level);

// "none", "runs", "l1", "l2" or "l3".
const char* name_of(Prefetch level) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_CPU_PREFETCH_H_
