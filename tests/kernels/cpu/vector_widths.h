// The kernels in vectors that this processor need not have, by the compiler's vector
// extension: what differs between instruction sets in attention.inl and
// rows.inl is their width.
#ifndef KVCACHE_TESTS_KERNELS_CPU_VECTOR_WIDTHS_H_
#define KVCACHE_TESTS_KERNELS_CPU_VECTOR_WIDTHS_H_

#include "kernels/backend.h"
#include "kernels/cpu/cut.h"

namespace kvcache::internal {
namespace vectors_256 {
const AttentionKernels& attention_kernels();
const RowKernels& row_kernels();
}  // namespace vectors_256
namespace vectors_512 {
const AttentionKernels& attention_kernels();
const RowKernels& row_kernels();
}  // namespace vectors_512
// With dot products, and tables in a vector.
namespace vectors_512_dot {
const AttentionKernels& attention_kernels();
const RowKernels& row_kernels();
}  // namespace vectors_512_dot
}  // namespace kvcache::internal

#endif  // KVCACHE_TESTS_KERNELS_CPU_VECTOR_WIDTHS_H_
