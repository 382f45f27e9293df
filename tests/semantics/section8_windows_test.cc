// docs: semantics, section 8: windows, chunks and sinks of a PagedCache, rules 1 - 3 and 6, and its
// cases. Attention over them is in section8_attention_test.cc.
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "kvcache/memory_plan.h"
#include "support/paged.h"

namespace kvcache::testing {
namespace {

using Seqs = std::vector<SequenceId>;

constexpr Life kFull;
constexpr Life window(std::int64_t tokens, std::int32_t sinks = 0) { return {tokens, 0, sinks}; }
constexpr Life chunk(std::int64_t tokens) { return {0, tokens}; }

// Layers of these lives, pages of 2 tokens.
PagedFixture make(const std::vector<Life>& lives, std::int64_t rewind_tokens = 0,
                  std::int64_t num_pages = 32, std::int64_t page_size = 2) {
  CacheConfig config = PagedFixture::config(Layout::kHND, DType::kF32, num_pages, page_size, 0);
  for (const Life& life : lives) config.layers.push_back(paged_spec().living(life));
  config.rewind_tokens = rewind_tokens;
  return PagedFixture(config);
}

Tokens numbered(std::int64_t begin, std::int64_t end) {
  Tokens tokens(static_cast<std::size_t>(end - begin));
  std::iota(tokens.begin(), tokens.end(), static_cast<double>(begin));
  return tokens;
}

// Token p at position p, one step each or `step` at a time.
void fill(PagedFixture& f, SequenceId seq, std::int64_t length, std::int64_t step = 1) {
  for (std::int64_t n = f.cache.seq_length(seq).value(); n < length; n += step) {
    ASSERT_OK(f.append(seq, numbered(n, std::min(n + step, length))));
  }
}

std::int64_t first(const PagedFixture& f, SequenceId seq, std::int64_t layer = 0) {
  return f.cache.first_position(layer, seq).value();
}
std::int64_t rows(const PagedFixture& f, SequenceId seq, std::int64_t layer = 0) {
  return f.cache.rows_held(layer, seq).value();
}

// --- The cases, page_size 2. ---

TEST(Section8Cases, AWindowOfThreeAfterSevenTokensHoldsTwoRowsInTwoPages) {
  PagedFixture f = make({window(3)});
  const SequenceId a = f.open();
  fill(f, a, 7);
  EXPECT_EQ(first(f, a), 5);
  EXPECT_EQ(rows(f, a), 2);
  EXPECT_EQ(f.held(0, a), (Tokens{5, 6}));
  EXPECT_EQ(f.pages(a).size(), 2u);
}

TEST(Section8Cases, WithOneSinkAlsoPositionZeroInThreePages) {
  PagedFixture f = make({window(3, 1)});
  const SequenceId a = f.open();
  fill(f, a, 7);
  EXPECT_EQ(first(f, a), 5);
  EXPECT_EQ(rows(f, a), 3);
  EXPECT_EQ(f.held(0, a), (Tokens{0, 5, 6}));
  EXPECT_EQ(f.pages(a).size(), 3u);
}

TEST(Section8Cases, RewindByOneIsOutOfRangeWithoutRewindTokens) {
  PagedFixture f = make({window(3)});
  const SequenceId a = f.open();
  fill(f, a, 7);
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kOutOfRange, f.cache.rewind(a, 1));
  EXPECT_EQ(f.cache.rewind(a, 1).message(),
            "layer 0: found position 5 the first held, expected 4, for a return to length 6");
}

TEST(Section8Cases, WithTwoRewindTokensItWorks) {
  PagedFixture f = make({window(3)}, 2);
  const SequenceId a = f.open();
  fill(f, a, 7);
  EXPECT_EQ(first(f, a), 3);
  EXPECT_OK(f.cache.rewind(a, 1));
  EXPECT_EQ(f.cache.next_position(a).value(), 6);
}

TEST(Section8Cases, WhatFirstHasPassedStaysGone) {
  PagedFixture f = make({window(3)}, 2);
  const SequenceId a = f.open();
  fill(f, a, 7);
  EXPECT_OK(f.cache.rewind(a, 2));
  EXPECT_EQ(first(f, a), 3);
  EXPECT_OK(f.append(a, {5}));
  EXPECT_EQ(first(f, a), 3);
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kOutOfRange, f.cache.rewind(a, 2));
  EXPECT_EQ(f.cache.rewind(a, 2).message(),
            "layer 0: found position 3 the first held, expected 2, for a return to length 4");
}

