// What stands where a backend is not in this build, so that no table is null.
#ifndef KVCACHE_SRC_KERNELS_ABSENT_H_
#define KVCACHE_SRC_KERNELS_ABSENT_H_

#include "kernels/backend.h"

namespace kvcache::internal {

// Functions that do nothing. Nobody calls them: only what is available is ever selected.
const RowKernels& absent_rows() noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_KERNELS_ABSENT_H_
