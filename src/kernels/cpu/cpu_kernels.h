// The tables of the CPU backends, one per instruction set.
#ifndef KVCACHE_SRC_KERNELS_CPU_CPU_KERNELS_H_
#define KVCACHE_SRC_KERNELS_CPU_CPU_KERNELS_H_

#include "kernels/kernel_table.h"

namespace kvcache::internal {

namespace portable {
const AttentionKernels& attention_kernels();
}
#if KVC_ARM64
namespace neon {
const AttentionKernels& attention_kernels();
}
#endif
#if KVC_X86_64
namespace avx2 {
const AttentionKernels& attention_kernels();
}
namespace avx512 {
const AttentionKernels& attention_kernels();
}
namespace avx512bf16 {
const AttentionKernels& attention_kernels();
}
#endif

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_KERNELS_CPU_CPU_KERNELS_H_