TEST(Section8Cases, AChunkOfFourHoldsNothingAtFourAndOneRowAtFive) {
  PagedFixture f = make({chunk(4)});
  const SequenceId a = f.open();
  fill(f, a, 4);
  EXPECT_EQ(rows(f, a), 0);
  EXPECT_EQ(f.pages(a).size(), 0u);
  EXPECT_EQ(f.cache.page_indices(0, Seqs{a}).value().kv_last_page_len, (Pages{0}));
  fill(f, a, 5);
  EXPECT_EQ(first(f, a), 4);
  EXPECT_EQ(f.held(0, a), (Tokens{4}));
}

TEST(Section8Cases, AMixedCacheForksAtItsLengthAndNamesTheWindowedLayerElsewhere) {
  PagedFixture f = make({kFull, window(3)});
  const SequenceId a = f.open();
  fill(f, a, 7);
  const SequenceId b = f.cache.fork(a, 7).value();
  EXPECT_EQ(f.held(0, b), numbered(0, 7));
  EXPECT_EQ(f.held(1, b), (Tokens{5, 6}));
  EXPECT_REFUSED(f, (Seqs{a, b}), StatusCode::kOutOfRange, f.cache.fork(a, 5).status());
  EXPECT_EQ(f.cache.fork(a, 5).status().message(),
            "layer 1: found position 5 the first held, expected 3, for a return to length 5");
}

// --- 1: one length, pages that leave at commit. ---

TEST(Section8Pages, LeaveAtCommitAndSharedOnesLoseAReference) {
  PagedFixture f = make({window(3)}, 0, 4);
  const SequenceId a = f.open();
  fill(f, a, 4);
  EXPECT_EQ(f.pages(a), (Pages{1}));
  const SequenceId b = f.cache.fork(a, 4).value();
  auto step = f.reserve(a, 3).value();
  ASSERT_OK(f.write(step, {4, 5, 6}));
  EXPECT_EQ(f.cache.free_pages(), 1);  // nothing has left yet
  ASSERT_OK(f.cache.commit(step));
  EXPECT_EQ(f.held(0, a), (Tokens{5, 6}));
  EXPECT_EQ(f.held(0, b), (Tokens{2, 3}));
  EXPECT_EQ(f.pages(b), (Pages{1}));
  EXPECT_EQ(f.cache.free_pages(), 1);
  EXPECT_OK(f.cache.release(b));
  EXPECT_EQ(f.cache.free_pages(), 2);
  EXPECT_OK(f.cache.check_invariants());
}

TEST(Section8Pages, WhatIsLeftOfAPageDoesNotCountAsHeld) {
  for (const std::int64_t page_size : {1, 2, 3, 4, 16}) {
    for (const Life& life : {window(3), window(3, 1), window(1), chunk(4)}) {
      PagedFixture f = make({life}, 1, 32, page_size);
      PagedFixture one = make({life}, 1, 32, 1);
      const SequenceId a = f.open(), b = one.open();
      for (std::int64_t n = 1; n < 20; ++n) {
        fill(f, a, n);
        fill(one, b, n);
        EXPECT_EQ(first(f, a), first(one, b));
        EXPECT_EQ(f.held(0, a), one.held(0, b));
        EXPECT_EQ(f.cache.nbytes(), one.cache.nbytes());
        const Result<SequenceId> c = f.cache.fork(a, n - n % 4), d = one.cache.fork(b, n - n % 4);
        EXPECT_EQ(c.status().message(), d.status().message());
        if (!c.ok() || !d.ok()) continue;
        EXPECT_EQ(f.cache.nbytes(), one.cache.nbytes());
        EXPECT_OK(f.cache.release(*c));
        EXPECT_OK(one.cache.release(*d));
      }
    }
  }
}

