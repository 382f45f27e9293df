// The vector primitives against their scalar definitions. A short file per instruction set that is
// the baseline of a platform includes this after its simd header and names the KVC_SIMD_SUITE; the
// other instruction sets are compared as whole kernels.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tensor/half.h"

namespace kvcache::internal::KVC_SIMD {
namespace {

float first(F32 x) { return x[0]; }

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

TEST(KVC_SIMD_SUITE, ExpIsWithinTwoUlp) {
  for (double x = 0; x > -87; x -= 0.00731) {
    const double expected = std::exp(static_cast<double>(static_cast<float>(x)));
    EXPECT_NEAR(first(exp(set1(static_cast<float>(x)))) / expected, 1, 2.5e-7) << x;
  }
}

TEST(KVC_SIMD_SUITE, ExpAtItsEdges) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(exp1(0), 1);
  EXPECT_EQ(exp1(-0.0f), 1);
  EXPECT_EQ(exp1(-infinity), 0);
  EXPECT_EQ(exp1(-1000), 0);
  EXPECT_TRUE(std::isnan(exp1(std::numeric_limits<float>::quiet_NaN())));
  float payload;  // a NaN whose low bits would disturb the exponent
  const std::uint32_t bits = 0x7fc00001u;
  std::memcpy(&payload, &bits, sizeof(payload));
  EXPECT_TRUE(std::isnan(exp1(payload)));
}

TEST(KVC_SIMD_SUITE, TanhIsAccurateNearAndFar) {
  for (double x = -12; x < 12; x += 0.00377) {
    const float input = static_cast<float>(x);
    const double expected = std::tanh(static_cast<double>(input));
    EXPECT_NEAR(first(tanh(set1(input))), expected, 3e-7 * std::abs(expected) + 1e-30) << x;
  }
  EXPECT_EQ(first(tanh(set1(0))), 0);
  EXPECT_EQ(first(tanh(set1(1e30f))), 1);
  EXPECT_EQ(first(tanh(set1(-1e30f))), -1);
  EXPECT_TRUE(std::isnan(first(tanh(set1(NAN)))));
}

TEST(KVC_SIMD_SUITE, WideningIsTheScalarOneForEveryHalf) {
  std::vector<std::uint16_t> half(kLanes);
  for (std::uint32_t bits = 0; bits < 0x10000; bits += kLanes) {
    for (int i = 0; i < kLanes; ++i) half[i] = static_cast<std::uint16_t>(bits + i);
    const F32 f16 = load_f16(half.data()), bf16 = load_bf16(half.data());
    for (int i = 0; i < kLanes; ++i) {
      ASSERT_TRUE(same_bits(f16[i], f16_to_f32(half[i]))) << bits + i;
      ASSERT_TRUE(same_bits(bf16[i], bf16_to_f32(half[i]))) << bits + i;
    }
  }
}

TEST(KVC_SIMD_SUITE, TransposeExchangesRowsAndColumns) {
  F32 x[kLanes];
  for (int r = 0; r < kLanes; ++r) {
    for (int c = 0; c < kLanes; ++c) x[r][c] = static_cast<float>(100 * r + c);
  }
  transpose(x);
  for (int r = 0; r < kLanes; ++r) {
    for (int c = 0; c < kLanes; ++c) EXPECT_EQ(x[r][c], static_cast<float>(100 * c + r));
  }
}

TEST(KVC_SIMD_SUITE, PartialLoadsReadNoFurtherAndFillWithZeros) {
  for (int n = 1; n < kLanes; ++n) {
    const std::vector<float> from(static_cast<std::size_t>(n), 3);
    const std::vector<std::uint16_t> half(static_cast<std::size_t>(n), 0x4000);  // 2 in both types
    const F32 x = load_n(from.data(), n), f16 = load_f16_n(half.data(), n),
              bf16 = load_bf16_n(half.data(), n);
    for (int i = 0; i < kLanes; ++i) {
      EXPECT_EQ(x[i], i < n ? 3 : 0);
      EXPECT_EQ(f16[i], i < n ? 2 : 0);
      EXPECT_EQ(bf16[i], i < n ? 2 : 0);
    }
  }
}

TEST(KVC_SIMD_SUITE, ChooseTakesLaneByBit) {
  for (std::uint32_t bits = 0; bits < (1u << 4); ++bits) {
    const F32 x = choose(bits, set1(1), set1(2));
    for (int i = 0; i < kLanes; ++i) EXPECT_EQ(x[i], (bits >> i & 1) != 0 ? 1 : 2);
  }
}

TEST(KVC_SIMD_SUITE, ReductionsTakeEveryLane) {
  F32 x = zero();
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<float>(i + 1);
  EXPECT_EQ(reduce_add(x), static_cast<float>(kLanes * (kLanes + 1) / 2));
  EXPECT_EQ(reduce_max(x), static_cast<float>(kLanes));
}

TEST(KVC_SIMD_SUITE, MinAndMaxTakeTheSecondWhereOneIsNaN) {
  const F32 nan = set1(NAN);
  EXPECT_EQ(first(max(nan, set1(1))), 1);
  EXPECT_EQ(first(min(nan, set1(1))), 1);
  EXPECT_TRUE(std::isnan(first(max(set1(1), nan))));
  EXPECT_TRUE(std::isnan(first(min(set1(1), nan))));
  EXPECT_EQ(first(max(set1(1), set1(2))), 2);
  EXPECT_EQ(first(min(set1(1), set1(2))), 1);
}

TEST(KVC_SIMD_SUITE, NarrowedCodesAreTheLowBytesInTheirOrder) {
  S32 x[16 / kLanes];
  for (int i = 0; i < 16; ++i) x[i / kLanes][i % kLanes] = (i % 2 == 0 ? 255 : -128) - i;
  const Codes codes = narrow_codes(x);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(codes[i], static_cast<signed char>((i % 2 == 0 ? 255 : -128) - i)) << i;
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
