// Products of linear layers with the answers they should have.
#ifndef KVCACHE_TESTS_SUPPORT_LINEAR_CASE_H_
#define KVCACHE_TESTS_SUPPORT_LINEAR_CASE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/types.h"
#include "runner/ops/linear.h"
#include "runner/ops/ops.h"
#include "runner/ops/product.h"

namespace kvcache::runner {

// Random weights and inputs, and the product in float64 over the values as rounded.
struct Case {
  Case(std::int64_t rows_in, std::int64_t out, std::int64_t in, WeightType type, unsigned seed = 1)
      : rows(rows_in) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    x.resize(static_cast<std::size_t>(rows * in));
    bias.resize(static_cast<std::size_t>(out));
    std::vector<float> w(static_cast<std::size_t>(out * in));
    for (float& value : x) value = normal(random);
    for (float& value : w) value = normal(random);
    for (float& value : bias) value = normal(random);
    stored.resize(w.size() * static_cast<std::size_t>(size_of(type)));
    if (type == WeightType::kInt8) {
      scales.resize(static_cast<std::size_t>(out));
      auto* elements = reinterpret_cast<std::int8_t*>(stored.data());
      for (std::int64_t o = 0; o < out; ++o) {
        EXPECT_TRUE(quantise_row(w.data() + o * in, in, elements + o * in,
                                 scales.data() + static_cast<std::size_t>(o)));
      }
    } else {
      narrow(w.data(), dtype_of(type), out * in, stored.data());
    }
    weight = {stored.data(), type, out, in, scales.empty() ? nullptr : scales.data()};
  }

  static DType dtype_of(WeightType type) {
    return type == WeightType::kF16    ? DType::kF16
           : type == WeightType::kBF16 ? DType::kBF16
                                       : DType::kF32;
  }

  // The integers that a cut [count] of inputs is rounded to, as product.h has it; the scale.
  static float round_cut(const float* row, std::int64_t count, Activations activations,
                         std::int32_t* integers) {
    float largest = 0;
    for (std::int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(row[k]));
    const bool some = largest > 1e-30f;
    const float inverse = some ? kLargest / largest : 0.0f;
    const std::int64_t group = activations == Activations::kInt8 ? 32 : count;
    for (std::int64_t begin = 0; begin < count; begin += group) {
      const std::int64_t end = std::min(begin + group, count);
      std::int32_t m = 1;
      if (activations == Activations::kInt8) {
        float most = 0;
        for (std::int64_t k = begin; k < end; ++k) most = std::max(most, std::fabs(row[k]));
        m = std::clamp(static_cast<std::int32_t>(std::ceil(most * inverse / 127)), 1, 257);
      }
      const float factor = inverse / static_cast<float>(m);
      for (std::int64_t k = begin; k < end; ++k) {
        integers[k] = m * static_cast<std::int32_t>(std::nearbyint(row[k] * factor));
      }
    }
    return some ? largest / kLargest : 0.0f;
  }

  // The inputs as a product takes them.
  std::vector<double> rounded() const {
    std::vector<double> values(x.begin(), x.end());
    if (weight.type == WeightType::kInt8) {
      std::vector<std::int32_t> integers(static_cast<std::size_t>(kSumCut));
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t begin = 0; begin < weight.in; begin += kSumCut) {
          const std::int64_t count = std::min(kSumCut, weight.in - begin);
          const std::int64_t at = r * weight.in + begin;
          const double scale = round_cut(x.data() + at, count, weight.activations, integers.data());
          for (std::int64_t k = 0; k < count; ++k) {
            values[static_cast<std::size_t>(at + k)] =
                integers[static_cast<std::size_t>(k)] * scale;
          }
        }
      }
      return values;
    }
    std::vector<std::uint32_t> bits(x.size());
    std::vector<float> widened(x.size());
    const auto count = static_cast<std::int64_t>(x.size());
    narrow(x.data(), dtype_of(weight.type), count, bits.data());
    widen(bits.data(), dtype_of(weight.type), count, widened.data());
    return {widened.begin(), widened.end()};
  }

  // The largest error, in units of what float32 sums of this length may lose.
  double error(const std::vector<float>& y, bool with_bias) const {
    const std::vector<double> a = rounded();
    std::vector<float> w(static_cast<std::size_t>(weight.out * weight.in));
    for (std::int64_t o = 0; o < weight.out; ++o) widen_row(weight, o, w.data() + o * weight.in);
    double worst = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t o = 0; o < weight.out; ++o) {
        double sum = with_bias ? bias[static_cast<std::size_t>(o)] : 0.0;
        double size = std::fabs(sum);
        for (std::int64_t k = 0; k < weight.in; ++k) {
          const double product = a[static_cast<std::size_t>(r * weight.in + k)] *
                                 w[static_cast<std::size_t>(o * weight.in + k)];
          sum += product;
          size += std::fabs(product);
        }
        const double found = y[static_cast<std::size_t>(r * weight.out + o)];
        const double difference = std::fabs(found - sum) / (size * 1e-6 + 1e-12);
        if (!(difference <= worst)) worst = std::isnan(difference) ? INFINITY : difference;
      }
    }
    return worst;
  }

  std::vector<float> run(Executor& executor = serial_executor(), bool with_bias = true) const {
    std::vector<float> y(static_cast<std::size_t>(rows * weight.out), NAN);
    std::vector<float> scratch;
    linear(x.data(), rows, weight, with_bias ? bias.data() : nullptr, y.data(), scratch, executor);
    return y;
  }

  // The same for row `r` alone.
  Case row(std::int64_t r) const {
    Case one(*this);
    one.rows = 1;
    one.x.assign(x.begin() + r * weight.in, x.begin() + (r + 1) * weight.in);
    return one;  // over the weights of this
  }

  std::int64_t rows;
  std::vector<float> x, bias, scales;
  std::vector<std::byte> stored;
  Weight weight;
};

inline constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kF16, WeightType::kBF16,
                                        WeightType::kInt8};

}  // namespace kvcache::runner

#endif  // KVCACHE_TESTS_SUPPORT_LINEAR_CASE_H_
