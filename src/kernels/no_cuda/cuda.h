// Why there is no CUDA: the same entry of the list that a build with it would have.
#ifndef KVCACHE_SRC_KERNELS_NO_CUDA_CUDA_H_
#define KVCACHE_SRC_KERNELS_NO_CUDA_CUDA_H_

#include "kernels/backend.h"

namespace kvcache::internal {

// Backend "cuda": not available.
Backend cuda_backend() noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_KERNELS_NO_CUDA_CUDA_H_
