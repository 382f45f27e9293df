// The small operations between linear layers. float32, dense rows, in place where it says so.
#ifndef KVCACHE_RUNNER_OPS_OPS_H_
#define KVCACHE_RUNNER_OPS_OPS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/types.h"

namespace kvcache::runner {

// y[i] = weight[i] * x[i] / sqrt(mean(x^2) + epsilon), per row of `width` (RMSNorm, Zhang and
// Sennrich 2019). y may be x.
void rms_norm(const float* x, std::int64_t rows, std::int64_t width, const float* weight,
              float epsilon, float* y);

// gate[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + exp(-x)) (SwiGLU, Shazeer 2020).
void silu_multiply(float* gate, const float* up, std::int64_t count);

// x[i] += y[i].
void add_in_place(float* x, const float* y, std::int64_t count);

// Widens `count` elements of a stored row to float32.
void widen(const void* source, DType dtype, std::int64_t count, float* destination);

// Narrows `count` elements to `dtype` (round to nearest even).
void narrow(const float* source, DType dtype, std::int64_t count, void* destination);

// cos and sin of pos * inverse_frequencies[i]: [num_positions, inverse_frequencies.size()] each.
void rope_angles(std::span<const std::int64_t> positions,
                 std::span<const float> inverse_frequencies, std::vector<float>& cosines,
                 std::vector<float>& sines);

// Rotates pairs (x[i], x[i + head_dim / 2]) of every head of a row, in place (RoPE, Su et al. 2021,
// in the half-split order of the Llama checkpoints). `x` is [heads, head_dim]; cosines and sines
// [head_dim / 2] are those of the row's position.
void rope_rotate(float* x, std::int64_t heads, std::int64_t head_dim, const float* cosines,
                 const float* sines);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_OPS_OPS_H_
