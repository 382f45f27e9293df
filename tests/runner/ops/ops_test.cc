#include "runner/ops/ops.h"

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace kvcache::runner {
namespace {

std::vector<float> normal(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> values(count);
  for (float& value : values) value = draw(random);
  return values;
}

TEST(OpsTest, RmsNormScalesEachRowByItsOwnSize) {
  const std::int64_t rows = 3;
  const std::int64_t width = 37;
  const auto x = normal(static_cast<std::size_t>(rows * width), 1);
  const auto weight = normal(static_cast<std::size_t>(width), 2);
  std::vector<float> y(x.size());
  rms_norm(x.data(), rows, width, weight.data(), 1e-5f, y.data());
  std::vector<float> in_place = x;
  rms_norm(in_place.data(), rows, width, weight.data(), 1e-5f, in_place.data());
  EXPECT_EQ(in_place, y);
  for (std::int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      const double value = x[static_cast<std::size_t>(r * width + i)];
      squares += value * value;
    }
    for (std::int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<std::size_t>(r * width + i);
      const double expected = weight[static_cast<std::size_t>(i)] * x[at] /
                              std::sqrt(squares / static_cast<double>(width) + 1e-5);
      EXPECT_NEAR(y[at], expected, 1e-6 * (1 + std::fabs(expected)));
    }
  }
}

TEST(OpsTest, RmsNormOfZerosIsZero) {
  std::vector<float> x(8, 0.0f);
  const std::vector<float> weight(8, 1.0f);
  rms_norm(x.data(), 1, 8, weight.data(), 1e-6f, x.data());
  EXPECT_EQ(x, std::vector<float>(8, 0.0f));
}

TEST(OpsTest, SiluIsTheInputTimesItsSigmoid) {
  std::vector<float> gate = {-100.0f, -1.0f, 0.0f, 1.0f, 100.0f};
  const std::vector<float> up = {2.0f, 2.0f, 2.0f, 2.0f, 2.0f};
  const std::vector<float> before = gate;
  silu_multiply(gate.data(), up.data(), 5);
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double expected = 2.0 * before[i] / (1.0 + std::exp(-static_cast<double>(before[i])));
    EXPECT_NEAR(gate[i], expected, 1e-6 * (1 + std::fabs(expected)));
  }
}

TEST(OpsTest, WideningUndoesNarrowing) {
  const auto x = normal(65, 3);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    std::vector<std::uint32_t> stored(x.size());
    std::vector<float> once(x.size());
    narrow(x.data(), dtype, 65, stored.data());
    widen(stored.data(), dtype, 65, once.data());
    std::vector<float> twice(x.size());
    narrow(once.data(), dtype, 65, stored.data());
    widen(stored.data(), dtype, 65, twice.data());
    EXPECT_EQ(once, twice);
    const float step = dtype == DType::kF32 ? 0.0f : dtype == DType::kF16 ? 0x1p-11f : 0x1p-8f;
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_LE(std::fabs(once[i] - x[i]), step * std::fabs(x[i])) << name_of(dtype);
    }
  }
}

TEST(OpsTest, RotationTurnsHalvesAgainstEachOther) {
  const std::vector<std::int64_t> positions = {0, 3};
  const std::vector<float> frequencies = {1.0f, 0.25f};
  std::vector<float> cosines;
  std::vector<float> sines;
  rope_angles(positions, frequencies, cosines, sines);
  ASSERT_EQ(cosines.size(), 4u);
  const std::vector<float> x = {1, 2, 3, 4, 5, 6, 7, 8};  // two heads of 4
  std::vector<float> still = x;
  rope_rotate(still.data(), 2, 4, cosines.data(), sines.data());
  EXPECT_EQ(still, x) << "position 0 turns nothing";
  std::vector<float> turned = x;
  rope_rotate(turned.data(), 2, 4, cosines.data() + 2, sines.data() + 2);
  for (std::size_t head = 0; head < 2; ++head) {
    for (std::size_t i = 0; i < 2; ++i) {
      const double angle = 3.0 * frequencies[i];
      const double low = x[head * 4 + i];
      const double high = x[head * 4 + i + 2];
      EXPECT_NEAR(turned[head * 4 + i], low * std::cos(angle) - high * std::sin(angle), 1e-5);
      EXPECT_NEAR(turned[head * 4 + i + 2], high * std::cos(angle) + low * std::sin(angle), 1e-5);
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
