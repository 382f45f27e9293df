// The row kernels of every backend that runs here, and the algorithm in vectors of 32 and 64 bytes,
// against the definition (tensor/half.h, copy_rows): bit for bit.
#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cpu/named_rows.h"
#include "tensor/convert.h"
#include "tensor/half.h"

namespace kvcache::internal {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

class Rows : public ::testing::TestWithParam<NamedRows> {
 protected:
  const RowKernels& kernels() const { return *GetParam().kernels; }
};

// One dense row.
RowCopy row_of(const void* src, DType from, void* dst, DType to, std::int64_t count) {
  RowCopy copy;
  copy.src = src;
  copy.dst = dst;
  copy.src_dtype = from;
  copy.dst_dtype = to;
  for (std::int64_t& extent : copy.shape) extent = 1;
  copy.shape[3] = count;
  copy.src_strides[3] = size_of(from);
  copy.dst_strides[3] = size_of(to);
  return copy;
}

std::vector<std::uint16_t> every_half() {
  std::vector<std::uint16_t> all(1 << 16);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  return all;
}

// Floats about every place where rounding to either type changes, and random bits.
std::vector<float> floats() {
  std::vector<std::uint32_t> bits;
  for (std::uint32_t half = 0; half < 1u << 16; ++half) {
    const auto narrow = static_cast<std::uint16_t>(half);
    // The value itself, half way to the next, and a step to either side.
    const std::uint32_t f16 = std::bit_cast<std::uint32_t>(f16_to_f32(narrow));
    const std::uint32_t bf16 = half << 16;
    for (const std::uint32_t around : {f16, f16 + 0x1000u, bf16, bf16 + 0x8000u}) {
      bits.insert(bits.end(), {around - 1, around, around + 1});
    }
  }
  // Half denormals have their midpoints elsewhere: at odd multiples of 2^-25.
  for (std::uint32_t odd = 1; odd < 1u << 11; odd += 2) {
    const auto middle = std::bit_cast<std::uint32_t>(static_cast<float>(odd) * 0x1p-25f);
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
      bits.insert(bits.end(), {sign + middle - 1, sign + middle, sign + middle + 1});
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 1 << 18; ++i) bits.push_back(static_cast<std::uint32_t>(random()));
  std::vector<float> all(bits.size());
  std::memcpy(all.data(), bits.data(), bits.size() * sizeof(float));
  return all;
}

TEST_P(Rows, EveryHalfIsLoadedAsTheDefinitionDoes) {
  const std::vector<std::uint16_t> halves = every_half();
  for (const DType from : {DType::kF16, DType::kBF16}) {
    std::vector<std::uint32_t> found(halves.size());
    kernels().load(row_of(halves.data(), from, found.data(), DType::kF32, 1 << 16));
    for (std::size_t i = 0; i < halves.size(); ++i) {
      const float value = from == DType::kF16 ? f16_to_f32(halves[i]) : bf16_to_f32(halves[i]);
      ASSERT_EQ(found[i], std::bit_cast<std::uint32_t>(value)) << name_of(from) << " " << i;
    }
  }
}

TEST_P(Rows, EveryHalfGoesToTheOtherHalfThroughFloat) {
  const std::vector<std::uint16_t> halves = every_half();
  std::vector<std::uint16_t> found(halves.size());
  kernels().store(row_of(halves.data(), DType::kF16, found.data(), DType::kBF16, 1 << 16));
  for (std::size_t i = 0; i < halves.size(); ++i) {
    ASSERT_EQ(found[i], f32_to_bf16(f16_to_f32(halves[i]))) << i;
  }
  kernels().store(row_of(halves.data(), DType::kBF16, found.data(), DType::kF16, 1 << 16));
  for (std::size_t i = 0; i < halves.size(); ++i) {
    ASSERT_EQ(found[i], f32_to_f16(bf16_to_f32(halves[i]))) << i;
  }
}

TEST_P(Rows, FloatsAreRoundedAsTheDefinitionDoes) {
  const std::vector<float> values = floats();
  std::vector<std::uint16_t> found(values.size());
  const auto count = static_cast<std::int64_t>(values.size());
  for (const DType to : {DType::kF16, DType::kBF16}) {
    kernels().store(row_of(values.data(), DType::kF32, found.data(), to, count));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint16_t wanted =
          to == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
      ASSERT_EQ(found[i], wanted) << name_of(to) << " of " << std::hex
                                  << std::bit_cast<std::uint32_t>(values[i]);
    }
  }
}

TEST_P(Rows, EqualTypesKeepEveryBit) {
  const std::vector<std::uint16_t> halves = every_half();
  for (const DType type : kTypes) {
    const std::int64_t count = (1 << 17) / size_of(type);
    for (const auto move : {kernels().store, kernels().load, kernels().copy}) {
      std::vector<std::uint16_t> found(halves.size());
      move(row_of(halves.data(), type, found.data(), type, count));
      EXPECT_EQ(found, halves) << name_of(type);
    }
  }
}

// Bytes that no kernel may touch lie between and around the rows.
TEST_P(Rows, BlocksOfAnyStridesAreTheDefinitions) {
  std::mt19937 random(7);
  const auto below = [&](std::int64_t most) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint32_t>(most));
  };
  std::vector<std::byte> src(1 << 18);
  for (std::byte& byte : src) byte = static_cast<std::byte>(random());
  for (int turn = 0; turn < 2000; ++turn) {
    RowCopy copy;
    copy.src_dtype = kTypes[random() % 3];
    copy.dst_dtype = kTypes[random() % 3];
    for (int axis = 0; axis < 3; ++axis) copy.shape[axis] = below(4);
    copy.shape[3] = 1 + below(70);
    // Dense, dense with gaps, or strided; in an axis order of its own. Sources may stand still or
    // run backwards.
    const auto lay_out = [&](std::int64_t size, std::int64_t(&strides)[4]) {
      strides[3] = size * (random() % 3 == 0 ? 1 + below(3) : 1);
      int axes[3] = {2, 1, 0};
      if (random() % 2 == 0) std::swap(axes[0], axes[1 + random() % 2]);
      std::int64_t extent = strides[3] * copy.shape[3];
      for (const int axis : axes) {
        strides[axis] = extent + (random() % 2 == 0 ? 0 : below(9));
        extent = strides[axis] * std::max<std::int64_t>(copy.shape[axis], 1);
      }
    };
    lay_out(size_of(copy.src_dtype), copy.src_strides);
    lay_out(size_of(copy.dst_dtype), copy.dst_strides);
    const int odd = static_cast<int>(random() % 8);
    if (odd == 0) copy.src_strides[random() % 4] = 0;
    if (odd == 1) {
      int const axis = static_cast<int>(random() % 4);
      copy.src_strides[axis] = -copy.src_strides[axis];
    }
    copy.src = src.data() + (src.size() / 2) + below(5);
    std::vector<std::byte> wanted(1 << 17, std::byte{0xa5});
    std::vector<std::byte> found = wanted;
    const std::int64_t at = below(5);
    copy.dst = wanted.data() + at;
    copy_rows(copy);
    copy.dst = found.data() + at;
    (random() % 2 == 0 ? kernels().store : kernels().load)(copy);
    ASSERT_EQ(std::memcmp(found.data(), wanted.data(), wanted.size()), 0) << "turn " << turn;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Rows, ::testing::ValuesIn(all_rows()),
                         [](const auto& rows) { return rows.param.name; });

}  // namespace
}  // namespace kvcache::internal