TEST(Section8Pages, AWindowHasABoundWhateverTheLength) {
  for (const std::int64_t page_size : {2, 3, 16}) {
    for (const std::int64_t rewind : {0, 5}) {
      PagedFixture f = make({window(10), window(10, 5), chunk(10)}, rewind, 300, page_size);
      const SequenceId a = f.open();
      for (std::int64_t n = 1; n < 200; ++n) {
        fill(f, a, n);
        const std::int64_t bound = (10 + rewind + page_size - 1) / page_size + 1;
        const std::int64_t sinks = (5 + page_size - 1) / page_size;
        EXPECT_LE(std::int64_t(f.pages(a, 0).size()), bound);
        EXPECT_LE(std::int64_t(f.pages(a, 1).size()), bound + sinks);
        EXPECT_LE(std::int64_t(f.pages(a, 2).size()), bound);
      }
    }
  }
}

TEST(Section8Pages, AStepHasItsOwnRowsTooAndManyTokensGoInOne) {
  PagedFixture f = make({window(3), window(3, 2)});
  const SequenceId a = f.open();
  fill(f, a, 5);
  auto step = f.reserve(a, 20).value();
  ASSERT_OK(f.write(step, numbered(5, 25)));
  const OwnedKvView view = f.cache.view(step, 0).value();
  EXPECT_EQ(f.tokens(view, 0), numbered(3, 25));
  ASSERT_OK(f.cache.commit(step));
  EXPECT_EQ(f.held(0, a), (Tokens{23, 24}));
  EXPECT_EQ(f.held(1, a), (Tokens{0, 1, 23, 24}));
}

TEST(Section8Pages, AHundredThousandTokensPassThroughAPoolOfOneWindow) {
  for (const std::int64_t page_size : {16, 100}) {
    const std::int64_t bound = (1024 + page_size - 1) / page_size + 1;
    CacheConfig config = PagedFixture::config(Layout::kHND, DType::kF32, bound + 1, page_size, 1);
    config.layers[0].life = window(1024);
    PagedFixture f(config);
    const SequenceId a = f.open();
    const HostTensor k = packed(f.spec(), {1}, 0, false), v = packed(f.spec(), {1}, 0, true);
    for (std::int64_t n = 0; n < 100000; ++n) {
      auto step = f.reserve(a, 1);
      ASSERT_TRUE(step.ok()) << step.status().to_string();
      ASSERT_OK(f.cache.write(*step, 0, k, v));
      ASSERT_OK(f.cache.commit(*step));
      ASSERT_LE(f.cache.stats().pages_held, bound);
    }
    EXPECT_EQ(rows(f, a), 1023);
    EXPECT_OK(f.cache.check_invariants());
    MemoryPlanRequest request;
    request.layers = config.layers;
    request.seq_length = 100000;
    request.step_tokens = 1;
    request.page_size = page_size;
    request.num_pages = config.num_pages;
    const PlannedBytes plan = plan_memory(CacheKind::kPaged, request).value();
    EXPECT_EQ(plan.nbytes, f.cache.nbytes());
    EXPECT_EQ(plan.reserved_bytes, f.cache.reserved_bytes());
    EXPECT_LE(plan.num_pages, bound);
  }
}

TEST(Section8Pages, APlanSaysTheBytesOfEveryMixtureAndStep) {
  for (const std::int64_t page_size : {1, 3, 16}) {
    for (const std::int64_t rewind : {0, 4}) {
      for (const std::int64_t step : {1, 2, 7, 30, 100}) {
        for (const std::int64_t length : {0, 1, 8, 29, 100, 143}) {
          for (const std::vector<Life>& lives :
               {std::vector<Life>{kFull, window(5)}, std::vector<Life>{window(20, 3), window(1)},
                std::vector<Life>{chunk(7), kFull, chunk(32)}, std::vector<Life>{window(8, 40)}}) {
            PagedFixture f = make(lives, rewind, 400, page_size);
            const Seqs seqs = {f.open(), f.open()};
            for (std::int64_t n = 0; n < length; n += step) {
              const std::int64_t count = std::min(step, length - n);
              const std::vector<Append> appends = {{seqs[0], count}, {seqs[1], count}};
              auto open = f.cache.reserve(appends).value();
              ASSERT_OK(f.write(open, Tokens(std::size_t(2 * count), 1)));
              ASSERT_OK(f.cache.commit(open));
            }
            MemoryPlanRequest request;
            request.layers = f.specs;
            request.batch_size = 2;
            request.seq_length = length;
            request.step_tokens = step;
            request.rewind_tokens = rewind;
            request.page_size = page_size;
            request.num_pages = 400;
            const PlannedBytes plan = plan_memory(CacheKind::kPaged, request).value();
            ASSERT_EQ(plan.nbytes, f.cache.nbytes()) << length << " by " << step;
            ASSERT_EQ(plan.reserved_bytes, f.cache.reserved_bytes()) << length << " by " << step;
          }
        }
      }
    }
  }
}

