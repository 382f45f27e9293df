#include "tensor/convert.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tensor/half.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

const DType kFloating[] = {DType::kF32, DType::kF16, DType::kBF16};

// An element as a float, and back, one at a time.
float get(const std::byte* from, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, 2);
  return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

void put(std::byte* to, DType dtype, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(to, &value, 4);
    return;
  }
  const std::uint16_t bits = dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
  std::memcpy(to, &bits, 2);
}

// Random bits of any kind, NaN and denormals included.
std::vector<std::byte> noise(std::int64_t bytes, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> data(static_cast<std::size_t>(bytes));
  for (std::byte& byte : data) byte = static_cast<std::byte>(random() & 0xff);
  return data;
}

TEST(ConvertRow, EveryPairOfTypesLengthAndStrideMatchesTheScalarDefinition) {
  for (const DType from : kFloating) {
    for (const DType to : kFloating) {
      for (const std::int64_t count : {0, 1, 3, 7, 8, 15, 16, 17, 31, 64, 129}) {
        for (const std::int64_t stride : {1, 2, 5, 0, -1, -3}) {
          const std::int64_t in = size_of(from);
          const std::int64_t out = size_of(to);
          const std::vector<std::byte> source = noise(8 * 130 * in + 1, 7);
          // One byte off every alignment.
          const std::byte* start =
              source.data() + 1 + (stride < 0 ? -stride * (count > 0 ? count - 1 : 0) * in : 0);
          std::vector<std::byte> expected(static_cast<std::size_t>(count * out + 3), std::byte{9});
          std::vector<std::byte> found = expected;
          for (std::int64_t i = 0; i < count; ++i) {
            const std::byte* element = start + i * stride * in;
            std::byte* target = expected.data() + 1 + i * out;
            if (from == to) {
              std::memcpy(target, element, static_cast<std::size_t>(out));
            } else {
              put(target, to, get(element, from));
            }
          }
          convert_row(start, from, stride, found.data() + 1, to, count);
          ASSERT_EQ(found, expected) << name_of(from) << " -> " << name_of(to) << " count " << count
                                     << " stride " << stride;
        }
      }
    }
  }
}

TEST(ConvertRow, HalfToBrainGoesThroughFloat) {
  const std::uint16_t one_and_a_bit = 0x3c01;  // 1 + 2^-10, which bf16 rounds to 1
  std::uint16_t out = 0;
  convert_row(&one_and_a_bit, DType::kF16, 1, &out, DType::kBF16, 1);
  EXPECT_EQ(out, 0x3f80);
  const std::uint16_t huge = 0x7f00;  // 2^127 in bf16
  convert_row(&huge, DType::kBF16, 1, &out, DType::kF16, 1);
  EXPECT_EQ(out, 0x7c00);
}

// A block [2, 3, 4, 5] copied between layouts with every dense or gapped combination.
TEST(CopyRows, AnyStridesOnBothSides) {
  const KvExtents extents{2, 3, 4, 5};
  for (const DType from : kFloating) {
    for (const DType to : kFloating) {
      for (const Layout source_layout : {Layout::kHND, Layout::kNHD}) {
        for (const std::int64_t source_gap : {0, 2}) {
          for (const std::int64_t target_gap : {0, 3}) {
            for (const std::int64_t target_step : {1, 2}) {
              // Logical axes of the source differ from its order in memory: [b, s, h, d] or
              // [b, h, s, d] with a gap behind each row.
              const std::int64_t row = 5 + source_gap;
              KvExtents strides{12 * row, 4 * row, row, 1};
              if (source_layout == Layout::kNHD) strides = {12 * row, row, 3 * row, 1};
              const std::vector<std::byte> source = noise(2 * 12 * row * size_of(from), 3);
              const TensorView src = kv_tensor(static_cast<const void*>(source.data()), from,
                                               Layout::kHND, extents, strides);
              const std::int64_t wide = 5 * target_step + target_gap;
              std::vector<std::byte> target(static_cast<std::size_t>(2 * 12 * wide * size_of(to)),
                                            std::byte{0x5a});
              const std::vector<std::byte> poison = target;
              const MutableTensorView dst =
                  kv_tensor(target.data(), to, Layout::kHND, extents,
                            KvExtents{12 * wide, 4 * wide, wide, target_step});
              copy_rows(row_copy(src, dst));

              std::vector<std::byte> expected = poison;
              for (std::int64_t b = 0; b < 2; ++b) {
                for (std::int64_t h = 0; h < 3; ++h) {
                  for (std::int64_t s = 0; s < 4; ++s) {
                    for (std::int64_t d = 0; d < 5; ++d) {
                      const std::byte* element = element_at(src, b, h, s, d);
                      std::byte* put_at =
                          expected.data() + (element_at(dst, b, h, s, d) - target.data());
                      if (from == to) {
                        std::memcpy(put_at, element, static_cast<std::size_t>(size_of(to)));
                      } else {
                        put(put_at, to, get(element, from));
                      }
                    }
                  }
                }
              }
              ASSERT_EQ(target, expected)
                  << name_of(from) << " -> " << name_of(to) << " " << name_of(source_layout)
                  << " gaps " << source_gap << " " << target_gap << " step " << target_step;
            }
          }
        }
      }
    }
  }
}

TEST(CopyRows, EmptyBlocksTouchNothing) {
  for (int axis = 0; axis < 4; ++axis) {
    RowCopy copy;
    for (int i = 0; i < 4; ++i) copy.shape[i] = i == axis ? 0 : 3;
    copy_rows(copy);  // null pointers on both sides
  }
}

TEST(CopyRows, BroadcastSourceRepeatsItsRow) {
  const float row[3] = {1, 2, 3};
  float out[2][2][3] = {};
  TensorView src(row, DType::kF32, {1, 2, 2, 3});
  src.strides[0] = src.strides[1] = src.strides[2] = 0;
  copy_rows(row_copy(src, MutableTensorView(out, DType::kF32, {1, 2, 2, 3})));
  for (const auto& matrix : out) {
    for (const auto& line : matrix) {
      EXPECT_EQ(std::vector<float>(line, line + 3), (std::vector<float>{1, 2, 3}));
    }
  }
}

}  // namespace
}  // namespace kvcache::internal
