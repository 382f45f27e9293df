#include "runner/ops/linear.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kvcache/types.h"
#include "runner/ops/matmul.h"
#include "runner/ops/ops.h"
#include "runner/ops/product.h"

namespace kvcache::runner {
namespace {

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

  // The inputs as a product takes them.
  std::vector<double> rounded() const {
    std::vector<double> values(x.begin(), x.end());
    if (weight.type == WeightType::kInt8) {
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t begin = 0; begin < weight.in; begin += kSumCut) {
          const std::int64_t count = std::min(kSumCut, weight.in - begin);
          const float* row = x.data() + r * weight.in + begin;
          float largest = 0;
          for (std::int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(row[k]));
          for (std::int64_t k = 0; k < count; ++k) {
            const float integer = std::nearbyint(row[k] * (32767.0f / largest));
            values[static_cast<std::size_t>(r * weight.in + begin + k)] =
                static_cast<double>(integer) * (largest / 32767.0f);
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

constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kF16, WeightType::kBF16,
                                 WeightType::kInt8};

TEST(LinearTest, AgreesWithFloat64OnRaggedSizes) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t rows : {1, 2, 3, 7, 63, 64, 65}) {
      for (const std::int64_t out : {1, 5, 31, 33, 130}) {
        for (const std::int64_t in : {1, 2, 15, 52, 97}) {
          const Case c(rows, out, in, type);
          EXPECT_LT(c.error(c.run(), true), 1)
              << name_of(type) << " rows " << rows << " out " << out << " in " << in;
        }
      }
    }
  }
}

TEST(LinearTest, AgreesWithFloat64WhereSumsAreCut) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t rows : {1, 5}) {
      for (const std::int64_t in : {511, 512, 513, 704, 1024, 1025, 2100}) {
        const Case c(rows, 40, in, type);
        EXPECT_LT(c.error(c.run(serial_executor(), false), false), 1)
            << name_of(type) << " rows " << rows << " in " << in;
      }
    }
  }
}

TEST(LinearTest, ThreadsDoNotChangeABit) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t rows : {1, 9}) {
      const Case c(rows, 700, 200, type);
      const std::vector<float> expected = c.run();
      for (const std::int32_t threads : {2, 3, 4}) {
        const auto pool = make_thread_pool(threads);
        ASSERT_TRUE(pool.ok());
        EXPECT_EQ(c.run(**pool), expected) << name_of(type) << " threads " << threads;
      }
    }
  }
}

TEST(LinearTest, OneRowAndManyAreTheSameBits) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t in : {52, 97, 704, 1100}) {
      const Case many(300, 140, in, type);  // more rows than a block of the library's output
      const std::vector<float> together = many.run();
      for (const std::int64_t r : {0, 1, 255, 256, 299}) {
        EXPECT_EQ(many.row(r).run(),
                  std::vector<float>(together.begin() + r * 140, together.begin() + (r + 1) * 140))
            << name_of(type) << " in " << in << " row " << r;
      }
    }
  }
}

TEST(LinearTest, ARowThatIsNotFiniteReachesNoOther) {
  for (const WeightType type : kTypes) {
    for (const float bad : {NAN, INFINITY}) {
      Case c(14, 9, 600, type);
      c.x[3 * 600 + 599] = bad;
      const std::vector<float> y = c.run();
      for (std::int64_t r = 0; r < c.rows; ++r) {
        for (std::int64_t o = 0; o < 9; ++o) {
          EXPECT_EQ(std::isfinite(y[static_cast<std::size_t>(r * 9 + o)]), r != 3)
              << name_of(type) << " row " << r;
        }
      }
    }
  }
}

TEST(LinearTest, NoRowsAreNoWork) {
  std::vector<float> scratch;
  linear(nullptr, 0, Weight{nullptr, WeightType::kF32, 4, 4}, nullptr, nullptr, scratch,
         serial_executor());
  EXPECT_TRUE(scratch.empty());
}

TEST(LinearTest, Int8OfLargeAndTinyInputsKeepsTheirSize) {
  for (const float size : {1e30f, 1e-25f}) {
    Case c(3, 20, 700, WeightType::kInt8);
    for (float& value : c.x) value *= size;
    EXPECT_LT(c.error(c.run(serial_executor(), false), false), 1) << size;
  }
  Case zeros(2, 20, 700, WeightType::kInt8);
  zeros.x.assign(zeros.x.size(), 0.0f);
  EXPECT_EQ(zeros.run(serial_executor(), false), std::vector<float>(40, 0.0f));
}

TEST(LinearTest, SumsOfTheLargestInt8ProductsDoNotOverflow) {
  Case c(1, 4, 1024, WeightType::kInt8);
  c.x.assign(c.x.size(), -3.0f);
  std::fill(c.stored.begin(), c.stored.end(), std::byte{127});
  c.scales.assign(4, 0.5f);
  c.weight.data = c.stored.data();
  c.weight.scales = c.scales.data();
  for (const float y : c.run(serial_executor(), false)) EXPECT_NEAR(y, -3.0 * 63.5 * 1024, 0.1);
}

TEST(QuantiseRowTest, NoElementMovesByMoreThanHalfAScale) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const float size : {1.0f, 1e20f, 1e-30f}) {
    std::vector<float> row(333);
    for (float& value : row) value = size * normal(random);
    std::vector<std::int8_t> elements(row.size());
    float scale = 0;
    ASSERT_TRUE(quantise_row(row.data(), 333, elements.data(), &scale));
    float largest = 0;
    std::int8_t most = 0;
    for (std::size_t i = 0; i < row.size(); ++i) {
      EXPECT_NEAR(elements[i] * scale, row[i], 0.5001 * scale);
      largest = std::max(largest, std::fabs(row[i]));
      most = std::max(most, static_cast<std::int8_t>(std::abs(elements[i])));
    }
    EXPECT_FLOAT_EQ(scale, largest / 127);
    EXPECT_EQ(most, 127);
  }
}