// --- 2: going back. ---

TEST(Section8Back, EveryLengthWithinRewindTokensCanBeReturnedTo) {
  for (const Life& life : {window(3), window(3, 2), window(1), chunk(4)}) {
    for (std::int64_t length = 1; length < 15; ++length) {
      for (std::int64_t back = 0; back <= std::min<std::int64_t>(3, length); ++back) {
        PagedFixture f = make({kFull, life}, 3);
        const SequenceId a = f.open();
        fill(f, a, length);
        const Result<SequenceId> b = f.cache.fork(a, length - back);
        ASSERT_TRUE(b.ok()) << length << " - " << back << " " << b.status().to_string();
        EXPECT_OK(f.cache.rewind(a, back));
        for (const SequenceId seq : {a, *b}) {
          EXPECT_EQ(f.cache.seq_length(seq).value(), length - back);
          fill(f, seq, length + 2);
          EXPECT_EQ(f.held(0, seq), numbered(0, length + 2));
          const Tokens held = f.held(1, seq);
          EXPECT_EQ(held.empty() ? length + 1 : std::int64_t(held.back()), length + 1);
        }
      }
    }
  }
}

TEST(Section8Back, AForkAtItsLengthAlwaysWorks) {
  PagedFixture f = make({window(2), chunk(3), window(1)});
  const SequenceId a = f.open();
  for (std::int64_t n = 0; n < 12; ++n) {
    fill(f, a, n);
    const SequenceId b = f.cache.fork(a, n).value();
    for (std::int64_t layer = 0; layer < 3; ++layer) EXPECT_EQ(f.held(layer, a), f.held(layer, b));
    EXPECT_OK(f.append(b, {50, 51}));
    EXPECT_OK(f.cache.truncate(a, n));  // nothing to do
    EXPECT_OK(f.cache.release(b));
  }
}

TEST(Section8Back, AForkIsHeldToWhatItsParentHasDropped) {
  PagedFixture f = make({window(3)}, 2);
  const SequenceId a = f.open();
  fill(f, a, 7);
  const SequenceId b = f.cache.fork(a, 5).value();
  EXPECT_EQ(first(f, b), 3);
  EXPECT_REFUSED(f, (Seqs{a, b}), StatusCode::kOutOfRange, f.cache.truncate(b, 4));
}

TEST(Section8Back, AChunkIsReturnedToWhereItsStartIsHeld) {
  PagedFixture f = make({chunk(4)}, 1);
  const SequenceId a = f.open();
  fill(f, a, 8);  // 4 .. 7 are held: 7 is in reach
  EXPECT_EQ(first(f, a), 4);
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kOutOfRange, f.cache.truncate(a, 3));
  EXPECT_EQ(f.cache.truncate(a, 3).message(),
            "layer 0: found position 4 the first held, expected 0, for a return to length 3");
  EXPECT_OK(f.cache.truncate(a, 5));
  EXPECT_EQ(f.held(0, a), (Tokens{4}));
}

TEST(Section8Back, HeldRowsAreThereHoweverManyStepsBringThem) {
  for (const Life& life : {window(3), window(3, 2), chunk(4)}) {
    PagedFixture f = make({kFull, life});
    const SequenceId a = f.open();
    fill(f, a, 9);
    const std::int64_t before = f.cache.first_position(1, a).value();
    EXPECT_OK(f.cache.hold_rows(a, true));
    for (std::int64_t n = 9; n < 30; ++n) fill(f, a, n + 1);
    EXPECT_EQ(f.cache.first_position(1, a).value(), before);
    const SequenceId b = f.cache.fork(a, 9).value();  // which holds them too
    fill(f, b, 20);
    EXPECT_EQ(f.cache.first_position(1, b).value(), before);
    EXPECT_OK(f.cache.rewind(a, 21));
    fill(f, a, 30);
    EXPECT_OK(f.cache.hold_rows(a, false));
    PagedFixture fresh = make({kFull, life});
    const SequenceId c = fresh.open();
    fill(fresh, c, 30);
    EXPECT_EQ(f.held(1, a), fresh.held(1, c));
    EXPECT_EQ(f.pages(a, 1).size(), fresh.pages(c, 1).size());
    EXPECT_REFUSED(f, (Seqs{a, b}), StatusCode::kOutOfRange, f.cache.rewind(a, 21));
    EXPECT_EQ(f.cache.hold_rows(SequenceId{1 << 30}, true).code(), StatusCode::kNotFound);
  }
}

