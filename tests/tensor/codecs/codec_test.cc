// Every coded form, by what its formula promises.
#include "tensor/codecs/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "tensor/codecs/fp8.h"
#include "tensor/codecs/ggml.h"
#include "tensor/codecs/golden_vectors.h"
#include "tensor/codecs/lm4.h"
#include "tensor/codecs/rotate.h"
#include "tensor/codecs/rows.h"
#include "tensor/half.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kSizes[] = {32, 64, 96, 128, 192, 256, 576};

bool encodes(const RowFormat& format, std::vector<float> row, RowBytes* to) {
  return encode_row(format, row.data(), static_cast<std::int64_t>(row.size()), to->row());
}

std::vector<float> decoded(const RowFormat& format, const RowBytes& from, std::int64_t elements) {
  std::vector<float> row(static_cast<std::size_t>(elements));
  decode_row(format, from.row(), elements, row.data());
  return row;
}

double norm(const std::vector<float>& row) {
  double sum = 0;
  for (const float x : row) sum += double{x} * x;
  return std::sqrt(sum);
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return std::sqrt(sum);
}

class Codec : public ::testing::TestWithParam<FormCase> {
 protected:
  const RowFormat& format() const { return GetParam().format; }
};

TEST_P(Codec, WritesTheBytesThatTheFormatSays) {
  for (const std::int64_t n : kSizes) {
    RowBytes bytes(format(), n);
    for (std::byte& each : bytes.bytes) each = std::byte{0};
    RowBytes other = bytes;
    for (std::byte& each : other.bytes) each = std::byte{0xff};
    ASSERT_TRUE(encodes(format(), normal_row(n, 3), &bytes)) << n;
    ASSERT_TRUE(encodes(format(), normal_row(n, 3), &other)) << n;
    EXPECT_EQ(bytes.bytes, other.bytes) << n << ": a byte that was not written";
  }
}

// The worst error of a row relative to its norm: half a step of the coarsest scale.
TEST_P(Codec, DecodesWithinHalfAStep) {
  for (const std::int64_t n : kSizes) {
    for (const NamedRow& row : finite_rows(n)) {
      RowBytes bytes(format(), n);
      ASSERT_TRUE(encodes(format(), row.values, &bytes)) << n << " " << row.name;
      const std::vector<float> found = decoded(format(), bytes, n);
      const double size = norm(row.values);
      for (const float x : found) ASSERT_TRUE(std::isfinite(x)) << n << " " << row.name;
      // Steps relative to the largest element, and the rounding of scales below the least f16.
      double step = 0.5 / 127;
      if (format().kind == RowFormat::kFp8E4M3) step = 1.0 / 16;
      if (format().kind == RowFormat::kInt4) step = 1.01 * 2 / 15;
      if (format().kind == RowFormat::kQ4_0) step = 1.01 / 8;
      if (format().kind == RowFormat::kLm4) step = 0.35;
      const double root = std::sqrt(static_cast<double>(n));
      EXPECT_LE(distance(found, row.values), root * (step * size * 1.01 + 2e-5))
          << n << " " << row.name;
    }
  }
}

TEST_P(Codec, NormalRowsLoseWhatTheFormIsKnownToLose) {
  double error = 0;
  double all = 0;
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> row = normal_row(128, seed);
    RowBytes bytes(format(), 128);
    ASSERT_TRUE(encodes(format(), row, &bytes));
    error += std::pow(distance(decoded(format(), bytes, 128), row), 2);
    all += std::pow(norm(row), 2);
  }
  double most = 7e-3;  // int8, q8_0
  if (format().kind == RowFormat::kFp8E4M3) most = 3e-2;
  if (format().kind == RowFormat::kInt4) most = 9e-2;
  if (format().kind == RowFormat::kQ4_0) most = 1e-1;
  if (format().kind == RowFormat::kLm4) most = 9.6e-2;  // 0.00895 of the squares
  EXPECT_LE(std::sqrt(error / all), most);
  EXPECT_GE(std::sqrt(error / all), most / 4);
}

