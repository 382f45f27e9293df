// Which backend attends, and which stores rows: what a caller or the process's environment names,
// else the best that runs here.
#ifndef KVCACHE_SRC_KERNELS_SELECT_H_
#define KVCACHE_SRC_KERNELS_SELECT_H_

#include <string>

#include "kernels/backend.h"
#include "kvcache/status.h"
#include "kvcache/types.h"

namespace kvcache::internal {

// What the process's environment asks for; "" for nothing.
struct Environment {
  std::string backend;   // KVCACHE_BACKEND
  std::string prefetch;  // KVCACHE_PREFETCH
};

// Read by the first call and never again: beside a thread that changes the environment no later
// read is safe. Tests put another in its place. May throw bad_alloc.
Environment& environment();

// `name`, else the environment's KVCACHE_BACKEND, else the best that is available, for memory of
// `device`. May throw bad_alloc while it builds a message.
// Errors: kUnavailable for a name that is unknown (the message lists the names), does not run here
// or is of another device.
Status select_backend(const char* name, const Device& device, const Backend** backend);

// Errors: kUnavailable, "name: found cuda:0, expected ...", where no backend runs over memory of
// `device`, with the reason.
Status expect_backend(const char* name, const Device& device);

// The rows of the CPU's backend that the environment names, else of the best. A name that is no
// backend's is for attention to refuse: bits do not depend on who converts. Decided by the first
// call.
const RowKernels& selected_rows() noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_KERNELS_SELECT_H_
