// The products of each instruction set, one by one.
#include "runner/ops/product.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kvcache/types.h"
#include "runner/ops/linear.h"
#include "runner/ops/ops.h"
#include "support/linear_case.h"

namespace kvcache::runner {
namespace {

class ProductsTest : public ::testing::TestWithParam<const Products*> {
 protected:
  const Products& products_here() const { return *GetParam(); }

  const TypedProduct& typed(WeightType type, Activations activations = Activations::kInt16) const {
    return type == WeightType::kF32            ? products_here().f32
           : type == WeightType::kF16          ? products_here().f16
           : type == WeightType::kBF16         ? products_here().bf16
           : activations == Activations::kInt8 ? products_here().int8_by_int8
                                               : products_here().int8;
  }

  std::vector<float> run(const Case& c) const {
    const std::int64_t in = c.weight.in;
    std::vector<float> y(static_cast<std::size_t>(c.rows * c.weight.out), NAN);
    std::vector<float> panel(kPanelFloats + 16, NAN);
    std::vector<float> staged(static_cast<std::size_t>(c.rows * staged_stride(in)) + 16, NAN);
    std::vector<InputCut> cuts(static_cast<std::size_t>(c.rows * cuts_of(in)), {NAN, 77});
    const TypedProduct& product = typed(c.weight.type, c.weight.activations);
    const bool int8 = c.weight.type == WeightType::kInt8;
    auto* x = reinterpret_cast<std::byte*>(aligned(staged));
    const std::int64_t stride = staged_stride(in) * (int8 ? 2 : 4);
    for (std::int64_t r = 0; r < c.rows; ++r) {
      product.stage(c.x.data() + r * in, in, x + r * stride, cuts.data() + r * cuts_of(in));
    }
    SliceProduct slice;
    slice.x = x;
    slice.cuts = int8 ? cuts.data() : nullptr;
    slice.rows = c.rows;
    slice.in = in;
    slice.weight = c.weight.data;
    slice.outs = c.weight.out;
    slice.scales = c.weight.scales;
    slice.y = y.data();
    slice.y_stride = c.weight.out;
    slice.panel = aligned(panel);
    product.product(slice);
    return y;
  }