TEST_P(Codec, AZeroRowIsZeros) {
  for (const std::int64_t n : kSizes) {
    RowBytes bytes(format(), n);
    ASSERT_TRUE(encodes(format(), std::vector<float>(static_cast<std::size_t>(n)), &bytes));
    for (const float x : decoded(format(), bytes, n)) ASSERT_EQ(x, 0.0f);
    if (format().kind == RowFormat::kQ4_0 || format().kind == RowFormat::kQ8_0) continue;
    for (const std::byte each : bytes.bytes) ASSERT_EQ(each, std::byte{0}) << n;
  }
}

TEST_P(Codec, NonFiniteRowsAreRefusedAndNothingIsWritten) {
  if (format().kind == RowFormat::kFp8E4M3) return;
  for (const std::int64_t n : kSizes) {
    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()}) {
      for (const std::size_t at : {std::size_t{0}, static_cast<std::size_t>(n - 1)}) {
        std::vector<float> row = normal_row(n, 1);
        row[at] = bad;
        RowBytes bytes(format(), n);
        const std::vector<std::byte> before = bytes.bytes;
        EXPECT_FALSE(encodes(format(), row, &bytes)) << n << " " << bad;
        EXPECT_EQ(bytes.bytes, before) << n << " " << bad;
      }
    }
  }
}

TEST_P(Codec, ScalesThatDoNotFitAreRefusedAndNothingIsWritten) {
  for (const std::int64_t n : kSizes) {
    for (const float huge : {1e10f, 3e38f}) {
      RowBytes bytes(format(), n);
      const std::vector<std::byte> before = bytes.bytes;
      std::vector<float> row = normal_row(n, 1);
      row.back() = huge;
      EXPECT_FALSE(encodes(format(), row, &bytes)) << n << " " << huge;
      EXPECT_EQ(bytes.bytes, before) << n << " " << huge;
      for (float& x : row) x = huge;
      EXPECT_FALSE(encodes(format(), row, &bytes)) << n << " " << huge;
    }
  }
}

