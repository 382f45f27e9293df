#include "cache/paged/pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/memory_kinds.h"

#if !KVC_PORTABLE_MEMORY
#include <sys/mman.h>
#endif

namespace kvcache::internal {
namespace {

#if !KVC_PORTABLE_MEMORY

TEST(LazyInts, TakeNoMemoryBeforeTheyAreTouchedThoughTheHeapHasSomeThatWasUsed) {
  constexpr std::size_t kBytes = std::size_t{4} << 20;
  // The second block lies in the heap: freeing the first taught malloc to keep such blocks there.
  for (int block = 0; block < 2; ++block) {
    void* used = std::malloc(kBytes);
    ASSERT_NE(used, nullptr);
    std::memset(used, 1, kBytes);
    EXPECT_EQ(*static_cast<const volatile char*>(used), 1);  // so that it is not optimized away
    std::free(used);
  }
  const LazyInts ints = make_lazy_ints(kBytes / 8);
  ASSERT_NE(ints, nullptr);
  ints[3] = 1;
  std::vector<unsigned char> resident((kBytes / 2) / static_cast<std::size_t>(page_bytes()));
  ASSERT_EQ(mincore(ints.get(), kBytes / 2, resident.data()), 0);
  EXPECT_EQ(std::count_if(resident.begin(), resident.end(),
                          [](unsigned char page) { return (page & 1) != 0; }),
            1);
}

#endif

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