  static float* aligned(std::vector<float>& memory) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (-address % kStagedAlignment) / sizeof(float);
  }
};

TEST_P(ProductsTest, EachRowIsTheSameBitsAloneAndAmongOthers) {
  if (!available(products_here())) return;
  for (const WeightType type : kTypes) {
    for (const std::int64_t in : {3, 64, 700, 1100}) {
      for (const std::int64_t rows : {2, 5, 17, 71}) {  // of the stored weights, and of panels
        const Case c(rows, 45, in, type);
        const std::vector<float> together = run(c);
        EXPECT_LT(c.error(together, false), 1) << name_of(type) << " in " << in;
        for (std::int64_t r = 0; r < c.rows; r += 1 + rows / 6) {
          EXPECT_EQ(run(c.row(r)), std::vector<float>(together.begin() + r * c.weight.out,
                                                      together.begin() + (r + 1) * c.weight.out))
              << name_of(type) << " in " << in << " row " << r << " of " << rows;
        }
      }
    }
  }
}

// What int8 weights are defined to give: exact sums of integers a cut, then floats in order.
std::vector<float> int8_by_definition(const Case& c) {
  const std::int64_t in = c.weight.in;
  const auto* w = static_cast<const std::int8_t*>(c.weight.data);
  std::vector<float> y(static_cast<std::size_t>(c.rows * c.weight.out));
  std::vector<std::int32_t> integers(static_cast<std::size_t>(kSumCut));
  for (std::int64_t r = 0; r < c.rows; ++r) {
    for (std::int64_t begin = 0; begin < in; begin += kSumCut) {
      const std::int64_t count = std::min(kSumCut, in - begin);
      const float scale = Case::round_cut(c.x.data() + r * in + begin, count, c.weight.activations,
                                          integers.data());
      for (std::int64_t o = 0; o < c.weight.out; ++o) {
        std::int64_t sum = 0;
        for (std::int64_t k = 0; k < count; ++k) {
          sum += std::int64_t{integers[static_cast<std::size_t>(k)]} * w[o * in + begin + k];
        }
        float value = static_cast<float>(sum) * scale;
        value *= c.weight.scales[o];
        float& to = y[static_cast<std::size_t>(r * c.weight.out + o)];
        to = begin == 0 ? value : to + value;
      }
    }
  }
  return y;
}

constexpr Activations kActivations[] = {Activations::kInt16, Activations::kInt8};

TEST_P(ProductsTest, Int8IsItsDefinitionToTheBit) {
  if (!available(products_here())) return;
  for (const Activations activations : kActivations) {
    for (const std::int64_t in : {1, 31, 64, 511, 513, 1100}) {
      for (const std::int64_t rows : {1, 2, 4, 8, 9, 19}) {
        for (const std::int64_t out : {3, 45}) {
          Case c(rows, out, in, WeightType::kInt8, static_cast<unsigned>(in + rows));
          c.weight.activations = activations;
          EXPECT_EQ(run(c), int8_by_definition(c))
              << "activations " << static_cast<int>(activations) << " in " << in << " rows " << rows
              << " out " << out;
        }
      }
    }
  }
}

TEST_P(ProductsTest, Int8IsItsDefinitionOnInputsMadeToOverflow) {
  if (!available(products_here())) return;
  std::mt19937 random(9);
  for (const Activations activations : kActivations) {
    for (const std::int64_t rows : {1, 2, 4, 13}) {
      for (int kind = 0; kind < 6; ++kind) {
        Case c(rows, 37, 1100, WeightType::kInt8, static_cast<unsigned>(kind));
        c.weight.activations = activations;
        c.weight.data = c.stored.data();
        c.weight.scales = c.scales.data();
        auto* w = reinterpret_cast<std::int8_t*>(c.stored.data());
        for (std::size_t i = 0; i < c.stored.size(); ++i) {
          const bool odd = kind == 2 ? i % 2 == 1 : random() % 2 == 1;
          w[i] = kind == 0 || kind == 1 ? 127 : odd ? -127 : 127;
          if (kind == 5) w[i] = -128;  // no quantise_row gives it, a file may
        }
        for (std::size_t i = 0; i < c.x.size(); ++i) {
          if (kind < 3) c.x[i] = kind == 1 ? -3.0f : 3.0f;
          if (kind == 3) c.x[i] = i % 512 == 7 ? 1e20f : 1e-20f * c.x[i];  // one outlier a cut
          if (kind == 4) c.x[i] = std::ldexp(c.x[i], static_cast<int>(random() % 40) - 20);
        }
        EXPECT_EQ(run(c), int8_by_definition(c)) << "kind " << kind << " rows " << rows;
      }
    }
  }
}

TEST_P(ProductsTest, ErrorsOfInt8AreThoseOfItsInputsRounded) {
  if (!available(products_here())) return;
  for (const Activations activations : kActivations) {
    Case c(24, 64, 1024, WeightType::kInt8);
    for (std::size_t i = 0; i < c.x.size(); i += 200) c.x[i] *= 8;  // outliers
    c.weight.activations = activations;
    const std::vector<float> y = run(c);
    double difference = 0;
    double norm = 0;
    std::vector<float> w(1024);
    for (std::int64_t o = 0; o < 64; ++o) {
      widen_row(c.weight, o, w.data());
      for (std::int64_t r = 0; r < 24; ++r) {
        double sum = 0;
        for (std::size_t k = 0; k < 1024; ++k) {
          sum += static_cast<double>(w[k]) * c.x[static_cast<std::size_t>(r) * 1024 + k];
        }
        difference += std::pow(y[static_cast<std::size_t>(r * 64 + o)] - sum, 2);
        norm += sum * sum;
      }
    }
    const double error = std::sqrt(difference / norm);
    EXPECT_LT(error, activations == Activations::kInt8 ? 1e-2 : 1.6e-4);
    if (activations == Activations::kInt8) {
      EXPECT_GT(error, 1e-3);  // that it was asked for
    }
  }
}

TEST_P(ProductsTest, RoundingIsThatOfTheTypes) {
  if (!available(products_here())) return;
  const std::vector<float> x = {1.00390625f, -1.01171875f, 0.1f,  65519.0f,  65520.0f,
                                -1e-8f,      1e-45f,       3e38f, -INFINITY, NAN};
  const auto in = static_cast<std::int64_t>(x.size());
  for (const WeightType type : {WeightType::kF32, WeightType::kF16, WeightType::kBF16}) {
    std::vector<std::uint32_t> bits(x.size());
    std::vector<float> expected(x.size());
    narrow(x.data(), Case::dtype_of(type), in, bits.data());
    widen(bits.data(), Case::dtype_of(type), in, expected.data());
    std::vector<float> staged(static_cast<std::size_t>(staged_size(in)), NAN);
    typed(type).stage(x.data(), in, staged.data(), nullptr);
    for (std::size_t i = 0; i < staged.size(); ++i) {
      const float value = i < x.size() ? expected[i] : 0.0f;
      EXPECT_TRUE(staged[i] == value || (std::isnan(staged[i]) && std::isnan(value)))
          << name_of(type) << " " << i << ": " << staged[i] << ", expected " << value;
    }
  }
}

TEST_P(ProductsTest, SiluIsWithinThreeUlp) {
  if (!available(products_here())) return;
  std::vector<float> gate;
  for (float x = -80; x < 80; x += 0.137f) gate.push_back(x);
  const std::vector<float> before = gate;
  const std::vector<float> up(gate.size(), 2.0f);
  products_here().silu_multiply(gate.data(), up.data(), static_cast<std::int64_t>(gate.size()));
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double expected = 2.0 * before[i] / (1.0 + std::exp(-static_cast<double>(before[i])));
    EXPECT_NEAR(gate[i], expected, 4e-7 * std::fabs(expected)) << before[i];
  }
}

