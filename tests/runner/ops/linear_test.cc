#include "runner/ops/linear.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
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
  Case(std::int64_t rows_in, std::int64_t out, std::int64_t in, DType dtype, unsigned seed = 1)
      : rows(rows_in) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    x.resize(static_cast<std::size_t>(rows * in));
    bias.resize(static_cast<std::size_t>(out));
    std::vector<float> w(static_cast<std::size_t>(out * in));
    for (float& value : x) value = normal(random);
    for (float& value : w) value = normal(random);
    for (float& value : bias) value = normal(random);
    stored.resize(static_cast<std::size_t>(out * in * size_of(dtype)));
    narrow(w.data(), dtype, out * in, stored.data());
    weight = {stored.data(), dtype, out, in};
  }

  std::vector<float> rounded(const std::vector<float>& values) const {
    std::vector<std::uint32_t> bits(values.size());
    std::vector<float> widened(values.size());
    const auto count = static_cast<std::int64_t>(values.size());
    narrow(values.data(), weight.dtype, count, bits.data());
    widen(bits.data(), weight.dtype, count, widened.data());
    return widened;
  }

  // The largest error, in units of what float32 sums of this length may lose.
  double error(const std::vector<float>& y, bool with_bias) const {
    const std::vector<float> a = rounded(x);
    std::vector<float> w(static_cast<std::size_t>(weight.out * weight.in));
    widen(weight.data, weight.dtype, weight.out * weight.in, w.data());
    double worst = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t o = 0; o < weight.out; ++o) {
        double sum = with_bias ? bias[static_cast<std::size_t>(o)] : 0.0;
        double size = std::fabs(sum);
        for (std::int64_t k = 0; k < weight.in; ++k) {
          const double product =
              static_cast<double>(a[static_cast<std::size_t>(r * weight.in + k)]) *
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

  std::int64_t rows;
  std::vector<float> x, bias;
  std::vector<std::byte> stored;
  Weight weight;
};

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST(LinearTest, AgreesWithFloat64OnRaggedSizes) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t rows : {1, 2, 3, 7, 63, 64, 65}) {
      for (const std::int64_t out : {1, 5, 31, 33, 130}) {
        for (const std::int64_t in : {1, 2, 15, 52, 97}) {
          const Case c(rows, out, in, dtype);
          EXPECT_LT(c.error(c.run(), true), 1)
              << name_of(dtype) << " rows " << rows << " out " << out << " in " << in;
        }
      }
    }
  }
}

TEST(LinearTest, AgreesWithFloat64WhereSumsAreCut) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t rows : {1, 5}) {
      for (const std::int64_t in : {511, 512, 513, 704, 1024, 1025, 2100}) {
        const Case c(rows, 40, in, dtype);
        EXPECT_LT(c.error(c.run(serial_executor(), false), false), 1)
            << name_of(dtype) << " rows " << rows << " in " << in;
      }
    }
  }
}

TEST(LinearTest, ThreadsDoNotChangeABit) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t rows : {1, 9}) {
      const Case c(rows, 700, 200, dtype);
      const std::vector<float> expected = c.run();
      for (const std::int32_t threads : {2, 3, 4}) {
        const auto pool = make_thread_pool(threads);
        ASSERT_TRUE(pool.ok());
        EXPECT_EQ(c.run(**pool), expected) << name_of(dtype) << " threads " << threads;
      }
    }
  }
}

TEST(LinearTest, OneRowAndManyAreTheSameBits) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t in : {52, 97, 704, 1100}) {
      Case many(300, 140, in, dtype);  // more rows than a block of the library's output
      const std::vector<float> together = many.run();
      for (const std::int64_t r : {0, 1, 255, 256, 299}) {
        Case one(1, 140, in, dtype);
        one.stored = many.stored;
        one.weight.data = one.stored.data();
        one.bias = many.bias;
        one.x.assign(many.x.begin() + r * in, many.x.begin() + (r + 1) * in);
        EXPECT_EQ(one.run(),
                  std::vector<float>(together.begin() + r * 140, together.begin() + (r + 1) * 140))
            << name_of(dtype) << " in " << in << " row " << r;
      }
    }
  }
}

TEST(LinearTest, NoRowsAreNoWork) {
  std::vector<float> scratch;
  linear(nullptr, 0, Weight{nullptr, DType::kF32, 4, 4}, nullptr, nullptr, scratch,
         serial_executor());
  EXPECT_TRUE(scratch.empty());
}

// The instruction sets, one by one.
class ProductsTest : public ::testing::TestWithParam<const Products*> {
 protected:
  const Products& products_here() const { return *GetParam(); }

  std::vector<float> run(const Case& c, const std::vector<float>& x, std::int64_t rows) const {
    std::vector<float> y(static_cast<std::size_t>(rows * c.weight.out), NAN);
    std::vector<float> panel(kPanelFloats, NAN);
    const SliceProduct slice{x.data(),     rows,     c.weight.in,  c.weight.data,
                             c.weight.out, y.data(), c.weight.out, panel.data()};
    switch (c.weight.dtype) {
      case DType::kF32:
        products_here().f32(slice);
        break;
      case DType::kF16:
        products_here().f16(slice);
        break;
      default:
        products_here().bf16(slice);
    }
    return y;
  }
};

TEST_P(ProductsTest, EachRowIsTheSameBitsAloneAndAmongOthers) {
  if (!available(products_here())) return;
  for (const DType dtype : kDTypes) {
    for (const std::int64_t in : {3, 64, 700, 1100}) {
      const Case c(17, 45, in, dtype);
      const std::vector<float> x = c.rounded(c.x);
      const std::vector<float> together = run(c, x, c.rows);
      EXPECT_LT(c.error(together, false), 1) << name_of(dtype) << " in " << in;
      for (std::int64_t r = 0; r < c.rows; ++r) {
        const std::vector<float> row(x.begin() + r * in, x.begin() + (r + 1) * in);
        const std::vector<float> alone = run(c, row, 1);
        EXPECT_EQ(alone, std::vector<float>(together.begin() + r * c.weight.out,
                                            together.begin() + (r + 1) * c.weight.out))
            << name_of(dtype) << " in " << in << " row " << r;
      }
    }
  }
}

TEST_P(ProductsTest, TheDotInstructionAgreesWithFloat64) {
  if (!available(products_here()) || products_here().bf16_dot == nullptr) return;
  for (const std::int64_t in : {1, 2, 31, 32, 33, 64, 701, 1101}) {
    for (const std::int64_t out : {1, 16, 45}) {
      const Case c(1, out, in, DType::kBF16);
      std::vector<std::uint16_t> bits(c.x.size());
      narrow(c.x.data(), DType::kBF16, in, bits.data());
      std::vector<float> y(static_cast<std::size_t>(out), NAN);
      products_here().bf16_dot({nullptr, 1, in, c.weight.data, out, y.data(), out, nullptr},
                               bits.data());
      EXPECT_LT(c.error(y, false), 1) << "in " << in << " out " << out;
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
    const Case c(6, 40, in, DType::kF32);
    std::vector<float> y(static_cast<std::size_t>(c.rows * c.weight.out), NAN);
    if (!matmul(c.x.data(), c.rows, static_cast<const float*>(c.weight.data), c.weight.out, in,
                y.data())) {
      EXPECT_STREQ(matmul_backend(), "ours");
      return;
    }
    EXPECT_LT(c.error(y, false), 1) << "in " << in;
  }
}

}  // namespace
}  // namespace kvcache::runner
