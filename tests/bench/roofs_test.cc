// Roofs touch what they say: every byte, within bounds, on every thread.
#include "bench/roofs.h"

#include <cmath>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

TEST(RoofKernels, TheWidestComeFirstAndPortableAlwaysRuns) {
  const RoofKernels* sets[3];
  const int count = all_roof_kernels(sets);
  ASSERT_GE(count, 1);
  for (int i = 1; i < count; ++i) EXPECT_GE(sets[i - 1]->bits, sets[i]->bits);
  EXPECT_STREQ(sets[count - 1]->name, "portable");
}

TEST(RoofKernels, ABackendHasThoseOfItsInstructions) {
  EXPECT_STREQ(roof_kernels("portable").name, "portable");
  const RoofKernels* sets[3];
  all_roof_kernels(sets);
  EXPECT_EQ(&roof_kernels(nullptr), sets[0]);
  EXPECT_EQ(&roof_kernels("reference"), sets[0]);
}

TEST(RoofKernels, EveryLoopRunsOnWhatItMayBeGiven) {
  const RoofKernels* sets[3];
  const int count = all_roof_kernels(sets);
  const std::vector<std::uint16_t> memory(4096, 0x3c01);
  for (int i = 0; i < count; ++i) {
    const RoofKernels& set = *sets[i];
    for (const std::int64_t bytes : {0, 512, 1024, 8192}) set.read(memory.data(), bytes);
    for (const std::int64_t elements : {0, 64, 4096}) {
      set.widen_f16(memory.data(), elements);
      set.widen_bf16(memory.data(), elements);
    }
    EXPECT_EQ(set.fma(0), 0);
    EXPECT_EQ(set.fma(3), 3 * 64 * 12 * (set.bits / 32) * 2);
    if (set.dot_bf16 != nullptr) {
      EXPECT_EQ(set.dot_bf16(2), 2 * 64 * 12 * 64);
    }
    if (set.dot_int8 != nullptr) {
      EXPECT_EQ(set.dot_int8(2), 2 * 64 * 12 * 128);
    }
  }
}

TEST(Roofs, RatesArePositiveOnOneThreadAndOnMore) {
  const auto memory = Pages::create(3 << 20);
  ASSERT_TRUE(memory.ok());
  for (const std::int32_t threads : {1, 3}) {
    const auto pool = make_thread_pool(threads);
    ASSERT_TRUE(pool.ok());
    const Meter meter{pool->get()};
    const RoofKernels& kernels = roof_kernels(nullptr);
    const auto bytes = static_cast<std::size_t>(memory->bytes());
    EXPECT_GT(read_seconds(kernels, {memory->data(), bytes}, meter), 0);
    EXPECT_GT(fma_rate(kernels, meter, 1e-4), 0);
    EXPECT_GT(widen_rate(kernels, DType::kF16, meter, 1e-4), 0);
    EXPECT_GT(widen_rate(kernels, DType::kBF16, meter, 1e-4), 0);
    EXPECT_TRUE(std::isinf(widen_rate(kernels, DType::kF32, meter, 1e-4)));
  }
}

TEST(Roofs, CachesHaveASizeAndTheLastIsTheLargest) {
  EXPECT_GE(second_level_bytes(), 64 << 10);
  EXPECT_GE(last_level_bytes(), second_level_bytes());
}

TEST(Meter, SpreadRunsEveryTaskOnce) {
  const auto pool = make_thread_pool(2);
  ASSERT_TRUE(pool.ok());
  std::vector<int> runs(100, 0);
  const double seconds =
      Meter{pool->get(), Clock::kCpu}.spread(100, [&](std::int64_t task) { ++runs[task]; });
  EXPECT_GE(seconds, 0);
  EXPECT_THAT(runs, ::testing::Each(1));
}

}  // namespace
}  // namespace kvcache::bench
