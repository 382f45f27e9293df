#include "runner/ops/linear.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <type_traits>

#include "runner/ops/matmul.h"
#include "runner/ops/ops.h"
#include "runner/ops/product.h"

namespace kvcache::runner {
namespace {

// Outputs per task of the library. A constant, so that what it is asked for does not depend on the
// threads: its sums might.
constexpr std::int64_t kLibrarySlice = 128;
// Outputs per task of ours: of few rows as many as make long streams and still a few tasks for each
// thread, or a thread's share; of more rows few enough to balance.
constexpr std::int64_t kStreamedSlice = 512;
constexpr std::int64_t kStreamedTasks = 4;
constexpr std::int64_t kSlice = 64;
// Multiply-adds below which waking other threads costs more than it saves.
constexpr std::int64_t kSerialBelow = 1 << 16;

// Outputs per task, of `total` in all products.
std::int64_t slice_of(std::int64_t rows, std::int64_t total, std::int64_t threads) {
  if (rows > kStreamedRows) return kSlice;
  const std::int64_t share = (total + threads - 1) / threads;
  return std::max(share / kStreamedTasks, std::min(kStreamedSlice, share));
}

// Products of the same inputs.
struct Layer {
  const float* x = nullptr;  // as given
  std::int64_t rows = 0;
  std::int64_t in = 0;
  WeightType type = WeightType::kF32;
  float* panels = nullptr;  // [concurrency, kPanelFloats]

  const TypedProduct* ours = nullptr;
  std::byte* staged = nullptr;    // [rows, staged_stride(in)] of float or int16
  std::int64_t staged_bytes = 0;  // of a row
  InputCut* cuts = nullptr;       // [rows, cuts_of(in)]

  std::uint16_t* bits = nullptr;  // [rows, in] rounded to bf16, for the library
  std::atomic<bool> refused = false;
};

// y[r][o] of a slice of the outputs of one product: a task.
struct Slice {
  const Product* product;
  std::int64_t begin, end;

  const void* weights() const {
    const Weight& weight = *product->weight;
    return static_cast<const std::byte*>(weight.data) + begin * weight.in * size_of(weight.type);
  }
  void add_bias(std::int64_t rows) const {
    if (product->bias == nullptr) return;
    for (std::int64_t r = 0; r < rows; ++r) {
      float* y = product->y + r * product->weight->out;
      for (std::int64_t o = begin; o < end; ++o) y[o] += product->bias[o];
    }
  }
};

// The products cut into slices of about equal size, of whole vectors of outputs and of about `most`
// outputs at most.
class Slices {
 public:
  Slices(std::span<const Product> products, std::int64_t most) : products_(products), most_(most) {
    for (const Product& product : products) count_ += count_of(product);
  }
  std::int64_t count() const { return count_; }
  Slice at(std::int64_t task) const {
    const Product* product = products_.data();
    for (; task >= count_of(*product); ++product) task -= count_of(*product);
    const std::int64_t size = size_of_slice(*product);
    return {product, task * size, std::min((task + 1) * size, product->weight->out)};
  }

