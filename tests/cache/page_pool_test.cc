#include "cache/page_pool.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvcache::internal {
namespace {

TEST(PagePool, FreshPagesAscendAndFreedOnesComeBackLastInFirstOut) {
  PagePool pool;
  ASSERT_TRUE(pool.init(5).ok());
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
  PagePool pool;
  ASSERT_TRUE(pool.init(2).ok());
  const std::int32_t page = pool.take();
  EXPECT_EQ(pool.reserved(), 1);
  EXPECT_EQ(pool.held(), 0);
  pool.hold(page);
  pool.hold(page);
  EXPECT_EQ(pool.reserved(), 0);
  EXPECT_EQ(pool.held(), 1);
  EXPECT_EQ(pool.references(page), 2);
  pool.drop(page);
  EXPECT_EQ(pool.available(), 1);
  pool.drop(page);
  EXPECT_EQ(pool.available(), 2);
  EXPECT_EQ(std::vector<std::int32_t>(pool.free_list().begin(), pool.free_list().end()),
            (std::vector<std::int32_t>{page}));
}

}  // namespace
}  // namespace kvcache::internal