TEST(Section8Back, AStepLetsGoOfHeldRowsWhenItEnds) {
  for (const bool kept : {true, false}) {
    PagedFixture f = make({kFull, window(3)});
    const SequenceId a = f.open();
    EXPECT_OK(f.cache.hold_rows(a, true));
    fill(f, a, 12);
    auto step = f.reserve(a, 2).value();
    ASSERT_OK(f.write(step, {12, 13}));
    EXPECT_OK(f.cache.hold_rows(a, false));
    EXPECT_EQ(first(f, a, 1), 0);
    ASSERT_OK(f.cache.commit(step, Counts{kept ? 2 : 0}));
    EXPECT_EQ(first(f, a, 1), kept ? 12 : 10);
    EXPECT_OK(f.cache.check_invariants());
  }
}

TEST(Section8Back, RejectedDraftsNeedNoRewindTokens) {
  PagedFixture f = make({kFull, window(3), chunk(4)});
  const SequenceId a = f.open();
  fill(f, a, 7);
  auto step = f.reserve(a, 6).value();
  ASSERT_OK(f.write(step, numbered(7, 13)));
  ASSERT_OK(f.cache.commit(step, Counts{1}));
  EXPECT_EQ(f.held(1, a), (Tokens{6, 7}));
  EXPECT_EQ(f.held(2, a), Tokens{});
}

// --- 3: where rows are. ---

TEST(Section8Rows, LieInTheSlotOfTheirPosition) {
  PagedFixture f = make({window(3, 1)}, 0, 32, 4);
  const SequenceId a = f.open();
  fill(f, a, 10);
  auto step = f.reserve(a, 3).value();
  const Pages slots = f.cache.slot_mapping(step, 0).value();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(slots[std::size_t(i)] % 4, (10 + i) % 4);
}

TEST(Section8Rows, OfAPageThatWasGivenBackInTheMiddleGoOnInItsSlot) {
  PagedFixture f = make({chunk(2), window(1)}, 0, 8, 4);
  const SequenceId a = f.open();
  fill(f, a, 2);
  EXPECT_EQ(f.cache.stats().pages_held, 0);
  auto step = f.reserve(a, 1).value();
  EXPECT_EQ(f.cache.slot_mapping(step, 0).value()[0] % 4, 2);
  ASSERT_OK(f.write(step, {2}));
  ASSERT_OK(f.cache.commit(step));
  EXPECT_EQ(f.held(0, a), (Tokens{2}));
  EXPECT_EQ(f.held(1, a), Tokens{});
}

TEST(Section8Rows, TablesListSinksThenRowsFromTheFirstHeld) {
  PagedFixture f = make({window(4, 3)});
  const SequenceId a = f.open(), b = f.open();
  fill(f, a, 11);  // 0 1 2, 8 9 10
  fill(f, b, 4);
  const PageIndices indices = f.cache.page_indices(0, Seqs{a, b}).value();
  EXPECT_EQ(indices.kv_indptr, (Pages{0, 4, 6}));
  EXPECT_EQ(indices.kv_last_page_len, (Pages{1, 2}));
  const BlockTable table = f.cache.block_table(0, Seqs{a, b}).value();
  EXPECT_EQ(table.max_pages, 4);
  EXPECT_EQ((Pages{table.pages.begin(), table.pages.begin() + 4}), f.pages(a));
  EXPECT_EQ(f.held(0, a), (Tokens{0, 1, 2, 8, 9, 10}));
  PagedFixture sinks = make({window(1, 3)});
  const SequenceId c = sinks.open();
  fill(sinks, c, 10);
  EXPECT_EQ(sinks.cache.page_indices(0, Seqs{c}).value().kv_last_page_len, (Pages{1}));
  PagedFixture one = make({window(1, 1)}, 0, 8, 4);
  const SequenceId d = one.open();
  // What is gone lies behind the sink in its page, fills that page, and lies in the next one.
  for (const int count : {3, 1, 1}) {
    fill(one, d, count);
    EXPECT_EQ(one.held(0, d), (Tokens{0}));
    EXPECT_EQ(one.cache.page_indices(0, Seqs{d}).value().kv_last_page_len, (Pages{1}));
  }
}

