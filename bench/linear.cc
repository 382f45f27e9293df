#include "bench/linear.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <utility>

#include "bench/roofs.h"
#include "runner/model/weights.h"
#include "runner/ops/ops.h"

namespace kvcache::bench {
namespace {

using runner::Weight;
using runner::WeightType;

struct MatrixShape {
  std::int64_t out, in;
};

std::vector<MatrixShape> layer_shapes(const runner::ModelConfig& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  const std::int64_t q = config.num_heads * config.head_dim;
  const std::int64_t kv = config.num_kv_heads * config.head_dim;
  return {{q, hidden},     {kv, hidden},    {kv, hidden},   {hidden, q},
          {inner, hidden}, {inner, hidden}, {hidden, inner}};
}

// Random weights: layers until they fill the ring.
class Ring {
 public:
  Ring(const runner::ModelConfig& config, WeightType type, runner::Activations activations,
       std::int64_t least_bytes, std::uint64_t seed)
      : shapes_(layer_shapes(config)) {
    std::int64_t elements = 0;
    std::int64_t outs = 0;
    for (const MatrixShape& shape : shapes_) {
      elements += shape.out * shape.in;
      outs += shape.out;
    }
    layer_bytes_ = elements * size_of(type);
    layer_elements_ = elements;
    layers_ = (least_bytes + layer_bytes_ - 1) / layer_bytes_;
    scales_.resize(static_cast<std::size_t>(layers_ * outs));

    // Rows are pieces of one random sequence: random enough, and soon made.
    constexpr std::int64_t kSequence = 1 << 20;
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> sequence(kSequence);
    for (float& x : sequence) x = normal(random);
    std::byte* at = memory_.take(layers_ * layer_bytes_);
    float* scale = scales_.data();
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      for (const MatrixShape& shape : shapes_) {
        const Weight weight = {
            at,         type, shape.out, shape.in, type == WeightType::kInt8 ? scale : nullptr,
            activations};
        for (std::int64_t o = 0; o < shape.out; ++o, ++scale, at += shape.in * size_of(type)) {
          const float* row =
              sequence.data() + random() % static_cast<std::uint64_t>(kSequence - shape.in);
          if (type == WeightType::kInt8) {
            runner::quantise_row(row, shape.in, reinterpret_cast<std::int8_t*>(at), scale);
          } else {
            runner::narrow(row,
                           type == WeightType::kF16    ? DType::kF16
                           : type == WeightType::kBF16 ? DType::kBF16
                                                       : DType::kF32,
                           shape.in, at);
          }
        }
        weights_.push_back(weight);
      }
    }
  }

  const std::vector<MatrixShape>& shapes() const { return shapes_; }
  const std::vector<Weight>& weights() const { return weights_; }  // layer by layer
  std::int64_t bytes() const { return layers_ * layer_bytes_; }
  std::int64_t elements() const { return layers_ * layer_elements_; }

 private:
  std::vector<MatrixShape> shapes_;
  runner::WeightMemory memory_;
  std::vector<float> scales_;
  std::vector<Weight> weights_;
  std::int64_t layers_ = 0;
  std::int64_t layer_bytes_ = 0;
  std::int64_t layer_elements_ = 0;
};

// Inputs and outputs of some rows, for the widest matrix.
class Rows {
 public:
  Rows(const Ring& ring, std::int64_t rows, std::uint64_t seed) : rows_(rows) {
    std::int64_t in = 0;
    std::int64_t out = 0;  // of a layer, more than any that share their inputs
    for (const MatrixShape& shape : ring.shapes()) {
      in = std::max(in, shape.in);
      out += shape.out;
    }
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    x_.resize(static_cast<std::size_t>(rows * in));
    y_.resize(static_cast<std::size_t>(rows * out));
    for (float& x : x_) x = normal(random);
  }

  void multiply(const Weight& weight, Executor& executor) {
    runner::linear(x_.data(), rows_, weight, nullptr, y_.data(), scratch_, executor);
  }

  // The products of layer after layer, those of one input together.
  void multiply_all(const Ring& ring, Executor& executor) {
    const std::size_t per_layer = ring.shapes().size();
    for (std::size_t i = 0; i < ring.weights().size();) {
      const std::size_t kind = i % per_layer;
      const std::size_t together = kind == 0 ? 3 : kind == 4 ? 2 : 1;
      runner::Product products[3];
      float* y = y_.data();
      for (std::size_t p = 0; p < together; ++p, ++i) {
        products[p] = {&ring.weights()[i], nullptr, y};
        y += rows_ * ring.weights()[i].out;
      }
      runner::linear(x_.data(), rows_, {products, together}, scratch_, executor);
    }
  }

