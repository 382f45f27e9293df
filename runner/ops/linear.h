// Linear layers: y = W x + b over weights in the type they are held in.
#ifndef KVCACHE_RUNNER_OPS_LINEAR_H_
#define KVCACHE_RUNNER_OPS_LINEAR_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/types.h"

namespace kvcache::runner {

// What the elements of a weight matrix are. kInt8: an element is its int8 times the scale of its
// row.
enum class WeightType : std::uint8_t { kF32, kF16, kBF16, kInt8 };

constexpr std::int64_t size_of(WeightType type) noexcept {
  return type == WeightType::kF32 ? 4 : type == WeightType::kInt8 ? 1 : 2;  // bytes
}
const char* name_of(WeightType type) noexcept;  // "f32", "f16", "bf16", "int8"

// The type that holds elements of `dtype` as they are. REQUIRES: floating.
WeightType weight_type(DType dtype) noexcept;

// What inputs are rounded to where weights are int8: integers of 16 bits, 512 inputs of a row
// sharing a scale (2.8e-5 of a result, relative root mean square on normal inputs), or of 8 bits,
// 32 sharing one (about 8e-3), which makes many rows faster where there is VNNI.
enum class Activations : std::uint8_t { kInt16, kInt8 };

// A weight matrix [out, in] with dense rows. Not owned.
struct Weight {
  const void* data = nullptr;
  WeightType type = WeightType::kF32;
  std::int64_t out = 0;
  std::int64_t in = 0;
  const float* scales = nullptr;                  // [out], of kInt8
  Activations activations = Activations::kInt16;  // of kInt8
};

// One product of linear().
struct Product {
  const Weight* weight = nullptr;
  const float* bias = nullptr;  // [out]; null: none
  float* y = nullptr;           // [rows, out]
};

// y [rows, out] = x [rows, in] * W^T + bias of each product, all float32 and dense.
// x is rounded first, for one row as for many: to the weights' type for f16 and bf16; for int8 to
// integers as Activations say (product.h has the rule), whose products with the weights are summed
// exactly, 512 inputs at a time; a NaN or an infinity among them makes NaN of the row. Sums are
// float32. Results do not depend on the executor. Cost: reads each W once; 2 * rows * out * in
// operations; one parallel region for all products. f32 and bf16 go through matmul.h where there
// is a library for them, all else through products of ours. A row's bits do not depend on the rows
// beside it (measured with oneDNN on AVX-512 with and without BF16; not known of AMX). `scratch`
// grows as needed and may be shared by consecutive calls.
// REQUIRES: the weights agree in `in`, `type` and `activations`.
void linear(const float* x, std::int64_t rows, std::span<const Product> products,
            std::vector<float>& scratch, Executor& executor);

// The same for one.
void linear(const float* x, std::int64_t rows, const Weight& weight, const float* bias, float* y,
            std::vector<float>& scratch, Executor& executor);

// Row `row` of the matrix as float32, to [in].
void widen_row(const Weight& weight, std::int64_t row, float* to);

// A row of float32 to int8: round(x / scale) to nearest, scale = max |x| / 127, so that no element
// moves by more than half a scale; zeros have scale 0. False, and nothing written, where an element
// is not finite.
bool quantise_row(const float* x, std::int64_t count, std::int8_t* to, float* scale);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_OPS_LINEAR_H_
