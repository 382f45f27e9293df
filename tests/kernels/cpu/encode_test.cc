// The row kernels of every backend that runs here, and the algorithm in vectors of 32 and 64 bytes,
// against the definition of coded rows (tensor/codecs/): byte for byte.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cpu/named_rows.h"
#include "tensor/codecs/coded_block.h"
#include "tensor/codecs/rotate.h"
#include "tensor/codecs/rows.h"
#include "tensor/convert.h"

namespace kvcache::internal {
namespace {

// Rows [tokens, heads, elements] at odd addresses, dense or with gaps between elements, the last
// element at the end of its memory, and their codes.
struct Block {
  std::vector<char> rows;
  std::vector<std::byte> stored;
  CodedBlock block;

  Block(const RowFormat& format, DType dtype, std::int64_t tokens, std::int64_t heads,
        std::int64_t elements, std::int64_t gap, bool by_head) {
    const std::int64_t size = size_of(dtype);
    block.format = format;
    block.tokens = tokens;
    block.heads = heads;
    block.elements = elements;
    block.dtype = dtype;
    block.element_stride = size * gap;
    block.head_stride = block.element_stride * elements + size;
    block.token_stride = block.head_stride * heads;
    const std::int64_t last = block.token_stride * (tokens - 1) + block.head_stride * (heads - 1) +
                              block.element_stride * (elements - 1);
    rows.resize(static_cast<std::size_t>(1 + last + size));
    block.rows = rows.data() + 1;
    const std::int64_t codes = format.code_bytes(elements);
    block.code_token_stride = by_head ? codes : codes * heads;
    block.code_head_stride = by_head ? codes * tokens : codes;
    block.scale_group_stride = 2 * tokens;
    block.scale_head_stride = format.num_scales(elements) * block.scale_group_stride;
    const std::int64_t scales = heads * block.scale_head_stride;
    stored.assign(static_cast<std::size_t>(1 + codes * heads * tokens + scales * 3 / 2 + 1),
                  std::byte{0x5a});
    block.codes = stored.data() + 1;
    block.scales = block.codes + codes * heads * tokens;
    block.zeros = block.scales + scales;
  }

  void set_row(std::int64_t token, std::int64_t head, const std::vector<float>& row) {
    for (std::int64_t i = 0; i < block.elements; ++i) {
      convert_row(&row[static_cast<std::size_t>(i)], DType::kF32, 1,
                  block.row(token, head) + i * block.element_stride, block.dtype, 1);
    }
  }
};

class Encoding : public ::testing::TestWithParam<NamedRows> {
 protected:
  const RowKernels& kernels() const { return *GetParam().kernels; }

