// What an attention call runs on: the backend, and what decode prefetches.
#ifndef KVCACHE_SRC_ATTENTION_SELECT_H_
#define KVCACHE_SRC_ATTENTION_SELECT_H_

#include <string>

#include "kernels/kernel_table.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// What the process's environment asks for; "" for nothing.
struct Environment {
  std::string backend;   // KVCACHE_BACKEND
  std::string prefetch;  // KVCACHE_PREFETCH
};

// Read by the first call and never again: beside a thread that changes the environment no later
// read is safe. Tests put another in its place. May throw bad_alloc.
Environment& environment();

// `name`, else the environment's KVCACHE_BACKEND, else the best that is available. May throw
// bad_alloc while it builds a message.
// Errors: kUnavailable for a name that is unknown (the message lists the names) or does not run
// here.
Status select_backend(const char* name, const Backend** backend);

// The level that the environment's KVCACHE_PREFETCH names, or `named` false. Errors: kUnavailable
// for one that names no level.
Status named_prefetch(Prefetch* level, bool* named);

// That, else what suits the processor for `bytes` of rows of `row_bytes`: calibrate.h. Rows that
// caches hold are not worth a measurement: for these the table decides. Errors: as above.
Status select_prefetch(const Backend& backend, std::int64_t row_bytes, std::int64_t bytes,
                       Prefetch* level);

// "none", "runs", "l1", "l2" or "l3".
const char* name_of(Prefetch level) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_SELECT_H_