TEST_P(Codec, ScalesAndZerosGoWhereTheyAreTold) {
  for (const std::int64_t n : kSizes) {
    const std::int64_t scales = format().num_scales(n);
    RowBytes dense(format(), n);
    ASSERT_TRUE(encodes(format(), normal_row(n, 5), &dense));
    std::vector<std::byte> apart(static_cast<std::size_t>(scales * 6 + 1), std::byte{0xee});
    std::vector<std::byte> zeros(static_cast<std::size_t>(scales * 3 + 1), std::byte{0xee});
    RowBytes codes(format(), n);
    std::vector<float> row = normal_row(n, 5);
    ASSERT_TRUE(encode_row(format(), row.data(), n,
                           {codes.bytes.data(), apart.data() + 1, zeros.data(), 6}));
    for (std::int64_t g = 0; g < scales; ++g) {
      const std::byte* const wanted = dense.row().scales + 2 * g;
      EXPECT_TRUE(std::equal(wanted, wanted + 2, apart.data() + 1 + 6 * g));
      EXPECT_EQ(apart[static_cast<std::size_t>(1 + 6 * g + 2)], std::byte{0xee});
      if (format().has_zeros()) {
        EXPECT_EQ(zeros[static_cast<std::size_t>(3 * g)], dense.row().zeros[g]);
      }
    }
    std::vector<float> found(static_cast<std::size_t>(n));
    decode_row(format(), {codes.bytes.data(), apart.data() + 1, zeros.data(), 6}, n, found.data());
    EXPECT_EQ(found, decoded(format(), dense, n));
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, Codec, ::testing::ValuesIn(coded_forms()),
                         [](const auto& each) { return each.param.name; });

TEST(RowFormat, BytesOfEightHeadsOf128AreThoseOfTheSpecification) {
  const auto of_layer = [](const RowFormat& format) { return 2 * 8 * format.bytes(128); };
  EXPECT_EQ(of_layer(coded(RowFormat::kInt8)), 2080);
  EXPECT_EQ(of_layer(coded(RowFormat::kLm4)), 1056);
  EXPECT_EQ(of_layer(coded(RowFormat::kInt4)), 1216);
  EXPECT_EQ(of_layer(coded(RowFormat::kQ8_0)), 2176);
  EXPECT_EQ(of_layer(coded(RowFormat::kQ4_0)), 1152);
  EXPECT_EQ(coded(RowFormat::kInt8).num_scales(256), 1);
  EXPECT_EQ(coded(RowFormat::kInt8).num_scales(576), 5);
}

TEST(RowFormat, SizesThatAFormDoesNotAllowAreNamed) {
  for (const RowFormat::Kind kind : {RowFormat::kInt4, RowFormat::kQ8_0, RowFormat::kQ4_0}) {
    EXPECT_STREQ(wanted_elements(coded(kind), 80), "a multiple of 32");
    EXPECT_EQ(wanted_elements(coded(kind, true), 96), nullptr);
  }
  EXPECT_EQ(wanted_elements(coded(RowFormat::kInt8), 7), nullptr);
  EXPECT_STREQ(wanted_elements(coded(RowFormat::kInt8, true), 72),
               "a multiple of 16 in rotated rows");
  EXPECT_EQ(wanted_elements(coded(RowFormat::kLm4), 80), nullptr);
  EXPECT_STREQ(wanted_elements(coded(RowFormat::kLm4), 40), "a multiple of 16 in rotated rows");
  EXPECT_STREQ(wanted_elements(coded(RowFormat::kInt8), 4097), "1 .. 4096 in coded rows");
}

TEST(Int8, ErrorIsAtMostHalfTheScaleAndExtremesAre127) {
  for (const NamedRow& row : finite_rows(128)) {
    RowBytes bytes(coded(RowFormat::kInt8), 128);
    ASSERT_TRUE(encodes(coded(RowFormat::kInt8), row.values, &bytes));
    std::uint16_t half = 0;
    std::memcpy(&half, bytes.row().scales, 2);
    const double scale = f16_to_f32(half);
    float most = 0;
    for (const float x : row.values) most = std::max(most, std::abs(x));
    EXPECT_GE(scale * 127, most * (1 - 1e-7)) << row.name;
    const std::vector<float> found = decoded(coded(RowFormat::kInt8), bytes, 128);
    for (std::size_t i = 0; i < row.values.size(); ++i) {
      ASSERT_LE(std::abs(double{found[i]} - row.values[i]), scale * 0.50002) << row.name;
      ASSERT_NE(bytes.bytes[i], std::byte{0x80}) << row.name;
    }
  }
}

TEST(Int4, ZeroIsExactAndZerosAreOf4Bits) {
  const RowFormat form = coded(RowFormat::kInt4, false);
  for (const NamedRow& row : finite_rows(128)) {
    RowBytes bytes(form, 128);
    ASSERT_TRUE(encodes(form, row.values, &bytes));
    const std::vector<float> found = decoded(form, bytes, 128);
    for (std::size_t i = 0; i < row.values.size(); ++i) {
      ASSERT_TRUE(row.values[i] != 0 || found[i] == 0) << row.name;
    }
    for (int g = 0; g < 4; ++g) EXPECT_LE(static_cast<int>(bytes.row().zeros[g]), 15) << row.name;
  }
}

TEST(Fp8, NumbersAreThoseOfMlDtypes) {
  for (const GoldenE4M3& each : kGoldenE4M3) {
    const int found = f32_to_e4m3(std::bit_cast<float>(each.bits));
    ASSERT_EQ(found, each.code) << std::hex << each.bits;
  }
}

TEST(Fp8, EveryCodeIsItself) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_f32(static_cast<std::uint8_t>(code));
    ASSERT_EQ(std::isnan(value), (code & 0x7f) == 0x7f);
    ASSERT_EQ(f32_to_e4m3(value), code);
  }
}

TEST(Fp8, NaNStaysAndInfinityBecomesIt) {
  const RowFormat form = coded(RowFormat::kFp8E4M3);
  std::vector<float> row = normal_row(64, 2);
  row[3] = std::numeric_limits<float>::quiet_NaN();
  row[5] = -std::numeric_limits<float>::infinity();
  RowBytes bytes(form, 64);
  ASSERT_TRUE(encodes(form, row, &bytes));
  const std::vector<float> found = decoded(form, bytes, 64);
  for (std::size_t i = 0; i < 64; ++i) {
    if (i == 3 || i == 5) {
      EXPECT_TRUE(std::isnan(found[i]));
    } else {
      EXPECT_NEAR(found[i], row[i], std::abs(row[i]) / 16 + 1e-2);
    }
  }
  for (float& x : row) x = row[3];
  ASSERT_TRUE(encodes(form, row, &bytes));
  for (const float x : decoded(form, bytes, 64)) EXPECT_TRUE(std::isnan(x));
}

