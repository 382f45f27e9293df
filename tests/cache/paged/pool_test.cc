#include "cache/paged/pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace kvcache::internal {
namespace {

TEST(PagePool, FreshPagesAscendAndFreedOnesComeBackLastInFirstOut) {
  std::vector<std::int32_t> tables(10);
  PagePool pool(5, tables.data());
  for (std::int32_t page = 0; page < 4; ++page) EXPECT_EQ(pool.take(), page);
  pool.give_back(0);
  pool.give_back(2);
  EXPECT_EQ(pool.fresh_among(2), 0);
  EXPECT_EQ(pool.fresh_among(3), 1);
  EXPECT_EQ(pool.take(), 2);
  EXPECT_EQ(pool.take(), 0);
  EXPECT_EQ(pool.take(), 4);
  EXPECT_EQ(pool.available(), 0);
  EXPECT_EQ(pool.touched(), 5);
}

TEST(PagePool, APageIsReservedThenHeldUntilTheLastReferenceGoes) {
  std::vector<std::int32_t> tables(4);
  PagePool pool(2, tables.data());
  const std::int32_t page = pool.take();
  EXPECT_EQ(pool.reserved(), 1);
  EXPECT_EQ(pool.held(), 0);
  pool.hold(page);
  pool.hold(page);
  EXPECT_EQ(pool.reserved(), 0);
  EXPECT_EQ(pool.held(), 1);
  EXPECT_EQ(pool.references(page), 2);
  EXPECT_FALSE(pool.drop(page));
  EXPECT_EQ(pool.available(), 1);
  EXPECT_TRUE(pool.drop(page));
  EXPECT_EQ(pool.available(), 2);
  EXPECT_EQ(pool.cached(), 1);
  pool.evict(page);
  EXPECT_EQ(pool.cached(), 0);
  EXPECT_EQ(std::vector<std::int32_t>(pool.free_list().begin(), pool.free_list().end()),
            (std::vector<std::int32_t>{page}));
}

// Whether they follow one another or not, are all held, cached or reserved, and however many.
TEST(PagePool, PagesHeldTogetherAreThoseHeldOneByOne) {
  std::mt19937 random(7);
  const auto below = [&](int end) {
    return static_cast<int>(random() % static_cast<unsigned>(end));
  };
  for (int round = 0; round < 300; ++round) {
    constexpr int kPages = 120;
    std::vector<std::int32_t> tables(2 * kPages), alone_tables(2 * kPages);
    PagePool pool(kPages, tables.data()), alone(kPages, alone_tables.data());
    for (int i = 0; i < kPages; ++i) {
      const std::int32_t page = pool.take();
      ASSERT_EQ(alone.take(), page);
      const bool is_reserved = below(round % 4 * 20 + 1) == 1, is_cached = below(40) == 1;
      for (PagePool* each : {&pool, &alone}) {
        if (!is_reserved) each->hold(page);
        if (!is_reserved && is_cached) each->drop(page);
      }
    }
    std::vector<std::int32_t> pages;
    while (pages.size() < 70) {
      const int begin = below(kPages), step = below(8) == 0 ? -1 : 1;
      const int count = 1 + below(round % 3 == 0 ? 3 : 50);
      for (int i = begin; i >= 0 && i < std::min(kPages, begin + count); i += step) {
        pages.push_back(i);
      }
    }
    pages.resize(static_cast<std::size_t>(below(71)));
    pool.hold_all(pages);
    for (const std::int32_t page : pages) alone.hold(page);
    EXPECT_EQ(tables, alone_tables);
    EXPECT_EQ(pool.held(), alone.held());
    EXPECT_EQ(pool.cached(), alone.cached());
    EXPECT_EQ(pool.reserved(), alone.reserved());
  }
}

TEST(PagePool, CachedPagesAreHeldAgainOrEvictedAfterAllOthers) {
  std::vector<std::int32_t> tables(6);
  PagePool pool(3, tables.data());
  const std::int32_t page = pool.take();
  pool.hold(page);
  EXPECT_TRUE(pool.drop(page));
  EXPECT_TRUE(pool.is_cached(page));
  EXPECT_EQ(pool.references(page), 0);
  EXPECT_EQ(pool.available(), 3);
  EXPECT_EQ(pool.evicted_among(2), 0);
  EXPECT_EQ(pool.evicted_among(3), 1);
  EXPECT_EQ(pool.fresh_among(3), 2);
  pool.hold(page);
  EXPECT_EQ(pool.held(), 1);
  EXPECT_FALSE(pool.is_cached(page));
}

TEST(PagePool, BarePagesAreTakenAfterFreeOnesAndBeforeFreshOnes) {
  std::vector<std::int32_t> tables(10, 99);  // nothing is read before it is written
  PagePool pool(5, tables.data());
  for (std::int32_t page = 0; page < 3; ++page) EXPECT_EQ(pool.take(), page);
  for (std::int32_t page = 0; page < 3; ++page) pool.give_back(page);
  EXPECT_EQ(pool.strip(), 2);
  EXPECT_EQ(pool.strip(), 1);
  EXPECT_EQ(pool.bare(), 2);
  EXPECT_EQ(pool.available(), 5);
  EXPECT_EQ(pool.bare_among(2), 1);
  EXPECT_EQ(pool.bare_among(4), 2);
  EXPECT_EQ(pool.fresh_among(4), 1);
  EXPECT_EQ(pool.bare_page(0), 1);
  EXPECT_EQ(pool.bare_page(1), 2);
  for (const std::int32_t page : {0, 1, 2, 3}) EXPECT_EQ(pool.take(), page);
  EXPECT_EQ(pool.bare(), 0);
}

}  // namespace
}  // namespace kvcache::internal
