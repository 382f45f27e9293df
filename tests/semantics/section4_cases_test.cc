// docs: semantics, section 4: its cases, for both layouts and every element type.
#include <gtest/gtest.h>

#include <vector>

#include "support/paged.h"

namespace kvcache::testing {
namespace {

using Seqs = std::vector<SequenceId>;

class Section4Cases : public PagedTest {};
INSTANTIATE_TEST_SUITE_P(Paged, Section4Cases, every_paged_case(), PagedTest::name);

TEST_P(Section4Cases, AppendSix) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(f.pages(a), (Pages{0, 1}));
  EXPECT_EQ(f.cache.page_indices(0, Seqs{a}).value().kv_last_page_len, (Pages{2}));
}

TEST_P(Section4Cases, AnySplitOfAppendsGathersEqual) {
  PagedFixture f = make();
  for (const Counts& split : {Counts{3, 2, 5}, Counts{10}, Counts{1, 1, 8}, Counts{4, 4, 2}}) {
    const SequenceId a = f.open();
    double token = 0;
    for (const std::int64_t count : split) {
      Tokens tokens;
      for (std::int64_t i = 0; i < count; ++i) tokens.push_back(token++);
      EXPECT_OK(f.append(a, tokens));
    }
    EXPECT_EQ(f.tokens(a), (Tokens{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
    EXPECT_EQ(f.pages(a).size(), 3u);
    EXPECT_OK(f.cache.release(a));
  }
}

TEST_P(Section4Cases, RewindToAPageBoundaryFreesTheTailPage) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  EXPECT_OK(f.cache.rewind(a, 2));
  EXPECT_EQ(f.pages(a), (Pages{0}));
  EXPECT_EQ(f.cache.free_pages(), 7);
}

TEST_P(Section4Cases, ForkAtFiveOfSixOneSideAfterTheOtherCopiesOnePage) {
  for (const bool parent_first : {true, false}) {
    PagedFixture f = make();
    const SequenceId a = f.open();
    EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
    const SequenceId b = f.cache.fork(a, 5).value();
    if (parent_first) {
      EXPECT_OK(f.append(a, {7}));
    }
    EXPECT_OK(f.append(b, {16}));
    if (!parent_first) {
      EXPECT_OK(f.append(a, {7}));
    }
    EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3, 4, 5, 6, 7}));
    EXPECT_EQ(f.tokens(b), (Tokens{1, 2, 3, 4, 5, 16}));
    EXPECT_EQ(f.cache.stats().pages_copied, 1);
    EXPECT_EQ(f.cache.stats().rows_copied, parent_first ? 2 : 1);
  }
}

TEST_P(Section4Cases, ForkAtFiveOfSixWithBothStepsOpenTogetherCopiesTwo) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  const SequenceId b = f.cache.fork(a, 5).value();
  PagedCache::Step first = f.reserve(a, 1).value();
  PagedCache::Step second = f.reserve(b, 1).value();
  EXPECT_OK(f.write(first, {7}));
  EXPECT_OK(f.cache.commit(first));
  EXPECT_OK(f.write(second, {16}));
  EXPECT_OK(f.cache.commit(second));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(f.tokens(b), (Tokens{1, 2, 3, 4, 5, 16}));
  EXPECT_EQ(f.cache.stats().pages_copied, 2);
  EXPECT_EQ(f.cache.free_pages(), 5);  // the page that was shared is free
}

TEST_P(Section4Cases, SeventeenTokensTakeFivePages) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, Tokens(17, 5)));
  EXPECT_EQ(f.pages(a).size(), 5u);
  EXPECT_EQ(f.cache.free_pages(), 3);
}

TEST_P(Section4Cases, AFailureInTheMiddleOfAStepLeavesTheStateExactlyAsBefore) {
  TestMemory memory;
  CacheConfig config = PagedFixture::config(layout(), dtype());
  config.memory = &memory;
  PagedFixture f(config);
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3}));
  PagedCache::Step step = f.reserve(a, 3).value();
  EXPECT_OK(f.write_layer(step, 0, {4, 5, 6}));
  memory.fail_after(0);
  const SequenceId b = f.open();
  EXPECT_REFUSED(f, (Seqs{a, b}), StatusCode::kOutOfMemory, f.reserve(b, 1).status());
  // The step goes on, or is given up.
  EXPECT_OK(f.cache.rollback(step));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3}));
}

}  // namespace
}  // namespace kvcache::testing
