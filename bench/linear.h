// The linear layers of a model alone: how near they come to reading their weights once, and for
// many rows to the arithmetic of the processor.
#ifndef KVCACHE_BENCH_LINEAR_H_
#define KVCACHE_BENCH_LINEAR_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "bench/case.h"
#include "bench/meter.h"
#include "kvcache/status.h"
#include "runner/config/model_config.h"
#include "runner/ops/linear.h"

namespace kvcache::bench {

struct LinearOptions {
  runner::ModelConfig config;  // the shape: see model_shape() in decode_model.h
  std::vector<runner::WeightType> types = {runner::WeightType::kF32, runner::WeightType::kBF16,
                                           runner::WeightType::kF16, runner::WeightType::kInt8};
  runner::Activations activations = runner::Activations::kInt16;  // of int8
  std::vector<std::int64_t> rows = {1, 4, 512};                   // tokens of a step
  int repeats = 7;                                                // medians of so many
  std::int32_t threads = 0;  // 0: those of the default executor
  Clock clock = Clock::kWall;
  std::int64_t ring_bytes =
      0;  // of weights and of the read roof; 0: 8 times the last level of cache
  std::uint64_t seed = 0;
};

// For each type and number of rows the seven products of a layer (q, k, v, o, gate, up, down), over
// a ring of layers of at least ring_bytes, so that weights are cold. The bound is the larger of
// bytes of weights over the read roof and operations (2 for each element and row) over the
// arithmetic roof: multiply-adds; of bf16 and int8 the dot instruction where there is one, halved
// for inputs of 16 bits, which take it twice. `achieved` and `roof` are in GB/s where reading
// binds, else in GFLOP/s. Products of one input take turns as a model's: q, k and v, gate and up.
// `error` is the relative root mean square of sampled outputs against float64 of the weights as
// held and the inputs as given, so that it has the rounding of inputs in it. Errors:
// kInvalidArgument, kOutOfMemory.
Result<std::vector<Case>> run_linear(const LinearOptions& options,
                                     const std::function<void(int, int)>& on_progress);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_LINEAR_H_
