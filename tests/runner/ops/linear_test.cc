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
#include "support/linear_case.h"

namespace kvcache::runner {
namespace {

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

TEST(LinearTest, ProductsOfOneInputAreThoseEachAlone) {
  for (const WeightType type : kTypes) {
    for (const std::int64_t rows : {1, 2, 9}) {
      const Case a(rows, 700, 200, type, 1);
      Case b(rows, 33, 200, type, 2);
      Case c(rows, 1100, 200, type, 3);
      b.x = c.x = a.x;
      for (const std::int32_t threads : {1, 2, 3}) {
        const auto pool = make_thread_pool(threads);
        ASSERT_TRUE(pool.ok());
        std::vector<float> y[3] = {a.run(), b.run(serial_executor(), false), c.run()};
        const std::vector<float> expected[3] = {y[0], y[1], y[2]};
        for (auto& each : y) std::fill(each.begin(), each.end(), NAN);
        const Product products[] = {{&a.weight, a.bias.data(), y[0].data()},
                                    {&b.weight, nullptr, y[1].data()},
                                    {&c.weight, c.bias.data(), y[2].data()}};
        std::vector<float> scratch;
        linear(a.x.data(), rows, products, scratch, **pool);
        for (int i = 0; i < 3; ++i) EXPECT_EQ(y[i], expected[i]) << name_of(type) << " " << i;
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
