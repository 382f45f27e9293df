#include "base/checked_math.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "base/aligned_buffer.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kMax = INT64_MAX;

TEST(CheckedMath, OverflowIsReported) {
  std::int64_t out = 0;
  EXPECT_TRUE(checked_add(kMax - 1, 1, &out));
  EXPECT_EQ(out, kMax);
  EXPECT_FALSE(checked_add(kMax, 1, &out));
  EXPECT_TRUE(checked_mul(kMax / 2, 2, &out));
  EXPECT_FALSE(checked_mul(kMax / 2 + 1, 2, &out));
  EXPECT_FALSE(checked_mul(INT64_MIN, -1, &out));
}

TEST(CheckedMath, ProductStopsAtZeroButNotAtNegative) {
  std::int64_t out = -1;
  EXPECT_TRUE(checked_product({2, 3, 4}, &out));
  EXPECT_EQ(out, 24);
  EXPECT_TRUE(checked_product({kMax, kMax, 0}, &out));
  EXPECT_EQ(out, 0);
  EXPECT_FALSE(checked_product({kMax, 2}, &out));
  EXPECT_FALSE(checked_product({0, -1}, &out));
  EXPECT_TRUE(checked_product({}, &out));
  EXPECT_EQ(out, 1);
}

TEST(CheckedMath, RoundingToUnits) {
  EXPECT_EQ(ceil_div(0, 4), 0);
  EXPECT_EQ(ceil_div(17, 4), 5);
  EXPECT_EQ(ceil_div(kMax, 1), kMax);
  EXPECT_EQ(round_up(4097, 4096), 8192);
  EXPECT_EQ(round_up(4096, 4096), 4096);
  EXPECT_EQ(round_down(4095, 4096), 0);
}

TEST(AlignedBuffer, GrowsAlignedAndRefusesTheImpossibleUnchanged) {
  AlignedBuffer buffer;
  EXPECT_EQ(buffer.data(), nullptr);
  ASSERT_TRUE(buffer.reserve(100).ok());
  EXPECT_GE(buffer.bytes(), 100);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % AlignedBuffer::kAlignment, 0u);
  void* const before = buffer.data();
  ASSERT_TRUE(buffer.reserve(64).ok());
  EXPECT_EQ(buffer.data(), before);
  EXPECT_EQ(buffer.reserve(kMax).code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(buffer.data(), before);
  buffer.as<float>()[24] = 1.0f;

  AlignedBuffer moved = std::move(buffer);
  EXPECT_EQ(moved.data(), before);
  EXPECT_EQ(moved.as<float>()[24], 1.0f);
}

}  // namespace
}  // namespace kvcache::internal