  // Of some outputs of the layer's products.
  double error(const Ring& ring, Executor& executor) {
    constexpr std::int64_t kSamples = 16;  // outputs of a matrix
    double difference = 0;
    double norm = 0;
    for (std::size_t m = 0; m < ring.shapes().size(); ++m) {
      const Weight& weight = ring.weights()[m];
      std::fill(y_.begin(), y_.end(), NAN);
      multiply(weight, executor);
      std::vector<float> w(static_cast<std::size_t>(weight.in));
      for (std::int64_t sample = 0; sample < kSamples; ++sample) {
        const std::int64_t o = sample * (weight.out - 1) / (kSamples - 1);
        runner::widen_row(weight, o, w.data());
        for (std::int64_t r = 0; r < rows_; ++r) {
          double sum = 0;
          for (std::int64_t k = 0; k < weight.in; ++k) {
            sum += static_cast<double>(w[static_cast<std::size_t>(k)]) *
                   x_[static_cast<std::size_t>(r * weight.in + k)];
          }
          const double off = y_[static_cast<std::size_t>(r * weight.out + o)] - sum;
          difference += off * off;
          norm += sum * sum;
        }
      }
    }
    return std::sqrt(difference / norm);
  }

 private:
  std::int64_t rows_;
  std::vector<float> x_, y_, scratch_;
};

double tolerance_of(WeightType type, runner::Activations activations) {
  switch (type) {
    case WeightType::kF32:
      return 1e-5;
    case WeightType::kF16:
      return 1e-3;  // inputs are rounded to the weights' type
    case WeightType::kBF16:
      return 5e-3;
    case WeightType::kInt8:
      break;
  }
  return activations == runner::Activations::kInt8 ? 1.5e-2 : 1e-4;
}

Case measure(const LinearOptions& options, const Ring& ring, WeightType type, std::int64_t count,
             const Pages& pages, const Meter& meter) {
  constexpr double kBurst = 20e-3;  // seconds
  const RoofKernels& kernels = roof_kernels(nullptr);
  Rows rows(ring, count, options.seed);
  Case result;
  result.error = rows.error(ring, *meter.executor);
  result.tolerance = tolerance_of(type, options.activations);

  const auto bytes = static_cast<double>(ring.bytes());
  const double operations = 2.0 * static_cast<double>(ring.elements() * count);
  const auto compute_rate = [&] {
    if (type == WeightType::kBF16 && kernels.dot_bf16 != nullptr) {
      return dot_bf16_rate(kernels, meter, kBurst);
    }
    if (type == WeightType::kInt8 && kernels.dot_int8 != nullptr) {
      const bool once = options.activations == runner::Activations::kInt8;
      return dot_int8_rate(kernels, meter, kBurst) / (once ? 1 : 2);
    }
    return fma_rate(kernels, meter, kBurst);
  };
  std::vector<double> times, reads, computes, bounds, ratios;
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    reads.push_back(
        static_cast<double>(pages.bytes()) /
        read_seconds(kernels, {pages.data(), static_cast<std::size_t>(pages.bytes())}, meter));
    computes.push_back(compute_rate());
    bounds.push_back(std::max(bytes / reads.back(), operations / computes.back()));
    const double start = meter.now();
    rows.multiply_all(ring, *meter.executor);
    times.push_back(meter.now() - start);
    ratios.push_back(bounds.back() / times.back());
  }
  const bool reading = bytes / median(reads) >= operations / median(computes);
  const double work = (reading ? bytes : operations) / 1e9;
  result.name = std::to_string(count) + (count == 1 ? " row, " : " rows, ") + name_of(type);
  result.unit = reading ? "GB/s" : "GFLOP/s";
  result.achieved = work / median(times);
  result.roof = work / median(bounds);
  result.ratio = median(ratios);
  result.details = {{"read GB/s", median(reads) / 1e9},
                    {"compute GFLOP/s", median(computes) / 1e9},
                    {"GFLOP/s", operations / median(times) / 1e9}};
  return result;
}

}  // namespace

Result<std::vector<Case>> run_linear(const LinearOptions& options,
                                     const std::function<void(int, int)>& on_progress) try {
  if (options.repeats < 1) {
    return Status(StatusCode::kInvalidArgument,
                  "repeats: found " + std::to_string(options.repeats) + ", expected at least 1");
  }
  for (const std::int64_t rows : options.rows) {
    if (rows < 1 || rows > 65536) {
      return Status(StatusCode::kInvalidArgument,
                    "rows: found " + std::to_string(rows) + ", expected 1 .. 65536");
    }
  }
  std::unique_ptr<Executor> pool;
  if (options.threads > 0) {
    KVC_ASSIGN_OR_RETURN(pool, make_thread_pool(options.threads));
  }
  const Meter meter = {pool != nullptr ? pool.get() : &default_executor(), options.clock};
  const std::int64_t ring_bytes =
      options.ring_bytes > 0 ? options.ring_bytes : 8 * last_level_bytes();
  KVC_ASSIGN_OR_RETURN(const Pages pages, Pages::create(ring_bytes));
  std::vector<Case> cases;
  for (const WeightType type : options.types) {
    const Ring ring(options.config, type, options.activations, ring_bytes, options.seed);
    for (const std::int64_t rows : options.rows) {
      cases.push_back(measure(options, ring, type, rows, pages, meter));
      if (on_progress) {
        on_progress(static_cast<int>(cases.size()),
                    static_cast<int>(options.types.size() * options.rows.size()));
      }
    }
  }
  return cases;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "linear: found no memory for a ring of weights");
}

}  // namespace kvcache::bench
