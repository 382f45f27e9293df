#include "tensor/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "kvcache/types.h"

namespace kvcache {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A 16-bit pattern by the definition of its format: sign, exponent, mantissa.
double value_of(std::uint16_t bits, int mantissa_bits, int bias) {
  const int exponent_bits = 15 - mantissa_bits;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * kInfinity;
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

double f16_value(std::uint16_t bits) { return value_of(bits, 10, 15); }
double bf16_value(std::uint16_t bits) { return value_of(bits, 7, 127); }

// The pattern nearest to `value`, ties to the even pattern, found by searching the ordered
// patterns below infinity; `limit` is infinity's pattern.
std::uint16_t nearest(double value, double (*value_of_bits)(std::uint16_t), std::uint16_t limit) {
  const double magnitude = std::fabs(value);
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  std::uint16_t low = 0;
  std::uint16_t high = limit;
  // Infinity stands where the next finite value would be.
  const auto at = [&](std::uint16_t bits) {
    if (bits < limit) return value_of_bits(bits);
    const std::uint16_t last = static_cast<std::uint16_t>(limit - 1);
    const std::uint16_t before = static_cast<std::uint16_t>(limit - 2);
    return 2 * value_of_bits(last) - value_of_bits(before);
  };
  if (magnitude >= at(limit)) return static_cast<std::uint16_t>(sign | limit);
  while (high - low > 1) {
    const std::uint16_t middle = static_cast<std::uint16_t>((low + high) / 2);
    (at(middle) <= magnitude ? low : high) = middle;
  }
  const double down = magnitude - at(low);
  const double up = at(high) - magnitude;
  const bool take_high = up < down || (up == down && (high & 1) == 0);
  return static_cast<std::uint16_t>(sign | (take_high ? high : low));
}

TEST(Half, EveryF16WidensToItsValue) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float wide = to_float(Float16{static_cast<std::uint16_t>(bits)});
    const double expected = f16_value(static_cast<std::uint16_t>(bits));
    if (std::isnan(expected)) {
      // Quiet, with sign and payload.
      ASSERT_EQ(std::bit_cast<std::uint32_t>(wide),
                ((bits & 0x8000u) << 16) | 0x7fc00000u | ((bits & 0x3ffu) << 13))
          << bits;
    } else {
      ASSERT_EQ(static_cast<double>(wide), expected) << bits;
      ASSERT_EQ(std::signbit(wide), std::signbit(expected)) << bits;
    }
  }
}

TEST(Half, EveryBf16WidensToItsValue) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float wide = to_float(BFloat16{static_cast<std::uint16_t>(bits)});
    const double expected = bf16_value(static_cast<std::uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(wide), expected) << bits;
      ASSERT_EQ(std::signbit(wide), std::signbit(expected)) << bits;
    }
  }
}

TEST(Half, EveryPatternComesBack) {
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    const std::uint16_t bits = static_cast<std::uint16_t>(i);
    const bool f16_nan = (bits & 0x7fff) > 0x7c00;
    const bool bf16_nan = (bits & 0x7fff) > 0x7f80;
    // NaN comes back quiet.
    ASSERT_EQ(to_float16(to_float(Float16{bits})).bits, f16_nan ? bits | 0x0200 : bits) << i;
    ASSERT_EQ(to_bfloat16(to_float(BFloat16{bits})).bits, bf16_nan ? bits | 0x0040 : bits) << i;
  }
}

TEST(Half, MiddlesBetweenNeighboursGoToEven) {
  for (std::uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const std::uint16_t next = static_cast<std::uint16_t>(bits + 1);
    const float middle = static_cast<float>((f16_value(bits) + f16_value(next)) / 2);
    const std::uint16_t even = (bits & 1) == 0 ? bits : next;
    ASSERT_EQ(to_float16(middle).bits, even) << bits;
    ASSERT_EQ(to_float16(-middle).bits, even | 0x8000) << bits;
    ASSERT_EQ(to_float16(std::nextafter(middle, kInfinity)).bits, next) << bits;
    ASSERT_EQ(to_float16(std::nextafter(middle, -kInfinity)).bits, bits) << bits;
  }
  for (std::uint16_t bits = 0; bits < 0x7f7f; ++bits) {
    const std::uint16_t next = static_cast<std::uint16_t>(bits + 1);
    const float middle = std::bit_cast<float>((static_cast<std::uint32_t>(bits) << 16) | 0x8000u);
    ASSERT_EQ(to_bfloat16(middle).bits, (bits & 1) == 0 ? bits : next) << bits;
    ASSERT_EQ(to_bfloat16(std::nextafter(middle, kInfinity)).bits, next) << bits;
    ASSERT_EQ(to_bfloat16(std::nextafter(middle, -kInfinity)).bits, bits) << bits;
  }
}

TEST(Half, RandomFloatsRoundAsDoubleArithmeticSays) {
  std::mt19937 random(20260);
  for (int i = 0; i < 200000; ++i) {
    std::uint32_t bits = static_cast<std::uint32_t>(random());
    // Half of them in the range where f16 is not all zero or infinite.
    if (i % 2 == 0) bits = (bits & 0x807fffffu) | ((100u + bits % 45u) << 23);
    const float value = std::bit_cast<float>(bits);
    if (std::isnan(value)) {
      ASSERT_GT(to_float16(value).bits & 0x7fff, 0x7e00 - 1);
      ASSERT_GT(to_bfloat16(value).bits & 0x7fff, 0x7fc0 - 1);
      continue;
    }
    ASSERT_EQ(to_float16(value).bits, nearest(value, f16_value, 0x7c00)) << value;
    ASSERT_EQ(to_bfloat16(value).bits, nearest(value, bf16_value, 0x7f80)) << value;
  }
}

TEST(Half, EdgesOfTheRange) {
  EXPECT_EQ(to_float16(65504.0f).bits, 0x7bff);
  EXPECT_EQ(to_float16(65519.996f).bits, 0x7bff);
  EXPECT_EQ(to_float16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_float16(-1e30f).bits, 0xfc00);
  EXPECT_EQ(to_float16(kInfinity).bits, 0x7c00);
  EXPECT_EQ(to_float16(std::ldexp(1.0f, -24)).bits, 0x0001);
  EXPECT_EQ(to_float16(std::ldexp(1.0f, -25)).bits, 0x0000);
  EXPECT_EQ(to_float16(-0.0f).bits, 0x8000);
  EXPECT_EQ(to_bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(to_bfloat16(-0.0f).bits, 0x8000);
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x00018000u)).bits, 0x0002);  // a float denormal
  // A NaN whose payload lies in the bits that go must not become infinity.
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x7f800001u)).bits, 0x7fc0);
  EXPECT_EQ(to_float16(std::bit_cast<float>(0x7f800001u)).bits, 0x7e00);
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x7fffffffu)).bits, 0x7fff);
}

}  // namespace
}  // namespace kvcache
