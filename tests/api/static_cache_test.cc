#include "kvcache/static_cache.h"

#include <gtest/gtest.h>

#include <limits>

#include "support/layered.h"
#include "support/refusing_memory.h"

namespace kvcache::testing {
namespace {

TEST(StaticCache, RefusesSizesThatCannotBe) {
  EXPECT_EQ(StaticCache::create(0, 1).status().message(),
            "max_length: found 0, expected at least 1");
  EXPECT_EQ(StaticCache::create(1, 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(StaticCache::create(1, std::numeric_limits<std::int64_t>::max()).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(StaticCache, ACapacityPastAllMemoryIsAnErrorOfTheFirstUpdate) {
  StaticCache cache = StaticCache::create(std::numeric_limits<std::int64_t>::max(), 1).value();
  EXPECT_ERROR_UNCHANGED(cache, StatusCode::kOutOfMemory, "",
                         cache.update(T({1}), T({1})).status());
}

TEST(StaticCache, AllLayersExistFromTheStart) {
  StaticCache cache = StaticCache::create(8, 3).value();
  EXPECT_EQ(cache.num_layers(), 3);
  EXPECT_EQ(cache.view(2).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(cache.view(3).status().code(), StatusCode::kOutOfRange);
}

TEST(StaticCache, TheCapacityIsCommittedByTheFirstUpdateAndNeverMoves) {
  RefusingMemory memory;
  CacheOptions options;
  options.memory = &memory;
  StaticCache cache = StaticCache::create(1000, 1, options).value();
  EXPECT_EQ(cache.reserved_bytes(), 0);
  ASSERT_OK(cache.update(T({1}), T({1})).status());
  const std::int64_t held = cache.reserved_bytes();
  const void* where = cache.get(0).value().key.data;
  EXPECT_GE(held, 2 * 1000 * 4);
  EXPECT_EQ(memory.committed(), held);
  const HostTensor rest = iota({1, 1, 999, 1});
  ASSERT_OK(cache.update(rest, rest).status());
  ASSERT_OK(cache.crop(10));
  cache.shrink();  // a populated layer keeps its capacity
  EXPECT_EQ(cache.reserved_bytes(), held);
  EXPECT_EQ(cache.get(0).value().key.data, where);
  EXPECT_EQ(memory.commits(), 1);
}

TEST(StaticCache, AResetLayerTakesAnotherShapeWithinTheSameBudget) {
  LimitedMemory memory(64 * 1024);
  CacheOptions options;
  options.memory = &memory;
  StaticCache cache = StaticCache::create(32, 1, options).value();
  const HostTensor wide = iota({1, 2, 1, 128});
  ASSERT_OK(cache.update(wide, wide).status());
  EXPECT_EQ(memory.committed_bytes(), 64 * 1024);
  cache.reset();
  const HostTensor split = iota({2, 1, 1, 128});
  ASSERT_OK(cache.update(split, split).status());
  EXPECT_EQ(memory.committed_bytes(), cache.reserved_bytes());
}

TEST(StaticCache, ARefusedReorderLeavesEveryLayerAsItWas) {
  bool more = true;
  for (std::int64_t call = 1; more; ++call) {
    RefusingMemory memory;
    CacheOptions options;
    options.memory = &memory;
    StaticCache cache = StaticCache::create(8, 3, options).value();
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      ASSERT_OK(cache.update(rows({{1, 2}, {3, 4}}), rows({{5, 6}, {7, 8}}), layer).status());
    }
    const CacheState before = state_of(cache);
    memory.refuse(call);
    const Status status = cache.reorder(indices({1, 1, 0}));
    more = memory.refused();
    EXPECT_EQ(status.ok(), !more);
    EXPECT_EQ(state_of(cache) == before, more);
  }
}

TEST(StaticCache, ACloneHasItsOwnMemory) {
  StaticCache cache = StaticCache::create(4, 2).value();
  ASSERT_OK(cache.update(T({1, 2, 3}), T({4, 5, 6}), 1).status());
  StaticCache copy = cache.clone().value();
  ASSERT_OK(copy.update(T({9}), T({9}), 1, index(0)).status());
  EXPECT_EQ(keys(cache, 1), (Floats{1, 2, 3}));
  EXPECT_EQ(keys(copy, 1), (Floats{9, 2, 3}));
  EXPECT_EQ(copy.max_length(), 4);
  EXPECT_EQ(copy.reserved_bytes(), cache.reserved_bytes());
}

}  // namespace
}  // namespace kvcache::testing
