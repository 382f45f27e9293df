// What an attention call runs on: the backend, and what decode prefetches.
#ifndef KVCACHE_SRC_ATTENTION_SELECT_H_
#define KVCACHE_SRC_ATTENTION_SELECT_H_

#include "kernels/kernel_table.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// `name`, else the environment's KVCACHE_BACKEND, else the best that is available. May throw
// bad_alloc while it builds a message.
// Errors: kUnavailable for a name that is unknown (the message lists the names) or does not run
// here.
Status select_backend(const char* name, const Backend** backend);

// The environment's KVCACHE_PREFETCH, else what measured best: the starts of runs on Zen 3, rows
// into the second level elsewhere (Zen 4). Errors: kUnavailable for a KVCACHE_PREFETCH that names
// no level.
Status select_prefetch(Prefetch* level);

// "none", "runs", "l1", "l2" or "l3".
const char* name_of(Prefetch level) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_SELECT_H_