 private:
  std::int64_t size_of_slice(const Product& product) const {
    constexpr std::int64_t kVector = 16;
    const std::int64_t out = product.weight->out;
    const std::int64_t slices = (out + most_ - 1) / most_;
    return ((out + slices - 1) / slices + kVector - 1) / kVector * kVector;
  }
  std::int64_t count_of(const Product& product) const {
    const std::int64_t size = size_of_slice(product);
    return (product.weight->out + size - 1) / size;
  }
  std::span<const Product> products_;
  std::int64_t most_;
  std::int64_t count_ = 0;
};

const TypedProduct& typed(const Products& products, const Weight& weight) {
  switch (weight.type) {
    case WeightType::kF32:
      return products.f32;
    case WeightType::kF16:
      return products.f16;
    case WeightType::kBF16:
      return products.bf16;
    case WeightType::kInt8:
      break;
  }
  return weight.activations == Activations::kInt8 ? products.int8_by_int8 : products.int8;
}

template <typename Fn>
void run(std::int64_t tasks, bool serial, Executor& executor, Fn&& fn) {
  if (serial) {
    for (std::int64_t task = 0; task < tasks; ++task) fn(task, 0);
    return;
  }
  executor.parallel_for(
      tasks,
      [](void* context, std::int64_t task, std::int32_t worker) noexcept {
        (*static_cast<std::remove_reference_t<Fn>*>(context))(task, worker);
      },
      &fn);
}

void stage_row(const Layer& layer, std::int64_t row) {
  layer.ours->stage(layer.x + row * layer.in, layer.in, layer.staged + row * layer.staged_bytes,
                    layer.cuts + row * cuts_of(layer.in));
}

void multiply_slice(const Layer& layer, const Slice& slice, float* panel) {
  const Weight& weight = *slice.product->weight;
  SliceProduct product;
  product.x = layer.staged;
  product.cuts = layer.type == WeightType::kInt8 ? layer.cuts : nullptr;
  product.rows = layer.rows;
  product.in = layer.in;
  product.weight = slice.weights();
  product.outs = slice.end - slice.begin;
  product.scales = weight.scales != nullptr ? weight.scales + slice.begin : nullptr;
  product.y = slice.product->y + slice.begin;
  product.y_stride = weight.out;
  product.panel = panel;
  layer.ours->product(product);
  slice.add_bias(layer.rows);
}

// Blocks of dense rows, [kBlockRows, slice], copied to where they belong. One row by us, in the
// library's order.
constexpr std::int64_t kBlockRows = kPanelFloats / kLibrarySlice;
bool multiply_slice_by_library(const Layer& layer, const Slice& slice, float* panel) {
  const std::int64_t in = layer.in;
  const std::int64_t outs = slice.end - slice.begin;
  const bool f32 = layer.type == WeightType::kF32;
  const auto* weight = static_cast<const float*>(slice.weights());
  const auto* weight_bits = static_cast<const std::uint16_t*>(slice.weights());
  const LibraryOrder& alike = products().library_order;
  float* y = slice.product->y + slice.begin;
  if (layer.rows == 1 && f32 && alike.f32 != nullptr) {
    alike.f32(layer.x, weight, in, outs, y);
  } else if (layer.rows == 1 && !f32 && alike.bf16 != nullptr) {
    alike.bf16(layer.bits, weight_bits, in, outs, y);
  } else {
    for (std::int64_t r = 0; r < layer.rows; r += kBlockRows) {
      const std::int64_t rows = std::min(kBlockRows, layer.rows - r);
      const bool done = f32 ? matmul(layer.x + r * in, rows, weight, outs, in, panel)
                            : matmul_bf16(layer.bits + r * in, rows, weight_bits, outs, in, panel);
      if (!done) return false;
      for (std::int64_t i = 0; i < rows; ++i) {
        std::copy_n(panel + i * outs, outs, y + (r + i) * slice.product->weight->out);
      }
    }
  }
  slice.add_bias(layer.rows);
  return true;
}

// Floats up to a multiple of kStagedAlignment.
std::int64_t aligned(std::int64_t floats) {
  constexpr std::int64_t kFloats = kStagedAlignment / static_cast<std::int64_t>(sizeof(float));
  return (floats + kFloats - 1) / kFloats * kFloats;
}

}  // namespace

const char* name_of(WeightType type) noexcept {
  switch (type) {
    case WeightType::kF32:
      return "f32";
    case WeightType::kF16:
      return "f16";
    case WeightType::kBF16:
      return "bf16";
    case WeightType::kInt8:
      break;
  }
  return "int8";
}

WeightType weight_type(DType dtype) noexcept {
  return dtype == DType::kF16    ? WeightType::kF16
         : dtype == DType::kBF16 ? WeightType::kBF16
                                 : WeightType::kF32;
}

void linear(const float* x, std::int64_t rows, std::span<const Product> products,
            std::vector<float>& scratch, Executor& executor) {
  if (rows == 0 || products.empty()) return;
  const Weight& first = *products[0].weight;
  const std::int64_t in = first.in;
  const bool library = first.type == WeightType::kF32    ? matmul_has_f32()
                       : first.type == WeightType::kBF16 ? matmul_has_bf16()
                                                         : false;
  constexpr std::int64_t kCutFloats = sizeof(InputCut) / sizeof(float);
  const std::int64_t panels = executor.concurrency() * kPanelFloats;
  const std::int64_t staged = aligned(rows * staged_stride(in));
  const std::int64_t cuts = aligned(rows * cuts_of(in) * kCutFloats);
  const std::int64_t bits = library ? aligned((rows * in + 1) / 2) : 0;
  const auto needed = static_cast<std::size_t>(panels + staged + cuts + bits + aligned(1));
  if (scratch.size() < needed) scratch.resize(needed);

  Layer layer;
  layer.x = x;
  layer.rows = rows;
  layer.in = in;
  layer.type = first.type;
  const auto address = reinterpret_cast<std::uintptr_t>(scratch.data());
  layer.panels = scratch.data() + (-address % kStagedAlignment) / sizeof(float);
  layer.staged = reinterpret_cast<std::byte*>(layer.panels + panels);
  layer.cuts = reinterpret_cast<InputCut*>(layer.panels + panels + staged);
  layer.bits = reinterpret_cast<std::uint16_t*>(layer.panels + panels + staged + cuts);
  layer.ours = &typed(runner::products(), first);
  const bool int8 = first.type == WeightType::kInt8;
  layer.staged_bytes = staged_stride(in) * (int8 ? sizeof(std::int16_t) : sizeof(float));
  std::int64_t outs = 0;
  for (const Product& product : products) outs += product.weight->out;
  const bool serial = rows * outs * in < kSerialBelow;

  if (library) {
    if (first.type == WeightType::kBF16) narrow(x, DType::kBF16, rows * in, layer.bits);
    const Slices slices(products, kLibrarySlice);
    run(slices.count(), serial, executor, [&](std::int64_t task, std::int32_t worker) {
      float* panel = layer.panels + worker * kPanelFloats;
      if (!multiply_slice_by_library(layer, slices.at(task), panel)) {
        layer.refused.store(true, std::memory_order_relaxed);
      }
    });
    if (!layer.refused.load(std::memory_order_relaxed)) return;
  }
  constexpr std::int64_t kSerialRows = 4;
  run(rows, serial || rows <= kSerialRows, executor,
      [&](std::int64_t row, std::int32_t) { stage_row(layer, row); });
  const Slices slices(products, slice_of(rows, outs, serial ? 1 : executor.concurrency()));
  run(slices.count(), serial, executor, [&](std::int64_t task, std::int32_t worker) {
    multiply_slice(layer, slices.at(task), layer.panels + worker * kPanelFloats);
  });
}

void linear(const float* x, std::int64_t rows, const Weight& weight, const float* bias, float* y,
            std::vector<float>& scratch, Executor& executor) {
  const Product product = {&weight, bias, y};
  linear(x, rows, {&product, 1}, scratch, executor);
}

void widen_row(const Weight& weight, std::int64_t row, float* to) {
  const auto* from =
      static_cast<const std::byte*>(weight.data) + row * weight.in * size_of(weight.type);
  switch (weight.type) {
    case WeightType::kF32:
      return widen(from, DType::kF32, weight.in, to);
    case WeightType::kF16:
      return widen(from, DType::kF16, weight.in, to);
    case WeightType::kBF16:
      return widen(from, DType::kBF16, weight.in, to);
    case WeightType::kInt8:
      break;
  }
  const auto* elements = reinterpret_cast<const std::int8_t*>(from);
  for (std::int64_t i = 0; i < weight.in; ++i) {
    to[i] = static_cast<float>(elements[i]) * weight.scales[row];
  }
}

bool quantise_row(const float* x, std::int64_t count, std::int8_t* to, float* scale) {
  std::uint32_t largest = 0;  // of the magnitudes as bits, which are in the same order
  for (std::int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  }
  const float most = std::bit_cast<float>(largest);
  if (!std::isfinite(most)) return false;
  // Of a row too small to divide by, nothing is left: what is lost is below 2^-126.
  const bool some = most >= 0x1p-126f;
  const float inverse = some ? 127.0f / most : 0.0f;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  for (std::int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>((some ? x[i] : 0.0f) * inverse + kShift);
    to[i] = static_cast<std::int8_t>(static_cast<std::uint8_t>(bits));
  }
  *scale = some ? most / 127.0f : 0.0f;
  return true;
}

}  // namespace kvcache::runner