TEST(Section8Rows, AViewIsOnePartWithAHole) {
  PagedFixture f = make({window(4, 3)});
  const SequenceId a = f.open(), b = f.open();
  fill(f, a, 11);
  fill(f, b, 4);
  const OwnedKvView view = f.cache.view(0, Seqs{a, b}).value();
  ASSERT_EQ(view.get().num_parts, 1);
  const KvPart& part = view.get().parts[0];
  EXPECT_EQ(part.lengths[0], 11);
  EXPECT_EQ(part.hole_begin[0], 2);
  EXPECT_EQ(part.hole_pages[0], 2);
  EXPECT_EQ(part.first_held[0], 8);
  EXPECT_EQ(part.hole_pages[1], 0);
  EXPECT_EQ(part.first_held[1], 1);
  EXPECT_EQ(part.block_table_stride, 4);
  EXPECT_EQ(part.held_window, 4);
  EXPECT_EQ(part.held_sink_tokens, 3);
  EXPECT_EQ(part.held_chunk, 0);
  EXPECT_EQ(part.first_position, nullptr);
}

// --- 6: one transaction, and what is refused. ---

TEST(Section8Whole, WhatOneGroupRefusesNoneDoes) {
  PagedFixture f = make({kFull, window(3)}, 0, 6);
  const SequenceId a = f.open();
  fill(f, a, 11);
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kNeverFits, f.reserve(a, 2).status());
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kOutOfRange, f.cache.truncate(a, 9));
  const SequenceId b = f.open();
  EXPECT_REFUSED(f, (Seqs{a, b}), StatusCode::kRetryLater, f.reserve(b, 2).status());
}

TEST(Section8Whole, ReorderMovesEveryGroup) {
  PagedFixture f = make({kFull, window(3, 1), chunk(4)});
  const SequenceId a = f.open(), b = f.open();
  fill(f, a, 9);
  EXPECT_OK(f.append(b, {40, 41}));
  EXPECT_OK(f.cache.reorder(Seqs{a, b}, indices({1, 0})));
  EXPECT_EQ(f.held(0, a), (Tokens{40, 41}));
  EXPECT_EQ(f.held(1, a), (Tokens{40, 41}));
  EXPECT_EQ(f.held(0, b), numbered(0, 9));
  EXPECT_EQ(f.held(1, b), (Tokens{0, 7, 8}));
  EXPECT_EQ(f.held(2, b), (Tokens{8}));
  EXPECT_EQ(first(f, b, 1), 7);
  EXPECT_OK(f.cache.check_invariants());
}

TEST(Section8Whole, LivesThatContradictThemselvesAreRefusedByName) {
  const auto message = [](const Life& life, std::int64_t rewind = 0) {
    CacheConfig config = PagedFixture::config();
    config.layers[1].life = life;
    config.rewind_tokens = rewind;
    return PagedCache::create(config).status().to_string();
  };
  EXPECT_EQ(message(window(-1)),
            "invalid argument: layers[1].life.window: found -1, expected 0 .. 2147483647");
  EXPECT_EQ(message(chunk(-2)),
            "invalid argument: layers[1].life.chunk: found -2, expected 0 .. 2147483647");
  EXPECT_EQ(message(window(4, -1)),
            "invalid argument: layers[1].life.sink_tokens: found -1, expected 0 .. 2147483647");
  EXPECT_EQ(message({4, 8}),
            "invalid argument: layers[1].life.chunk: found 8, expected 0 beside a window of 4");
  EXPECT_EQ(message({0, 8, 1}),
            "invalid argument: layers[1].life.sink_tokens: found 1, expected 0 without a window");
  EXPECT_EQ(message({0, 0, 1}),
            "invalid argument: layers[1].life.sink_tokens: found 1, expected 0 without a window");
  EXPECT_EQ(message({}, -1), "invalid argument: rewind_tokens: found -1, expected 0 .. 2147483647");
  EXPECT_EQ(message({0, 0, 0, true}),
            "unsupported: layers[1].life.state: found true, expected false");
}

}  // namespace
}  // namespace kvcache::testing
