#include "cache/contiguous/geometry.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <utility>

#include "base/memory_kinds.h"

namespace kvcache::internal {
namespace {

LayerShape shape_of(Layout layout, std::int64_t batch = 3, std::int64_t heads = 2,
                    std::int64_t k_dim = 40, std::int64_t v_dim = 24) {
  return {batch, LayerSpec::kv(heads, k_dim, v_dim, plain(DType::kF32), plain(DType::kBF16)),
          layout};
}

// System pages that [begin, begin + bytes) touches.
std::int64_t pages_touched(std::int64_t begin, std::int64_t bytes) {
  return bytes == 0 ? 0 : (begin + bytes - 1) / page_bytes() - begin / page_bytes() + 1;
}

TEST(ContiguousGeometry, CommittedRowIsTheMostAnyStartCanTouchAndNoMore) {
  EXPECT_EQ(committed_row(0), 0);
  for (std::int64_t bytes = 2; bytes < 5 * page_bytes(); bytes += bytes < 300 ? 2 : 94) {
    std::int64_t most = 0;
    for (std::int64_t start = 0; start < page_bytes(); start += 64) {
      most = std::max(most, pages_touched(start, bytes));
    }
    ASSERT_EQ(committed_row(bytes), most * page_bytes()) << bytes;
  }
}

TEST(ContiguousGeometry, CoveredLengthIsTheLastThatCostsNoMore) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    ContiguousGeometry geometry;
    ASSERT_TRUE(growing_geometry(shape_of(layout), 1000, &geometry));
    EXPECT_EQ(geometry.covered_length(0), 0);
    for (std::int64_t length = 1; length <= 1000; ++length) {
      const std::int64_t covered = geometry.covered_length(length);
      ASSERT_GE(covered, length);
      ASSERT_EQ(geometry.committed_bytes(covered), geometry.committed_bytes(length));
      if (covered < 1000) {
        ASSERT_GT(geometry.committed_bytes(covered + 1), geometry.committed_bytes(length));
      }
    }
  }
}

TEST(ContiguousGeometry, GrowingRowsShareNoPageAndStayAligned) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const std::int64_t capacity : {1, 7, 100, 4096}) {
      ContiguousGeometry g;
      ASSERT_TRUE(growing_geometry(shape_of(layout), capacity, &g));
      EXPECT_EQ(g.rows, layout == Layout::kHND ? 6 : 3);
      EXPECT_EQ(g.strips[0].row_stride % 64, 0);
      EXPECT_GE(g.strips[0].row_stride, capacity * g.strips[0].token_bytes + page_bytes());
      EXPECT_EQ(g.strips[1].offset, g.rows * g.strips[0].row_stride);
      std::int64_t next_free = 0;  // page
      for (std::int64_t row = 0; row < 2 * g.rows; ++row) {
        const std::int64_t begin = row * g.strips[0].row_stride;
        EXPECT_GE(begin / page_bytes(), next_free);
        next_free = (begin + capacity * g.strips[0].token_bytes - 1) / page_bytes() + 1;
      }
      EXPECT_LE(next_free * page_bytes(), g.region_bytes + page_bytes());
    }
  }
}

TEST(ContiguousGeometry, StridesOfAllCapacitiesAreEqualModuloAPage) {
  ContiguousGeometry small, large;
  ASSERT_TRUE(growing_geometry(shape_of(Layout::kHND), 3, &small));
  ASSERT_TRUE(growing_geometry(shape_of(Layout::kHND), 100000, &large));
  EXPECT_EQ(small.strips[0].row_stride % page_bytes(), large.strips[0].row_stride % page_bytes());
}

TEST(ContiguousGeometry, RowStartsAreSpreadOverThePage) {
  ContiguousGeometry g;
  ASSERT_TRUE(growing_geometry(shape_of(Layout::kHND, 8, 8), 1000, &g));
  std::set<std::int64_t> phases;
  for (std::int64_t row = 0; row < g.rows; ++row) {
    phases.insert(row * g.strips[0].row_stride % page_bytes());
  }
  EXPECT_EQ(static_cast<std::int64_t>(phases.size()), g.rows);
}

TEST(ContiguousGeometry, FixedRowsAreDenseAndCommittedWhole) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    ContiguousGeometry g;
    ASSERT_TRUE(fixed_geometry(shape_of(layout), 10, &g));
    EXPECT_EQ(g.strips[0].row_stride, 10 * g.strips[0].token_bytes);
    EXPECT_EQ(g.strips[1].row_stride, 10 * g.strips[1].token_bytes);
    EXPECT_EQ(g.strips[1].offset % page_bytes(), 0);
    EXPECT_GE(g.strips[1].offset, 3 * 2 * 10 * 40 * 4);
    EXPECT_EQ(g.committed_bytes(1), g.region_bytes);
    EXPECT_EQ(g.covered_length(1), 10);
    EXPECT_EQ(g.stored_bytes(10), 3 * 2 * 10 * (40 * 4 + 24 * 2));
  }
}

TEST(ContiguousGeometry, CodesScalesAndZerosShareNoByte) {
  const LayerSpec spec =
      LayerSpec::kv(2, 64, 320, coded(RowFormat::kInt4), coded(RowFormat::kInt8, false));
  constexpr std::int64_t kCapacity = 70;
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const bool growing : {true, false}) {
      ContiguousGeometry g;
      const LayerShape shape = {3, spec, layout};
      ASSERT_TRUE(growing ? growing_geometry(shape, kCapacity, &g)
                          : fixed_geometry(shape, kCapacity, &g));
      std::set<std::pair<std::int64_t, std::int64_t>> taken;  // begin, end
      for (std::int64_t row = 0; row < g.rows; ++row) {
        g.for_each_row(row, [&](std::int32_t s, std::int64_t, std::int64_t offset) {
          taken.emplace(offset, offset + kCapacity * g.strips[s].token_bytes);
        });
      }
      std::int64_t free = 0, bytes = 0;
      for (const auto& [begin, end] : taken) {
        EXPECT_GE(begin, free);
        free = end;
        bytes += end - begin;
      }
      EXPECT_LE(free, g.region_bytes);
      // int4: a scale and a zero per 32 elements; int8: a scale per 128.
      EXPECT_EQ(bytes, 3 * 2 * kCapacity * (64 / 2 + 2 * 3 + 320 + 3 * 2));
      EXPECT_EQ(g.stored_bytes(kCapacity), bytes);
    }
  }
}

TEST(ContiguousGeometry, SizesPastTheLimitAreRefusedNotWrapped) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  ContiguousGeometry g;
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const LayerShape& shape :
         {shape_of(layout, kMax), shape_of(layout, 1, kMax), shape_of(layout, 1, 1, kMax),
          shape_of(layout, 1, 1, 1, kMax), shape_of(layout, kMax / 2, kMax / 2)}) {
      EXPECT_FALSE(growing_geometry(shape, 1, &g));
      EXPECT_FALSE(fixed_geometry(shape, 1, &g));
    }
    EXPECT_FALSE(growing_geometry(shape_of(layout), kMax, &g));
    EXPECT_FALSE(fixed_geometry(shape_of(layout), kMax, &g));
    EXPECT_FALSE(growing_geometry(shape_of(layout), std::int64_t{1} << 54, &g));
    EXPECT_FALSE(fixed_geometry(shape_of(layout), std::int64_t{1} << 54, &g));
  }
}

}  // namespace
}  // namespace kvcache::internal