TEST_P(ProductsTest, TheOrderOfTheLibraryAgreesWithFloat64) {
  const LibraryOrder& order = products_here().library_order;
  if (!available(products_here())) return;
  for (const std::int64_t in : {1, 2, 31, 32, 33, 64, 701, 1101}) {
    for (const std::int64_t out : {1, 16, 45}) {
      if (order.bf16 != nullptr) {
        const Case c(1, out, in, WeightType::kBF16);
        std::vector<std::uint16_t> bits(c.x.size());
        narrow(c.x.data(), DType::kBF16, in, bits.data());
        std::vector<float> y(static_cast<std::size_t>(out), NAN);
        order.bf16(bits.data(), static_cast<const std::uint16_t*>(c.weight.data), in, out,
                   y.data());
        EXPECT_LT(c.error(y, false), 1) << "bf16 in " << in << " out " << out;
      }
      if (order.f32 != nullptr) {
        const Case c(1, out, in, WeightType::kF32);
        std::vector<float> y(static_cast<std::size_t>(out), NAN);
        order.f32(c.x.data(), static_cast<const float*>(c.weight.data), in, out, y.data());
        EXPECT_LT(c.error(y, false), 1) << "f32 in " << in << " out " << out;
      }
    }
  }
}

TEST(ProductsTest, OneOfThemRunsEverywhere) {
  EXPECT_TRUE(available(kPortableProducts));
  EXPECT_TRUE(available(products()));
}

std::vector<const Products*> all_products() {
#if KVC_X86_64
  return {&kPortableProducts, &kAvx2Products, &kAvx512Products, &kAvx512VnniProducts,
          &kAvx512Bf16Products};
#elif KVC_ARM64
  return {&kPortableProducts, &kNeonProducts};
#else
  return {&kPortableProducts};
#endif
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, ProductsTest, ::testing::ValuesIn(all_products()),
                         [](const auto& set) {
                           std::string name = set.param->name;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace kvcache::runner
