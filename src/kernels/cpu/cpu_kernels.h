// The tables of the CPU backends, one per instruction set. Rows have no use for dot products: those
// of avx512bf16 are avx512's.
#ifndef KVCACHE_SRC_KERNELS_CPU_CPU_KERNELS_H_
#define KVCACHE_SRC_KERNELS_CPU_CPU_KERNELS_H_

#include "kernels/backend.h"
#include "kernels/cpu/cut.h"

namespace kvcache::internal {

namespace portable {
const AttentionKernels& attention_kernels();
const RowKernels& row_kernels();
}  // namespace portable
#if KVC_ARM64
namespace neon {
const AttentionKernels& attention_kernels();
const RowKernels& row_kernels();
}  // namespace neon
#endif
#if KVC_X86_64
namespace avx2 {
const AttentionKernels& attention_kernels();
const RowKernels& row_kernels();
}  // namespace avx2
namespace avx512 {
const AttentionKernels& attention_kernels();
const RowKernels& row_kernels();
}  // namespace avx512
namespace avx512bf16 {
const AttentionKernels& attention_kernels();
}
#endif

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_KERNELS_CPU_CPU_KERNELS_H_