  // Both write the same bytes, and no other.
  void expect_same_codes(Block& block, const std::string& what) const {
    const std::vector<std::byte> before = block.stored;
    encode_block(block.block);
    const std::vector<std::byte> wanted = block.stored;
    block.stored = before;
    kernels().encode(block.block);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_EQ(block.stored[i], wanted[i]) << what << ", byte " << i << " of " << wanted.size();
    }
  }
};

TEST_P(Encoding, EveryFormAndSizeIsTheDefinition) {
  for (const FormCase& form : coded_forms()) {
    for (const std::int64_t n :
         {7, 16, 32, 64, 80, 96, 100, 128, 129, 192, 256, 257, 264, 288, 385, 512, 576, 4096}) {
      if (wanted_elements(form.format, n) != nullptr) continue;
      for (const NamedRow& row : finite_rows(n)) {
        Block block(form.format, DType::kF32, 1, 1, n, 1, true);
        block.set_row(0, 0, row.values);
        expect_same_codes(block, form.name + " " + std::to_string(n) + " " + row.name);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Rows go together in the lanes of a vector, with each other and with those of other tokens.
TEST_P(Encoding, RowsOfEveryKindSideBySideAreTheDefinition) {
  for (const FormCase& form : coded_forms()) {
    for (const std::int64_t n : {16, 32, 64, 96, 264, 576, 4096}) {
      if (wanted_elements(form.format, n) != nullptr) continue;
      const std::vector<NamedRow> rows = finite_rows(n);
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        Block block(form.format, dtype, 9, 5, n, 1, true);
        for (std::int64_t at = 0; at < 45; ++at) {
          const NamedRow& row = rows[static_cast<std::size_t>(at * 8) % rows.size()];
          block.set_row(at / 5, at % 5, row.values);
        }
        ASSERT_EQ(first_refused(block.block), -1);
        expect_same_codes(block, form.name + " " + std::to_string(n) + " " + name_of(dtype));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Encoding, TypesStridesHeadsAndTokensAreTheDefinition) {
  for (const FormCase& form : coded_forms()) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const std::int64_t gap : {1, 3}) {
        for (const bool by_head : {true, false}) {
          Block block(form.format, dtype, 5, 3, 96, gap, by_head);
          for (std::int64_t token = 0; token < 5; ++token) {
            for (std::int64_t head = 0; head < 3; ++head) {
              block.set_row(token, head,
                            normal_row(96, static_cast<std::uint32_t>(token * 3 + head)));
            }
          }
          expect_same_codes(block, form.name + " " + name_of(dtype));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Elements half way between two codes, and next to that.
TEST_P(Encoding, TiesAreTheDefinition) {
  for (const FormCase& form : coded_forms()) {
    for (std::uint32_t seed = 0; seed < 300; ++seed) {
      std::mt19937 random(seed);
      std::vector<float> row(64);
      for (float& x : row) {
        x = static_cast<float>(static_cast<int>(random() % 509) - 254) / 2;
        if (random() % 4 == 0) x = std::nextafter(x, seed % 2 == 0 ? 1e9f : -1e9f);
      }
      row[seed % 64] = seed % 3 == 0 ? 127.0f : -127.0f;
      Block block(form.format, DType::kF32, 1, 1, 64, 1, true);
      block.set_row(0, 0, row);
      expect_same_codes(block, form.name + " seed " + std::to_string(seed));
      if (HasFatalFailure()) return;
    }
  }
}

// A whole row without a multiple of a vector, of types that are widened, with and without gaps.
TEST_P(Encoding, TheLastElementsOfARowAreTheDefinition) {
  for (const RowFormat::Kind kind : {RowFormat::kInt8, RowFormat::kFp8E4M3}) {
    for (const std::int64_t n : {1, 3, 15, 17, 31, 129, 387}) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const std::int64_t gap : {1, 2}) {
          Block block(coded(kind), dtype, 2, 2, n, gap, true);
          for (std::int64_t at = 0; at < 4; ++at) {
            block.set_row(at / 2, at % 2, normal_row(n, static_cast<std::uint32_t>(at)));
          }
          EXPECT_EQ(kernels().refused(block.block), -1);
          expect_same_codes(
              block, std::string(name_of(kind)) + " " + std::to_string(n) + " " + name_of(dtype));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// One rounding of a product and a sum, not two: x / d + 8.5 lies next to a whole number.
TEST_P(Encoding, BlocksOfGgmlAreRoundedOnce) {
  std::vector<float> row(32);
  row[0] = 48;
  row[1] = 27;
  Block block(coded(RowFormat::kQ4_0), DType::kF32, 1, 1, 32, 1, true);
  block.set_row(0, 0, row);
  expect_same_codes(block, "27 of 48");
}

TEST_P(Encoding, NaNIsKeptByRotatedFp8AsTheDefinitionDoes) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::int64_t n : {16, 64, 96, 128, 512}) {
    const auto last = static_cast<std::size_t>(n) - 1;
    for (const auto& [one, other] : {std::pair(nan, -nan), std::pair(-nan, nan),
                                     std::pair(infinity, -infinity), std::pair(-nan, 1.0f)}) {
      Block block(coded(RowFormat::kFp8E4M3, true), DType::kF32, 3, 1, n, 1, true);
      for (std::int64_t token = 0; token < 3; ++token) {
        std::vector<float> row = normal_row(n, static_cast<std::uint32_t>(token));
        if (token == 1) {
          row[0] = one;
          row[last] = row[1] = other;
        }
        block.set_row(token, 0, row);
      }
      expect_same_codes(block, "NaN, rotated, " + std::to_string(n));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Encoding, NaNIsKeptByFp8AsTheDefinitionDoes) {
  std::vector<float> row = normal_row(100, 3);
  row[5] = std::numeric_limits<float>::quiet_NaN();
  row[99] = -std::numeric_limits<float>::infinity();
  Block block(coded(RowFormat::kFp8E4M3), DType::kF32, 1, 1, 100, 1, true);
  block.set_row(0, 0, row);
  expect_same_codes(block, "NaN");
}

TEST_P(Encoding, WhatIsRefusedIsWhatTheDefinitionRefuses) {
  for (const FormCase& form : coded_forms()) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), 3e38f, 1e10f, 6e6f, 4.9e5f,
                            4e5f, 1e5f, 3e4f, 2e4f, 1e3f}) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const std::int64_t gap : {1, 3}) {
          Block block(form.format, dtype, 4, 2, 96, gap, true);
          for (std::int64_t token = 0; token < 4; ++token) {
            for (std::int64_t head = 0; head < 2; ++head) {
              std::vector<float> row = normal_row(96, static_cast<std::uint32_t>(token * 2 + head));
              if (token >= 2 && head == token % 2) row[95] = bad;
              if (token >= 2 && bad < 1e6f) row.assign(96, bad);
              block.set_row(token, head, row);
            }
          }
          EXPECT_EQ(kernels().refused(block.block), first_refused(block.block))
              << form.name << " " << bad << " " << name_of(dtype);
        }
      }
    }
  }
}

TEST_P(Encoding, RowsAreTurnedAsTheDefinitionDoes) {
  for (const std::int64_t n : {16, 32, 48, 80, 96, 128, 192, 256, 576, 1024}) {
    const std::int64_t stride = n + 16;
    std::vector<float> wanted = normal_row(3 * stride, 9);
    std::vector<float> found = wanted;
    rotate_rows(wanted.data(), 3, stride, n);
    kernels().rotate(found.data(), 3, stride, n);
    ASSERT_EQ(std::memcmp(found.data(), wanted.data(), found.size() * sizeof(float)), 0) << n;
  }
}

TEST_P(Encoding, DecodedRowsAreThoseOfTheDefinition) {
  for (const FormCase& form : coded_forms()) {
    for (const std::int64_t n : {32, 64, 96, 128, 576}) {
      for (const bool stays : {true, false}) {
        for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
          Block block(form.format, dtype, 2, 3, n, stays ? 1 : 2, true);
          for (std::int64_t token = 0; token < 2; ++token) {
            for (std::int64_t head = 0; head < 3; ++head) {
              block.set_row(token, head,
                            normal_row(n, static_cast<std::uint32_t>(token * 3 + head)));
            }
          }
          encode_block(block.block);
          block.block.stays_rotated = stays;
          std::fill(block.rows.begin(), block.rows.end(), '\x55');
          decode_block(block.block);
          const std::vector<char> expected = block.rows;
          std::fill(block.rows.begin(), block.rows.end(), '\x55');
          kernels().decode(block.block);
          ASSERT_EQ(block.rows, expected) << form.name << " " << n;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Encoding, ::testing::ValuesIn(all_rows()),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace kvcache::internal
