// Which backend an attention call runs on.
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

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_SELECT_H_
