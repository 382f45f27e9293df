// Linear layers: y = W x + b over weights in the dtype they are stored in.
#ifndef KVCACHE_RUNNER_OPS_LINEAR_H_
#define KVCACHE_RUNNER_OPS_LINEAR_H_

#include <cstdint>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/types.h"

namespace kvcache::runner {

// A weight matrix [out, in] with dense rows: kF32, kF16 or kBF16. Not owned.
struct Weight {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t out = 0;
  std::int64_t in = 0;
};

// y [rows, out] = x [rows, in] * W^T + bias [out] (null: none), all float32 and dense.
// x is rounded to the weights' dtype first, for one row as for many; sums are float32. Results do
// not depend on the executor. Cost: reads W once; 2 * rows * out * in operations. One row is a
// matrix-vector product of ours, several go through matmul.h or ours. A row's bits do not depend on
// the rows beside it (measured with oneDNN on AVX-512 with and without BF16; not known of AMX).
// `scratch` grows as needed and may be shared by consecutive calls.
void linear(const float* x, std::int64_t rows, const Weight& weight, const float* bias, float* y,
            std::vector<float>& scratch, Executor& executor);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_OPS_LINEAR_H_
