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

// Outputs per task, ours and of the library. Constants, so that what a task computes does not
// depend on the threads.
constexpr std::int64_t kSlice = 64;
constexpr std::int64_t kLibrarySlice = 128;
// Multiply-adds below which waking other threads costs more than it saves.
constexpr std::int64_t kSerialBelow = 1 << 16;

// y[r][o] of a slice of the outputs, one task of many.
struct Layer {
  const float* x = nullptr;  // as given
  std::int64_t rows = 0;
  Weight weight;
  const float* bias = nullptr;
  float* y = nullptr;
  float* panels = nullptr;  // [concurrency, kPanelFloats]

  const TypedProduct* ours = nullptr;
  std::byte* staged = nullptr;    // [rows, staged_stride(in)] of float or int16
  std::int64_t staged_bytes = 0;  // of a row
  float* x_scales = nullptr;      // [rows, cuts_of(in)]

  std::uint16_t* bits = nullptr;  // [rows, in] rounded to bf16, for the library
  std::atomic<bool> refused = false;

  const void* row(std::int64_t out) const {
    return static_cast<const std::byte*>(weight.data) + out * weight.in * size_of(weight.type);
  }
  void add_bias(std::int64_t begin, std::int64_t end) const {
    if (bias == nullptr) return;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t o = begin; o < end; ++o) y[r * weight.out + o] += bias[o];
    }
  }
};

const TypedProduct& typed(const Products& products, WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return products.f32;
    case WeightType::kF16:
      return products.f16;
    case WeightType::kBF16:
      return products.bf16;
    case WeightType::kInt8:
      break;
  }
  return products.int8;
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
  const std::int64_t in = layer.weight.in;
  layer.ours->stage(layer.x + row * in, in, layer.staged + row * layer.staged_bytes,
                    layer.x_scales + row * cuts_of(in));
}

void multiply_slice(const Layer& layer, std::int64_t begin, std::int64_t end, float* panel) {
  SliceProduct slice;
  slice.x = layer.staged;
  slice.x_scales = layer.weight.type == WeightType::kInt8 ? layer.x_scales : nullptr;
  slice.rows = layer.rows;
  slice.in = layer.weight.in;
  slice.weight = layer.row(begin);
  slice.outs = end - begin;
  slice.scales = layer.weight.scales != nullptr ? layer.weight.scales + begin : nullptr;
  slice.y = layer.y + begin;
  slice.y_stride = layer.weight.out;
  slice.panel = panel;
  layer.ours->product(slice);
  layer.add_bias(begin, end);
}

// Blocks of dense rows, [kBlockRows, slice], copied to where they belong. One row by us, in the
// library's order.
constexpr std::int64_t kBlockRows = kPanelFloats / kLibrarySlice;
bool multiply_slice_by_library(const Layer& layer, std::int64_t begin, std::int64_t end,
                               float* panel) {
  const std::int64_t in = layer.weight.in;
  const std::int64_t outs = end - begin;
  const bool f32 = layer.weight.type == WeightType::kF32;
  const auto* weight = static_cast<const float*>(layer.row(begin));
  const auto* weight_bits = static_cast<const std::uint16_t*>(layer.row(begin));
  const LibraryOrder& alike = products().library_order;
  if (layer.rows == 1 && f32 && alike.f32 != nullptr) {
    alike.f32(layer.x, weight, in, outs, layer.y + begin);
  } else if (layer.rows == 1 && !f32 && alike.bf16 != nullptr) {
    alike.bf16(layer.bits, weight_bits, in, outs, layer.y + begin);
  } else {
    for (std::int64_t r = 0; r < layer.rows; r += kBlockRows) {
      const std::int64_t rows = std::min(kBlockRows, layer.rows - r);
      const bool done = f32 ? matmul(layer.x + r * in, rows, weight, outs, in, panel)
                            : matmul_bf16(layer.bits + r * in, rows, weight_bits, outs, in, panel);
      if (!done) return false;
      for (std::int64_t i = 0; i < rows; ++i) {
        std::copy_n(panel + i * outs, outs, layer.y + (r + i) * layer.weight.out + begin);
      }
    }
  }
  layer.add_bias(begin, end);
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

void linear(const float* x, std::int64_t rows, const Weight& weight, const float* bias, float* y,
            std::vector<float>& scratch, Executor& executor) {
  if (rows == 0) return;
  const std::int64_t in = weight.in;
  const bool library = weight.type == WeightType::kF32    ? matmul_has_f32()
                       : weight.type == WeightType::kBF16 ? matmul_has_bf16()
                                                          : false;
  const std::int64_t panels = executor.concurrency() * kPanelFloats;
  const std::int64_t staged = aligned(rows * staged_stride(in));
  const std::int64_t scales = aligned(rows * cuts_of(in));
  const std::int64_t bits = library ? aligned((rows * in + 1) / 2) : 0;
  const auto needed = static_cast<std::size_t>(panels + staged + scales + bits + aligned(1));
  if (scratch.size() < needed) scratch.resize(needed);

  Layer layer;
  layer.x = x;
  layer.rows = rows;
  layer.weight = weight;
  layer.bias = bias;
  layer.y = y;
  const auto address = reinterpret_cast<std::uintptr_t>(scratch.data());
  layer.panels = scratch.data() + (-address % kStagedAlignment) / sizeof(float);
  layer.staged = reinterpret_cast<std::byte*>(layer.panels + panels);
  layer.x_scales = layer.panels + panels + staged;
  layer.bits = reinterpret_cast<std::uint16_t*>(layer.x_scales + scales);
  layer.ours = &typed(products(), weight.type);
  const bool int8 = weight.type == WeightType::kInt8;
  layer.staged_bytes = staged_stride(in) * (int8 ? sizeof(std::int16_t) : sizeof(float));
  const bool serial = rows * weight.out * in < kSerialBelow;

  if (library) {
    if (weight.type == WeightType::kBF16) narrow(x, DType::kBF16, rows * in, layer.bits);
    run((weight.out + kLibrarySlice - 1) / kLibrarySlice, serial, executor,
        [&](std::int64_t task, std::int32_t worker) {
          const std::int64_t begin = task * kLibrarySlice;
          const std::int64_t end = std::min(begin + kLibrarySlice, weight.out);
          if (!multiply_slice_by_library(layer, begin, end, layer.panels + worker * kPanelFloats)) {
            layer.refused.store(true, std::memory_order_relaxed);
          }
        });
    if (!layer.refused.load(std::memory_order_relaxed)) return;
  }
  constexpr std::int64_t kSerialRows = 4;
  run(rows, serial || rows <= kSerialRows, executor,
      [&](std::int64_t row, std::int32_t) { stage_row(layer, row); });
  run((weight.out + kSlice - 1) / kSlice, serial, executor,
      [&](std::int64_t task, std::int32_t worker) {
        const std::int64_t begin = task * kSlice;
        multiply_slice(layer, begin, std::min(begin + kSlice, weight.out),
                       layer.panels + worker * kPanelFloats);
      });
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