std::vector<std::byte> from_hex(const char* text) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  std::vector<std::byte> bytes;
  for (; *text != '\0'; text += 2) {
    bytes.push_back(static_cast<std::byte>(digit(text[0]) * 16 + digit(text[1])));
  }
  return bytes;
}

TEST(Ggml, BlocksAreByteForByteThoseOfTheGgufPackage) {
  for (const GoldenBlock& golden : kGoldenBlocks) {
    float row[32];
    std::memcpy(row, from_hex(golden.row).data(), sizeof(row));
    std::vector<std::byte> q8(kQ8_0Bytes);
    ASSERT_TRUE(encode_q8_0(row, 32, q8.data()));
    EXPECT_EQ(q8, from_hex(golden.q8_0));
    std::vector<std::byte> q4(kQ4_0Bytes);
    ASSERT_TRUE(encode_q4_0(row, 32, q4.data()));
    EXPECT_EQ(q4, from_hex(golden.q4_0));
  }
}

TEST(Lm4, LevelsAreTheFixedPointOfLloydsIteration) {
  // A level is the mean of what is nearest to it; in units, to the rounding of whole numbers.
  const auto density = [](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * M_PI); };
  const auto below = [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; };
  for (int q = 8; q < 16; ++q) {
    const double low = q == 8 ? 0 : kLm4Unit * (kLm4Levels[q] + kLm4Levels[q - 1]) / 2.0;
    const double high = q == 15 ? 40 : kLm4Unit * (kLm4Levels[q] + kLm4Levels[q + 1]) / 2.0;
    const double mean = (density(low) - density(high)) / (below(high) - below(low));
    EXPECT_NEAR(mean / kLm4Unit, kLm4Levels[q], 0.75) << q;
    EXPECT_EQ(kLm4Levels[15 - q], -kLm4Levels[q]);
    if (q == 15) break;
    EXPECT_EQ(kLm4Bounds[q - 8], (kLm4Levels[q] + kLm4Levels[q + 1]) / 2.0f);
  }
}

TEST(Rotation, IsTheHadamardMatrixInBlocks) {
  for (const std::int64_t n : {16, 32, 64, 80, 96, 128, 192, 256, 512, 576}) {
    const std::int64_t block = rotation_block(n);
    const std::vector<float> row = normal_row(n, 4);
    std::vector<float> found = row;
    rotate_row(found.data(), n);
    for (std::int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (std::int64_t j = 0; j < block; ++j) {
        const bool minus = std::popcount(static_cast<std::uint64_t>((i % block) & j)) % 2 != 0;
        sum += (minus ? -1.0 : 1.0) * row[static_cast<std::size_t>(i / block * block + j)];
      }
      ASSERT_NEAR(found[static_cast<std::size_t>(i)], sum / std::sqrt(static_cast<double>(block)),
                  2e-6)
          << n << " " << i;
    }
  }
  EXPECT_EQ(rotation_block(80), 16);
  EXPECT_EQ(rotation_block(96), 32);
  EXPECT_EQ(rotation_block(576), 64);
}

TEST(Rotation, TwiceIsNothingAndProductsStay) {
  for (const std::int64_t n : kSizes) {
    const std::vector<float> a = normal_row(n, 1);
    const std::vector<float> b = normal_row(n, 2);
    std::vector<float> ra = a;
    std::vector<float> rb = b;
    rotate_row(ra.data(), n);
    rotate_row(rb.data(), n);
    double before = 0;
    double after = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      before += double{a[i]} * b[i];
      after += double{ra[i]} * rb[i];
    }
    EXPECT_NEAR(before, after, 1e-4);
    rotate_row(ra.data(), n);
    EXPECT_LE(distance(ra, a), 1e-6 * norm(a));
  }
}

}  // namespace
}  // namespace kvcache::internal
