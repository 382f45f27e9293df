#include "runner/ops/linear.h"

#include <algorithm>

#include "runner/ops/matmul.h"
#include "runner/ops/ops.h"
#include "runner/ops/product.h"

namespace kvcache::runner {
namespace {

// Outputs per task. A constant, so that what a task computes does not depend on the threads.
constexpr std::int64_t kSlice = 128;
// Multiply-adds below which waking other threads costs more than it saves.
constexpr std::int64_t kSerialBelow = 1 << 16;

struct Product {
  const float* x;               // rounded to the weights' dtype
  const std::uint16_t* x_bf16;  // the same as stored bits, for bf16 weights
  std::int64_t rows;
  Weight weight;
  const float* bias;
  float* y;
  float* panels;  // [concurrency, kPanelFloats]
};

// A slice through the library: blocks of dense rows, [kBlockRows, kSlice], copied to where they
// belong. False where the library refuses.
constexpr std::int64_t kBlockRows = kPanelFloats / kSlice;
bool multiply_by_library(const Product& product, const SliceProduct& slice) {
  for (std::int64_t r = 0; r < slice.rows; r += kBlockRows) {
    const std::int64_t rows = std::min(kBlockRows, slice.rows - r);
    const bool done =
        product.weight.dtype == DType::kF32
            ? matmul(slice.x + r * slice.in, rows, static_cast<const float*>(slice.weight),
                     slice.outs, slice.in, slice.panel)
            : matmul_bf16(product.x_bf16 + r * slice.in, rows,
                          static_cast<const std::uint16_t*>(slice.weight), slice.outs, slice.in,
                          slice.panel);
    if (!done) return false;
    for (std::int64_t i = 0; i < rows; ++i) {
      std::copy_n(slice.panel + i * slice.outs, slice.outs, slice.y + (r + i) * slice.y_stride);
    }
  }
  return true;
}

void multiply_slice(const Product& product, std::int64_t begin, std::int64_t end, float* panel) {
  const Weight& w = product.weight;
  const std::int64_t outs = end - begin;
  const Products& ours = products();
  SliceProduct slice;
  slice.x = product.x;
  slice.rows = product.rows;
  slice.in = w.in;
  slice.weight = static_cast<const std::byte*>(w.data) + begin * w.in * size_of(w.dtype);
  slice.outs = outs;
  slice.y = product.y + begin;
  slice.y_stride = w.out;
  slice.panel = panel;
  if (w.dtype == DType::kF16) return ours.f16(slice);
  if (w.dtype == DType::kBF16) {
    if (!matmul_has_bf16()) return ours.bf16(slice);
    if (product.rows == 1 && ours.bf16_dot != nullptr) return ours.bf16_dot(slice, product.x_bf16);
    if (!multiply_by_library(product, slice)) ours.bf16(slice);
    return;
  }
  if (product.rows > 1 && multiply_by_library(product, slice)) return;
  ours.f32(slice);
}

void run_slice(void* context, std::int64_t task, std::int32_t worker) noexcept {
  const auto& product = *static_cast<const Product*>(context);
  const std::int64_t begin = task * kSlice;
  const std::int64_t end = std::min(begin + kSlice, product.weight.out);
  multiply_slice(product, begin, end, product.panels + worker * kPanelFloats);
  if (product.bias == nullptr) return;
  for (std::int64_t r = 0; r < product.rows; ++r) {
    float* y = product.y + r * product.weight.out;
    for (std::int64_t o = begin; o < end; ++o) y[o] += product.bias[o];
  }
}

}  // namespace

void linear(const float* x, std::int64_t rows, const Weight& weight, const float* bias, float* y,
            std::vector<float>& scratch, Executor& executor) {
  if (rows == 0) return;
  const bool rounded = weight.dtype != DType::kF32;
  const std::int64_t elements = rounded ? rows * weight.in : 0;
  const std::int64_t panels = executor.concurrency() * kPanelFloats;
  const auto needed = static_cast<std::size_t>(elements + (elements + 1) / 2 + panels);
  if (scratch.size() < needed) scratch.resize(needed);

  Product product{x, nullptr, rows, weight, bias, y, scratch.data()};
  if (rounded) {
    float* widened = scratch.data() + panels;
    auto* bits = reinterpret_cast<std::uint16_t*>(widened + elements);
    narrow(x, weight.dtype, elements, bits);
    widen(bits, weight.dtype, elements, widened);
    product.x = widened;
    product.x_bf16 = bits;
  }
  const std::int64_t tasks = (weight.out + kSlice - 1) / kSlice;
  if (rows * weight.out * weight.in < kSerialBelow) {
    for (std::int64_t task = 0; task < tasks; ++task) run_slice(&product, task, 0);
  } else {
    executor.parallel_for(tasks, run_slice, &product);
  }
}

}  // namespace kvcache::runner
