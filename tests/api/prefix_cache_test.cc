#include "kvcache/prefix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "support/prefix_world.h"

namespace kvcache::testing {
namespace {

CacheConfig full(std::int64_t num_pages = 16, std::int64_t page_size = 4) {
  return PrefixWorld::config_of({{}}, num_pages, page_size);
}

TEST(PrefixCache, FindsAStoredBeginningToTheTokenButNeverTheLast) {
  PrefixWorld world(full());
  const Text text = counted(1, 10);
  EXPECT_EQ(world.ask(text), 0);
  EXPECT_EQ(world.ask(text), 9);                               // the same again: all but the last
  EXPECT_EQ(world.ask(joined(counted(1, 10), {99, 98})), 10);  // the incomplete page too
  EXPECT_EQ(world.ask(joined(counted(1, 6), {99})), 6);        // within a page
  EXPECT_EQ(world.ask(joined(counted(1, 8), {77, 78})), 8);    // at a page
  EXPECT_EQ(world.ask({2, 3, 4}), 0);
}

TEST(PrefixCache, PagesAreFoundWhileTheirSequenceGoesOnAndSharedNotCopied) {
  PrefixWorld world(full());
  const SequenceId a = world.prefixes->open(world.prefixes->match(Text{1}).value()).value();
  ASSERT_OK(world.append(a, {}, counted(1, 9)));
  const auto handle = world.prefixes->match(counted(1, 9)).value();
  EXPECT_EQ(handle.length(), 8);
  EXPECT_EQ(handle.reason(), PrefixMiss::kLastToken);
  const SequenceId b = world.prefixes->open(handle).value();
  EXPECT_EQ(world.cache.stats().pages_held, 3);
  ASSERT_OK(world.append(b, {}, joined(counted(1, 8), {50, 51})));
  EXPECT_EQ(world.cache.stats().pages_held, 4);
  EXPECT_EQ(world.cache.stats().pages_copied, 0);
  EXPECT_TRUE(world.holds(a, {}, counted(1, 9)));
  EXPECT_TRUE(world.holds(b, {}, joined(counted(1, 8), {50, 51})));
}

TEST(PrefixCache, APageFoundInPartIsCopiedOnTheFirstWriteAndStaysAsItIs) {
  PrefixWorld world(full());
  EXPECT_EQ(world.ask(counted(1, 8)), 0);
  EXPECT_EQ(world.ask(joined(counted(1, 6), {60, 61, 62})), 6);
  EXPECT_EQ(world.cache.stats().pages_copied, 1);
  EXPECT_EQ(world.cache.stats().rows_copied, 2);
  EXPECT_EQ(world.ask(joined(counted(1, 8), {70})), 8);
  EXPECT_EQ(world.ask(joined(counted(1, 6), {60, 61, 62})), 8);
}

// A sequence alone on its tail would otherwise write where the index still sees the old token.
TEST(PrefixCache, ASequenceThatIsCutBackIntoAKnownPageDoesNotOverwriteIt) {
  PrefixWorld world(full());
  const SequenceId a = world.prefixes->open(world.prefixes->match(Text{1}).value()).value();
  ASSERT_OK(world.append(a, {}, counted(1, 8)));
  ASSERT_OK(world.cache.truncate(a, 6));
  ASSERT_OK(world.append(a, {}, joined(counted(1, 6), {66, 67, 68})));
  EXPECT_EQ(world.ask(joined(counted(1, 8), {70})), 8);
  EXPECT_EQ(world.ask(joined(counted(1, 6), {66, 67, 68})), 8);
  EXPECT_TRUE(world.holds(a, {}, joined(counted(1, 6), {66, 67, 68})));
}

TEST(PrefixCache, NamespacesAndTenantsNeverMeet) {
  PrefixWorld world(full());
  const Text text = counted(1, 9);
  EXPECT_EQ(world.ask(text, named(1)), 0);
  for (const PrefixNamespace& other : {named(2), named(1, 7), PrefixNamespace()}) {
    EXPECT_EQ(world.prefixes->explain(text, other).value().reason, PrefixMiss::kOtherNamespace);
    EXPECT_EQ(world.ask(text, other), 0);
  }
  EXPECT_EQ(world.ask(text, named(1)), 8);
}

TEST(PrefixCache, ReserveEvictsTheLeastRecentlyUsedTextFromItsEnd) {
  PrefixWorld world(full(6));
  EXPECT_EQ(world.ask(counted(1, 12)), 0);
  EXPECT_EQ(world.ask(counted(101, 12)), 0);
  EXPECT_EQ(world.cache.free_pages(), 6);
  EXPECT_EQ(world.cache.stats().pages_cached, 6);
  EXPECT_EQ(world.ask(counted(201, 8)), 0);
  // Two pages of the older text are gone, and its beginning is left.
  EXPECT_EQ(world.prefixes->explain(counted(1, 12)).value().length, 4);
  EXPECT_EQ(world.prefixes->explain(counted(1, 12)).value().reason, PrefixMiss::kEvicted);
  EXPECT_EQ(world.prefixes->explain(counted(101, 12)).value().length, 11);
  EXPECT_EQ(world.prefixes->stats().pages_evicted, 2);
}

TEST(PrefixCache, WhatAHandleOrAPinNamesStays) {
  PrefixWorld world(full(6));
  EXPECT_EQ(world.ask(counted(1, 12)), 0);
  {
    const auto handle = world.prefixes->match(joined(counted(1, 12), {0})).value();
    EXPECT_EQ(world.cache.free_pages(), 3);
    EXPECT_EQ(world.ask(counted(101, 12)), 0);
    EXPECT_EQ(world.ask(counted(201, 12)), 0);
    ASSERT_OK(world.prefixes->pin(handle));
  }
  EXPECT_EQ(world.cache.free_pages(), 3);
  EXPECT_EQ(world.ask(counted(301, 12)), 0);
  const auto handle = world.prefixes->match(joined(counted(1, 12), {0})).value();
  EXPECT_EQ(handle.length(), 12);
  ASSERT_OK(world.prefixes->unpin(handle));
  EXPECT_EQ(world.prefixes->unpin(handle).code(), StatusCode::kNotFound);
  EXPECT_EQ(world.cache.free_pages(), 3);
}

TEST(PrefixCache, LowerPrioritiesLeaveFirstAndHigherLast) {
  PrefixWorld world(full(6));
  const auto ask = [&](std::int32_t begin, std::int64_t priority) {
    EXPECT_EQ(world.ask(counted(begin, 8)), 0);
    const auto handle = world.prefixes->match(joined(counted(begin, 8), {0})).value();
    ASSERT_OK(world.prefixes->set_priority(handle, priority));
  };
  ask(1, 90);
  ask(101, 50);
  ask(201, 10);
  const auto found = [&](std::int32_t begin) {
    return world.prefixes->explain(joined(counted(begin, 8), {0})).value().length;
  };
  EXPECT_EQ(world.prefixes->evict(2), 2);
  EXPECT_EQ(found(201), 0);
  EXPECT_EQ(world.prefixes->evict(1), 1);
  EXPECT_EQ(found(101), 4);
  EXPECT_EQ(found(1), 8);
  EXPECT_EQ(world.prefixes->evict(9), 3);
  world.check();
}

// The page of a text's last token lies behind what a match of the text finds.
TEST(PrefixCache, APriorityReachesTheLastTokenThroughAMatchOfOneIdMore) {
  const Text text = counted(1, 9);
  for (const bool whole : {false, true}) {
    PrefixWorld world(full(6));
    EXPECT_EQ(world.ask(counted(101, 8)), 0);
    EXPECT_EQ(world.ask(text), 0);
    {
      const auto handle = world.prefixes->match(whole ? joined(text, {0}) : text).value();
      EXPECT_EQ(handle.length(), whole ? 9 : 8);
      ASSERT_OK(world.prefixes->set_priority(handle, 10));
    }
    EXPECT_EQ(world.prefixes->evict(2), 2);
    // With priority its last page leaves first; without, what is behind its beginning keeps that.
    EXPECT_EQ(world.prefixes->explain(text).value().length, whole ? 4 : 8);
    EXPECT_EQ(world.prefixes->explain(joined(counted(101, 8), {0})).value().length, whole ? 8 : 0);
    world.check();
  }
}

TEST(PrefixCache, PoliciesHaveTheNamesThatTheyAreAskedForBy) {
  for (const Eviction each :
       {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc, Eviction::kAdaptive}) {
    EXPECT_EQ(eviction_named(name_of(each)).value(), each);
  }
  EXPECT_EQ(eviction_named("fifo").status().message(),
            "eviction: found fifo, expected lru, s3fifo, arc or adaptive");
}

TEST(PrefixCache, WhatIsPastItsTimeIsNotFoundAndGoesWhenAsked) {
  std::int64_t now = 1000;
  PrefixOptions options;
  options.clock = [&now] { return now; };
  PrefixWorld world(full(), options);
  const Text text = counted(1, 9);
  EXPECT_EQ(world.ask(text), 0);
  ASSERT_OK(world.prefixes->set_ttl(world.prefixes->match(text).value(), 500));
  now = 1499;
  EXPECT_EQ(world.prefixes->explain(text).value().length, 8);
  EXPECT_EQ(world.prefixes->remove_expired(), 0);
  now = 1500;
  EXPECT_EQ(world.prefixes->explain(text).value().length, 0);
  EXPECT_EQ(world.prefixes->explain(text).value().reason, PrefixMiss::kExpired);
  EXPECT_EQ(world.prefixes->remove_expired(), 3);
  EXPECT_EQ(world.cache.stats().pages_cached, 0);
  world.check();
}

TEST(PrefixCache, AFloodOfOneTenantLeavesAnotherItsQuota) {
  PrefixWorld world(full(8));
  const std::int64_t page = world.prefixes->stats().bytes;
  EXPECT_EQ(page, 0);
  EXPECT_EQ(world.ask(counted(1, 12), named(1, 1)), 0);
  const std::int64_t three = world.prefixes->stats().bytes;
  ASSERT_OK(world.prefixes->set_quota(1, three));
  EXPECT_EQ(world.prefixes->tenant_bytes(1), three);
  EXPECT_EQ(world.cache.free_pages(), 5);
  for (std::int32_t flood = 1; flood < 9; ++flood) {
    EXPECT_EQ(world.ask(counted(1000 * flood, 20), named(1, 2)), 0);
  }
  EXPECT_EQ(world.prefixes->explain(counted(1, 13), named(1, 1)).value().length, 12);
  // Others have no room for six, the tenant itself has.
  const auto other = world.prefixes->open(world.prefixes->match(Text{1}, named(1, 2)).value());
  EXPECT_EQ(world.append(*other, named(1, 2), counted(5, 24)).code(), StatusCode::kRetryLater);
  EXPECT_EQ(world.ask(counted(301, 24), named(1, 1)), 0);
  world.check();
}

TEST(PrefixCache, AWindowedGroupServesOnlyLengthsWhoseLastWindowIsThere) {
  PrefixWorld world(PrefixWorld::config_of({{}, {8}}, 24, 4));
  const Text text = counted(1, 40);
  EXPECT_EQ(world.ask(text), 0);
  EXPECT_EQ(world.cache.stats().pages_cached, 20);  // those that left the window too
  EXPECT_EQ(world.ask(text), 39);
  EXPECT_EQ(world.ask(joined(counted(1, 22), {9, 9, 9})), 22);
  // Of the second group all but the newest pages go when it alone needs them.
  const SequenceId other = world.cache.open().value();
  for (int i = 0; i < 60; ++i) {
    const Append one{other, 1};
    auto step = world.cache.reserve({&one, 1});
    ASSERT_OK(step.status());
    ASSERT_OK(world.write(*step, {}, Text{1}, 0));
    ASSERT_OK(world.cache.commit(*step));
  }
  world.check();
  const PrefixExplanation at = world.prefixes->explain(joined(counted(1, 22), {7})).value();
  EXPECT_LE(at.length, at.stored);
}

TEST(PrefixCache, EventsAreNumberedAndLossIsSaid) {
  PrefixOptions options;
  options.event_capacity = 4;
  PrefixWorld world(full(), options);
  EXPECT_EQ(world.ask(counted(1, 8)), 0);
  PrefixEvent events[8];
  ASSERT_EQ(world.prefixes->take_events(events), 2);
  EXPECT_EQ(events[0].kind, PrefixEvent::Kind::kStored);
  EXPECT_EQ(events[0].number, 1);
  EXPECT_EQ(events[1].parent, events[0].key);
  EXPECT_EQ(events[1].position, 1);
  EXPECT_EQ(world.ask(counted(101, 24)), 0);
  ASSERT_EQ(world.prefixes->take_events(events), 5);
  EXPECT_EQ(events[0].kind, PrefixEvent::Kind::kLost);
  EXPECT_EQ(events[0].lost, 2);
  EXPECT_EQ(events[0].number + 1, events[1].number);
  EXPECT_EQ(world.prefixes->evict(1), 1);
  ASSERT_EQ(world.prefixes->take_events(events), 1);
  EXPECT_EQ(events[0].kind, PrefixEvent::Kind::kRemoved);
}

TEST(PrefixCache, WithoutRoomForAnIndexItIsRefused) {
  CacheConfig config = full();
  config.prefixes = false;
  PagedCache cache = PagedCache::create(config).value();
  EXPECT_EQ(PrefixCache::create(cache).status().code(), StatusCode::kInvalidArgument);
  config.prefixes = true;
  PagedCache with = PagedCache::create(config).value();
  const PrefixCache one = PrefixCache::create(with).value();
  EXPECT_EQ(PrefixCache::create(with).status().code(), StatusCode::kInvalidArgument);
  // It weighs what the pages weigh that were touched.
  EXPECT_EQ(with.reserved_bytes(), cache.reserved_bytes());
  for (PagedCache* each : {&cache, &with}) {
    const Append append{each->open().value(), 64};
    auto step = each->reserve({&append, 1});
    ASSERT_OK(step.status());
    EXPECT_OK(each->rollback(*step));
  }
  EXPECT_EQ(with.reserved_bytes() - cache.reserved_bytes(), 16 * (164 + 16));
}

TEST(PrefixCache, PagesThatNobodyHoldsGiveWayToTheBudgetInWhateverGroupTheyAre) {
  CacheConfig config = PrefixWorld::config_of({{}, {8}}, 64, 4);
  config.layers[0] = LayerSpec::kv(1, 64, 64);  // of 2 KiB a page, and the index beside them
  config.layers[1] = LayerSpec::kv(1, 64, 64).living({8});
  config.num_pages = 0;
  config.budget_bytes = 40 << 10;
  PagedCache cache = PagedCache::create(config).value();
  PrefixCache prefixes = PrefixCache::create(cache).value();
  std::vector<float> zeros(4 * 64);
  const auto ask = [&](const Text& text) {
    const PrefixHandle handle = prefixes.match(text).value();
    const SequenceId seq = prefixes.open(handle).value();
    for (auto at = static_cast<std::size_t>(handle.length()); at < text.size();) {
      const std::size_t count = std::min<std::size_t>(4 - at % 4, text.size() - at);
      const Append append{seq, static_cast<std::int64_t>(count),
                          std::span(text).subspan(at, count)};
      auto step = cache.reserve({&append, 1});
      EXPECT_OK(step.status());
      if (!step.ok()) return std::int64_t{-1};
      const TensorView rows(zeros.data(), DType::kF32, {append.count, 1, 64});
      for (std::int64_t layer = 0; layer < 2; ++layer) {
        EXPECT_OK(cache.write(*step, layer, rows, rows));
      }
      EXPECT_OK(cache.commit(*step));
      EXPECT_LE(cache.reserved_bytes(), config.budget_bytes);
      at += count;
    }
    EXPECT_OK(cache.release(seq));
    EXPECT_OK(cache.check_invariants());
    EXPECT_OK(prefixes.check_invariants());
    return handle.length();
  };
  for (std::int32_t text = 0; text < 40; ++text) EXPECT_EQ(ask(counted(text * 100, 24)), 0);
  EXPECT_GT(prefixes.stats().pages_evicted, 0);
  EXPECT_EQ(ask(counted(3900, 24)), 23);
  // Sequences of no rows need tables, and these the memory of what is cached.
  std::vector<SequenceId> empty;
  for (auto seq = cache.open(); seq.ok(); seq = cache.open()) empty.push_back(*seq);
  EXPECT_LE(cache.reserved_bytes(), config.budget_bytes);
  EXPECT_EQ(cache.stats().pages_cached, 0);
  EXPECT_OK(prefixes.check_invariants());
  for (const SequenceId seq : empty) EXPECT_OK(cache.release(seq));
  EXPECT_EQ(ask(counted(1, 24)), 0);
}

TEST(PrefixCache, WhatIsFoundStaysWhileItsTableMakesRoomInTheBudget) {
  CacheConfig config = PrefixWorld::config_of({{}, {8}}, 64, 4);
  config.num_pages = 0;
  config.budget_bytes = 12000;
  PrefixWorld world(config);
  EXPECT_EQ(world.ask(counted(1, 25)), 0);
  EXPECT_EQ(world.ask(counted(101, 25)), 0);
  std::vector<SequenceId> empty;
  for (auto seq = world.cache.open(); seq.ok(); seq = world.cache.open()) {
    empty.push_back(*seq);
    if (world.prefixes->stats().pages_evicted > 0) break;
  }
  for (;;) {
    const std::int64_t stored = world.prefixes->explain(counted(101, 25)).value().length;
    const auto handle = world.prefixes->match(counted(101, 25));
    if (!handle.ok()) break;
    const auto seq = world.prefixes->open(*handle);
    if (!seq.ok()) break;
    EXPECT_LE(handle->length(), stored);
    EXPECT_TRUE(
        world.holds(*seq, {}, Text(counted(101, static_cast<std::int32_t>(handle->length())))));
    world.check();
    EXPECT_LE(world.cache.reserved_bytes(), config.budget_bytes);
    empty.push_back(*seq);
  }
  world.check();
  for (const SequenceId seq : empty) EXPECT_OK(world.cache.release(seq));
  world.check();
}

// Of memory that is not zero nothing is read that was not written, however pages come.
TEST(PrefixCache, AnIndexFindsWhatItStoredInMemoryThatWasUsedBefore) {
  for (const Eviction eviction :
       {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc, Eviction::kAdaptive}) {
    TestMemory memory;
    PrefixOptions options;
    options.eviction = eviction;
    const std::vector<Life> lives = {{}, {8}};
    PrefixWorld world(PrefixWorld::config_of(lives, 24, 4, &memory), options);
    world.prefixes.reset();
    // Some pages are touched while there is no index, and were another's before this one.
    const SequenceId seq = world.cache.open().value();
    ASSERT_OK(world.append(seq, {}, counted(1, 11)));
    ASSERT_OK(world.cache.release(seq));
    for (int index = 0; index < 2; ++index) {
      world.prefixes = PrefixCache::create(world.cache, options).value();
      world.check();
      for (std::int32_t text = 0; text < 12; ++text) {
        EXPECT_EQ(world.ask(counted(100 * text, 9 + text)), 0);
        EXPECT_EQ(world.ask(counted(100 * text, 9 + text)), 8 + text);
      }
      EXPECT_EQ(world.prefixes->explain(counted(7000, 9)).value().reason, PrefixMiss::kCold);
      EXPECT_GT(world.prefixes->stats().pages_evicted, 0);
      world.prefixes.reset();
    }
  }
}

// Room in a budget is made of pages that are known. Where the memory for what needs it is refused,
// they are known as before, and none of it is spent beyond the budget meanwhile.
TEST(PrefixCache, ARefusalOfMemoryEvictsNothing) {
  for (std::int64_t calls = 0;; ++calls) {
    TestMemory memory;
    CacheConfig config = PrefixWorld::config_of({{}, {8}}, 64, 4, &memory);
    config.num_pages = 0;
    config.budget_bytes = 16000;
    PrefixWorld world(config);
    for (std::int32_t text = 0; text < 20; ++text) {
      EXPECT_EQ(world.ask(counted(100 * text, 13)), 0);
    }
    ASSERT_GT(world.prefixes->stats().pages_evicted, 0);
    // Of the second group's pages many more than texts like these have: bytes of the first go
    // there.
    const SequenceId seq = world.cache.open().value();
    ASSERT_OK(world.cache.hold_rows(seq, true));
    const Append append{seq, 60};
    const auto state = [&] {
      std::vector<std::int64_t> all = {world.cache.reserved_bytes(),
                                       world.cache.nbytes(),
                                       world.cache.free_pages(0),
                                       world.cache.free_pages(1),
                                       world.cache.stats().pages_cached,
                                       world.prefixes->stats().pages_evicted,
                                       world.prefixes->stats().pages_removed};
      for (std::int32_t text = 0; text < 20; ++text) {
        const auto known = world.prefixes->explain(counted(100 * text, 14)).value();
        all.push_back(known.length);
        all.push_back(known.stored);
      }
      return all;
    };
    const auto before = state();
    memory.fail_after(calls);
    const auto refused = world.cache.reserve({&append, 1});
    memory.never_fail();
    if (refused.ok()) {
      EXPECT_GT(calls, 2);
      break;
    }
    EXPECT_EQ(refused.status().code(), StatusCode::kOutOfMemory);
    EXPECT_EQ(state(), before);
    EXPECT_LE(memory.peak_bytes(), config.budget_bytes);
    world.check();
    EXPECT_OK(world.cache.reserve({&append, 1}).status());
    EXPECT_EQ(memory.committed_bytes(), world.cache.reserved_bytes());
    EXPECT_LE(memory.peak_bytes(), config.budget_bytes);
    world.check();
  }
}

TEST(PrefixCache, EachMayGoFirst) {
  PrefixWorld world(full());
  EXPECT_EQ(world.ask(counted(1, 9)), 0);
  const SequenceId kept =
      world.prefixes->open(world.prefixes->match(counted(1, 9)).value()).value();
  {
    const auto late = world.prefixes->match(counted(1, 9)).value();
    world.prefixes.reset();
    EXPECT_EQ(world.cache.stats().pages_cached, 0);
    EXPECT_EQ(world.cache.stats().sequences, 1);
  }
  EXPECT_OK(world.cache.check_invariants());
  EXPECT_TRUE(world.holds(kept, {}, counted(1, 8)));
  world.prefixes = PrefixCache::create(world.cache).value();
  EXPECT_EQ(world.ask(counted(1, 9)), 0);
  auto handle = world.prefixes->match(counted(1, 9)).value();
  { const PagedCache gone = std::move(world.cache); }
  EXPECT_EQ(world.prefixes->match(counted(1, 9)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(world.prefixes->open(handle).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvcache::testing
