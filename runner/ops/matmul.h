// Matrix-matrix products of a library: oneDNN where it is built in and the processor has AVX-512.
// Without one, and where it refuses, linear() multiplies by itself (product.h).
#ifndef KVCACHE_RUNNER_OPS_MATMUL_H_
#define KVCACHE_RUNNER_OPS_MATMUL_H_

#include <cstdint>

namespace kvcache::runner {

// y [rows, out] = x [rows, in] * W^T, all dense, on the calling thread. False where this build has
// no library for this processor or the library refuses; y is then to be written again. (Dense,
// because oneDNN 2.6 adds in another order where rows of y have a stride.)
bool matmul(const float* x, std::int64_t rows, const float* weight, std::int64_t out,
            std::int64_t in, float* y);

// The same for bf16 operands (as stored bits) with float32 sums.
bool matmul_bf16(const std::uint16_t* x, std::int64_t rows, const std::uint16_t* weight,
                 std::int64_t out, std::int64_t in, float* y);

// Whether matmul and matmul_bf16 are there: the library, and the processor's instructions for it.
bool matmul_has_f32();
bool matmul_has_bf16();

// "oneDNN 2.6.3"; "ours" where this build or this processor has no use of it.
const char* matmul_backend();

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_OPS_MATMUL_H_