TEST(QuantiseRowTest, TiesGoToTheEvenNumber) {
  const std::vector<float> row = {127.0f, 0.5f, 1.5f, -2.5f, -3.5f, -127.0f};
  std::vector<std::int8_t> elements(row.size());
  float scale = 0;
  ASSERT_TRUE(quantise_row(row.data(), 6, elements.data(), &scale));
  EXPECT_EQ(elements, (std::vector<std::int8_t>{127, 0, 2, -2, -4, -127}));
  EXPECT_EQ(scale, 1);
}

TEST(QuantiseRowTest, ZerosAndDenormalsAreZeros) {
  for (const float value : {0.0f, -0.0f, 1e-40f}) {
    const std::vector<float> row(5, value);
    std::vector<std::int8_t> elements(5, 1);
    float scale = 1;
    ASSERT_TRUE(quantise_row(row.data(), 5, elements.data(), &scale));
    EXPECT_EQ(elements, std::vector<std::int8_t>(5, 0));
    EXPECT_EQ(scale, 0);
  }
}

TEST(QuantiseRowTest, WhatIsNotFiniteIsRefusedAndNothingWritten) {
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
    for (const std::size_t at : {0, 7, 40}) {
      std::vector<float> row(41, 1.0f);
      row[at] = bad;
      std::vector<std::int8_t> elements(41, 99);
      float scale = 99;
      EXPECT_FALSE(quantise_row(row.data(), 41, elements.data(), &scale)) << bad << " at " << at;
      EXPECT_EQ(elements, std::vector<std::int8_t>(41, 99));
      EXPECT_EQ(scale, 99);
    }
  }
}

// The instruction sets, one by one.
class ProductsTest : public ::testing::TestWithParam<const Products*> {
 protected:
  const Products& products_here() const { return *GetParam(); }

  const TypedProduct& typed(WeightType type) const {
    return type == WeightType::kF32    ? products_here().f32
           : type == WeightType::kF16  ? products_here().f16
           : type == WeightType::kBF16 ? products_here().bf16
                                       : products_here().int8;
  }

  std::vector<float> run(const Case& c) const {
    const std::int64_t in = c.weight.in;
    std::vector<float> y(static_cast<std::size_t>(c.rows * c.weight.out), NAN);
    std::vector<float> panel(kPanelFloats + 16, NAN);
    std::vector<float> staged(static_cast<std::size_t>(c.rows * staged_stride(in)) + 16, NAN);
    std::vector<float> scales(static_cast<std::size_t>(c.rows * cuts_of(in)), NAN);
    const bool int8 = c.weight.type == WeightType::kInt8;
    auto* x = reinterpret_cast<std::byte*>(aligned(staged));
    const std::int64_t stride = staged_stride(in) * (int8 ? 2 : 4);
    for (std::int64_t r = 0; r < c.rows; ++r) {
      typed(c.weight.type)
          .stage(c.x.data() + r * in, in, x + r * stride, scales.data() + r * cuts_of(in));
    }
    SliceProduct slice;
    slice.x = x;
    slice.x_scales = int8 ? scales.data() : nullptr;
    slice.rows = c.rows;
    slice.in = in;
    slice.weight = c.weight.data;
    slice.outs = c.weight.out;
    slice.scales = c.weight.scales;
    slice.y = y.data();
    slice.y_stride = c.weight.out;
    slice.panel = aligned(panel);
    typed(c.weight.type).product(slice);
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
  return {&kPortableProducts, &kAvx2Products, &kAvx512Products, &kAvx512Bf16Products};
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

TEST(MatmulTest, TheLibraryAgreesWithOurOwnProduct) {
  for (const std::int64_t in : {5, 64, 700}) {
    const Case c(6, 40, in, WeightType::kF32);
    std::vector<float> y(static_cast<std::size_t>(c.rows * c.weight.out), NAN);
    if (!matmul(c.x.data(), c.rows, static_cast<const float*>(c.weight.data), c.weight.out, in,
                y.data())) {
      EXPECT_STREQ(matmul_backend(), "ours");
      return;
    }
    EXPECT_LT(c.error(y, false), 1) << "in " << in;
  }
}

// The setting is of the calling thread, and a host's own loops go by it. A new thread, because some
// is set up at a thread's first product.
TEST(MatmulTest, TheThreadsOfTheHostsOpenMpStayAsMany) {
  const auto set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  const auto get = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  if (set == nullptr || get == nullptr) GTEST_SKIP() << "no OpenMP in this process";
  std::thread([&] {
    set(3);
    const Case c(6, 40, 64, WeightType::kF32);
    std::vector<float> y(static_cast<std::size_t>(c.rows * c.weight.out));
    matmul(c.x.data(), c.rows, static_cast<const float*>(c.weight.data), c.weight.out, 64,
           y.data());
    EXPECT_EQ(get(), 3);
    const std::vector<std::uint16_t> halves(static_cast<std::size_t>(40 * 64), 0);
    matmul_bf16(halves.data(), c.rows, halves.data(), c.weight.out, 64, y.data());
    EXPECT_EQ(get(), 3);
  }).join();
}

}  // namespace
}  // namespace kvcache::runner
