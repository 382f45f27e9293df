// docs: semantics, section 4. Sequences over pages: one test per row of its table, for both layouts
// and every element type. Its cases: section4_cases_test.cc.
#include <gtest/gtest.h>

#include <optional>
#include <utility>
#include <vector>

#include "support/paged.h"

namespace kvcache::testing {
namespace {

using Seqs = std::vector<SequenceId>;

class Section4 : public PagedTest {};
INSTANTIATE_TEST_SUITE_P(Paged, Section4, every_paged_case(), PagedTest::name);

// --- Config. ---

TEST_P(Section4, LayersOfEqualLifeFormAGroupWithOneTable) {
  CacheConfig config = PagedFixture::config(layout(), dtype());
  LayerSpec other = paged_spec(dtype());
  other.buffers[1].dim = 2;
  config.layers = {paged_spec(dtype()), other, other.living({3}), paged_spec(dtype()).living({3})};
  PagedFixture f(config);
  EXPECT_EQ(f.cache.num_layers(), 4);
  EXPECT_EQ(f.cache.num_groups(), 2);
  EXPECT_EQ(f.cache.free_pages(0), 8);
  EXPECT_EQ(f.cache.free_pages(1), 8);
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(f.pages(a, 0), f.pages(a, 1));
  EXPECT_EQ(f.pages(a, 2), f.pages(a, 3));
  EXPECT_EQ(f.held(0, a), (Tokens{1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(f.held(1, a), f.held(0, a));
  EXPECT_EQ(f.held(2, a), (Tokens{6, 7}));
  EXPECT_EQ(f.held(3, a), f.held(2, a));
}

TEST_P(Section4, RequiredOperationsAreRefusedAtCreateIfAnyCannotBeGiven) {
  CacheConfig config = PagedFixture::config();
  config.required = {Operation::kFork, Operation::kReorder, Operation::kGather};
  EXPECT_TRUE(PagedCache::create(config).ok());
  config.required.push_back(Operation::kShift);
  EXPECT_EQ(PagedCache::create(config).status().code(), StatusCode::kUnsupported);
}

// --- open, release. ---

TEST_P(Section4, OpenGivesANewEmptySequence) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  EXPECT_NE(a, b);
  EXPECT_EQ(f.cache.seq_length(a).value(), 0);
  EXPECT_EQ(f.cache.next_position(a).value(), 0);
  EXPECT_EQ(f.tokens(a), Tokens{});
  EXPECT_EQ(f.cache.stats().sequences, 2);
}

TEST_P(Section4, ReleaseGivesPagesBackAndEndsTheId) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5}));
  EXPECT_EQ(f.cache.free_pages(), 6);
  EXPECT_OK(f.cache.release(a));
  EXPECT_EQ(f.cache.free_pages(), 8);
  EXPECT_REFUSED(f, Seqs{}, StatusCode::kNotFound, f.cache.release(a));
  EXPECT_EQ(f.cache.seq_length(a).status().code(), StatusCode::kNotFound);
  EXPECT_NE(f.open(), a);
}

TEST_P(Section4, TheLastSharerFreesAPage) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4}));
  const SequenceId b = f.cache.fork(a, 4).value();
  EXPECT_OK(f.cache.release(a));
  EXPECT_EQ(f.cache.free_pages(), 7);
  EXPECT_EQ(f.tokens(b), (Tokens{1, 2, 3, 4}));
  EXPECT_OK(f.cache.release(b));
  EXPECT_EQ(f.cache.free_pages(), 8);
}

TEST_P(Section4, IdsAndStepsOfAnotherCacheAreErrors) {
  PagedFixture f = make();
  PagedFixture g = make();
  const SequenceId a = f.open();
  EXPECT_REFUSED(g, Seqs{}, StatusCode::kNotFound, g.cache.release(a));
  EXPECT_REFUSED(g, Seqs{}, StatusCode::kNotFound, g.reserve(a, 1).status());
  EXPECT_REFUSED(g, Seqs{}, StatusCode::kNotFound, g.cache.fork(a, 0).status());
  PagedCache::Step step = f.reserve(a, 1).value();
  EXPECT_REFUSED(g, Seqs{}, StatusCode::kNotFound, g.write(step, {1}));
  EXPECT_REFUSED(g, Seqs{}, StatusCode::kNotFound, g.cache.commit(step));
  EXPECT_REFUSED(g, Seqs{}, StatusCode::kNotFound, g.cache.rollback(step));
  EXPECT_OK(f.cache.rollback(step));
}

// --- reserve. ---

TEST_P(Section4, ReserveTakesRoomForEverySequenceOrNothing) {
  PagedFixture f = make(4);
  const Seqs seqs = {f.open(), f.open(), f.open()};
  EXPECT_OK(f.append(seqs[2], {1}));
  // 2 + 1 pages fit beside the one of the third, 2 + 2 do not.
  const Append much[] = {{seqs[0], 5}, {seqs[1], 8}};
  EXPECT_REFUSED(f, seqs, StatusCode::kRetryLater, f.cache.reserve(much).status());
  const Append fits[] = {{seqs[0], 5}, {seqs[1], 4}};
  PagedCache::Step step = f.cache.reserve(fits).value();
  EXPECT_EQ(step.num_new_tokens(), 9);
  EXPECT_EQ(f.cache.free_pages(), 0);
  EXPECT_EQ(f.cache.stats().pages_reserved, 3);
}

TEST_P(Section4, ReserveNeverFitsWhatExceedsThePoolWithAllOthersGone) {
  PagedFixture f = make(4);
  const Seqs seqs = {f.open(), f.open()};
  EXPECT_REFUSED(f, seqs, StatusCode::kNeverFits, f.reserve(seqs[0], 17).status());
  EXPECT_REFUSED(f, seqs, StatusCode::kNeverFits,
                 f.reserve(seqs[0], std::int64_t{1} << 62).status());
  EXPECT_OK(f.append(seqs[0], {1, 2, 3, 4, 5}));
  // 2 held and 3 asked for, of 4.
  EXPECT_REFUSED(f, seqs, StatusCode::kNeverFits, f.reserve(seqs[0], 12).status());
  // 2 held by this step's sequences and 2 asked for, while another holds one.
  EXPECT_OK(f.append(seqs[1], {9}));
  EXPECT_REFUSED(f, seqs, StatusCode::kRetryLater, f.reserve(seqs[0], 11).status());
  // Together they can never have it.
  const Append both[] = {{seqs[0], 11}, {seqs[1], 1}};
  EXPECT_REFUSED(f, seqs, StatusCode::kNeverFits, f.cache.reserve(both).status());
}

TEST_P(Section4, ACopyThatOnlyOthersMakeNecessaryIsNoReasonToNeverFit) {
  PagedFixture f = make(2);
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2}));
  const SequenceId b = f.cache.fork(a, 2).value();
  EXPECT_OK(f.append(b, {3}));  // b's tail is copied: both pages are in use
  const SequenceId c = f.cache.fork(a, 1).value();
  // a needs a copy of its tail because of c, and there is no room for it now.
  EXPECT_REFUSED(f, (Seqs{a, b, c}), StatusCode::kRetryLater, f.reserve(a, 1).status());
  EXPECT_OK(f.cache.release(c));
  EXPECT_OK(f.append(a, {4}));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 4}));
}

TEST_P(Section4, ReserveChecksItsAppends) {
  PagedFixture f = make();
  const Seqs seqs = {f.open()};
  const Append twice[] = {{seqs[0], 1}, {seqs[0], 1}};
  EXPECT_REFUSED(f, seqs, StatusCode::kInvalidArgument, f.cache.reserve(twice).status());
  EXPECT_REFUSED(f, seqs, StatusCode::kInvalidArgument, f.reserve(seqs[0], -1).status());
  const std::int32_t ids[] = {1, 2};
  Append append{seqs[0], 3, ids};
  EXPECT_REFUSED(f, seqs, StatusCode::kInvalidArgument, f.cache.reserve({&append, 1}).status());
  append = {seqs[0], 2, ids, ids};
  EXPECT_REFUSED(f, seqs, StatusCode::kUnsupported, f.cache.reserve({&append, 1}).status());
}

TEST_P(Section4, ZeroNewTokensAndZeroSequencesAreSteps) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2}));
  PagedCache::Step none = f.cache.reserve({}).value();
  EXPECT_EQ(f.cache.view(none, 0)->get().num_seqs, 0);
  EXPECT_OK(f.cache.commit(none));
  PagedCache::Step zero = f.reserve(a, 0).value();
  EXPECT_EQ(zero.num_new_tokens(), 0);
  EXPECT_EQ(f.tokens(f.cache.view(zero, 1).value(), 0, 1), (Tokens{1, 2}));
  EXPECT_OK(f.cache.commit(zero));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2}));
}

TEST_P(Section4, ASequenceInAnOpenStepRefusesEveryOtherChange) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3}));
  PagedCache::Step step = f.reserve(a, 1).value();
  const Seqs seqs = {a, b};
  const auto code = StatusCode::kInvalidArgument;
  EXPECT_REFUSED(f, seqs, code, f.reserve(a, 1).status());
  EXPECT_REFUSED(f, seqs, code, f.cache.truncate(a, 1));
  EXPECT_REFUSED(f, seqs, code, f.cache.rewind(a, 1));
  EXPECT_REFUSED(f, seqs, code, f.cache.fork(a, 1).status());
  EXPECT_REFUSED(f, seqs, code, f.cache.release(a));
  EXPECT_REFUSED(f, seqs, code, f.cache.reorder(seqs, indices({1, 0})));
  EXPECT_OK(f.append(b, {7}));
  EXPECT_OK(f.cache.rollback(step));
  EXPECT_OK(f.cache.truncate(a, 1));
}

TEST_P(Section4, StepsOverDifferentSequencesAreOpenTogether) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  PagedCache::Step first = f.reserve(a, 2).value();
  PagedCache::Step second = f.reserve(b, 1).value();
  EXPECT_EQ(f.cache.stats().open_steps, 2);
  EXPECT_OK(f.write(second, {9}));
  EXPECT_OK(f.write(first, {1, 2}));
  EXPECT_OK(f.cache.commit(first));
  EXPECT_OK(f.cache.commit(second));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2}));
  EXPECT_EQ(f.tokens(b), (Tokens{9}));
}

// --- write, view. ---

TEST_P(Section4, WriteTakesPackedRowsInTheOrderOfTheAppendsAndTheLastWriteCounts) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  const Append appends[] = {{b, 2}, {a, 3}};
  PagedCache::Step step = f.cache.reserve(appends).value();
  EXPECT_OK(f.write(step, {1, 1, 1, 1, 1}));
  EXPECT_OK(f.write(step, {8, 9, 1, 2, 3}));
  EXPECT_OK(f.cache.commit(step));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3}));
  EXPECT_EQ(f.tokens(b), (Tokens{8, 9}));
}

TEST_P(Section4, WriteConvertsToTheLayersFormatAndChecksShapes) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  PagedCache::Step step = f.reserve(a, 2).value();
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_OK(f.write_layer(step, 0, {3, 4}, dtype));
    EXPECT_EQ(f.tokens(f.cache.view(step, 0).value(), 0), (Tokens{3, 4}));
  }
  const auto code = StatusCode::kInvalidArgument;
  EXPECT_REFUSED(f, Seqs{a}, code, f.write_layer(step, 0, {3}));
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kOutOfRange, f.write_layer(step, 2, {3, 4}));
  const HostTensor wrong = iota({2, 2, 1});
  const HostTensor right = iota({2, 2, 2});
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.write(step, 0, wrong, wrong));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.write(step, 0, right, right));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.write(step, 0, {}, wrong));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.write(step, 0, iota({2, 2, 2}, DType::kI32), wrong));
}

TEST_P(Section4, AStepsViewHasCommittedRowsAndItsOwnOnceTheyAreWritten) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3}));
  PagedCache::Step step = f.reserve(a, 3).value();
  EXPECT_EQ(f.cache.view(step, 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_OK(f.write_layer(step, 0, {4, 5, 6}));
  EXPECT_EQ(f.tokens(f.cache.view(step, 0).value(), 0), (Tokens{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(f.cache.view(step, 1).status().code(), StatusCode::kInvalidArgument);
  // Nothing is visible to others until commit.
  EXPECT_EQ(f.tokens(f.cache.view(0, Seqs{a}).value(), 0), (Tokens{1, 2, 3}));
  EXPECT_EQ(f.cache.seq_length(a).value(), 3);
}

TEST_P(Section4, AViewOfSequencesHasTheirCommittedRowsInTheOrderAsked) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  const SequenceId empty = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5}));
  EXPECT_OK(f.append(b, {9}));
  const OwnedKvView view = f.cache.view(1, Seqs{b, empty, a}).value();
  EXPECT_EQ(view.get().num_seqs, 3);
  EXPECT_EQ(view.get().num_kv_heads, 2);
  EXPECT_EQ(view.get().k_head_dim, 2);
  EXPECT_EQ(view.get().v_head_dim, 1);
  EXPECT_EQ(f.tokens(view, 0, 1), (Tokens{9}));
  EXPECT_EQ(f.tokens(view, 1, 1), (Tokens{}));
  EXPECT_EQ(f.tokens(view, 2, 1), (Tokens{1, 2, 3, 4, 5}));
  EXPECT_EQ(view.get().parts[0].block_table[1], -1);
  // Others may change meanwhile: pages never move.
  EXPECT_OK(f.cache.release(empty));
  const SequenceId c = f.open();
  EXPECT_OK(f.append(c, {7, 7, 7, 7, 7}));
  EXPECT_EQ(f.tokens(view, 2, 1), (Tokens{1, 2, 3, 4, 5}));
}

// --- commit, rollback. ---

TEST_P(Section4, ASequenceHasOneLengthForAllLayersMovedByCommit) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  PagedCache::Step step = f.reserve(a, 3).value();
  EXPECT_OK(f.write(step, {1, 2, 3}));
  EXPECT_EQ(f.cache.seq_length(a).value(), 0);
  EXPECT_OK(f.cache.commit(step));
  EXPECT_EQ(f.cache.seq_length(a).value(), 3);
  EXPECT_EQ(f.cache.next_position(a).value(), 3);
  for (std::int64_t layer = 0; layer < f.num_layers; ++layer) {
    EXPECT_EQ(f.cache.view(layer, {&a, 1}).value().get().parts[0].lengths[0], 3);
  }
}

// Rule 13: pages never move, so a view is good until one of its own sequences changes.
TEST_P(Section4, AViewStaysValidWhileOtherSequencesAreReservedWrittenAndCommitted) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5}));
  const OwnedKvView view = f.cache.view(1, {&a, 1}).value();
  for (int round = 0; round < 3; ++round) {
    EXPECT_OK(f.append(b, {6, 7, 8, 9}));
    EXPECT_EQ(f.tokens(view, 0, 1), (Tokens{1, 2, 3, 4, 5}));
  }
  EXPECT_OK(f.cache.release(b));
  EXPECT_EQ(f.tokens(view, 0, 1), (Tokens{1, 2, 3, 4, 5}));
}

// Rule 9.
TEST_P(Section4, GrowthCopiesNothing) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  for (int i = 1; i <= 30; ++i) EXPECT_OK(f.append(a, {static_cast<double>(i)}));
  EXPECT_EQ(f.cache.stats().rows_copied, 0);
}

TEST_P(Section4, CommitKeepsTheAcceptedTokensAndReturnsTheRestOfTheRoom) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3}));
  const Append appends[] = {{a, 6}, {b, 5}};
  PagedCache::Step step = f.cache.reserve(appends).value();
  EXPECT_EQ(f.cache.free_pages(), 3);
  EXPECT_OK(f.write(step, {4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15}));
  EXPECT_OK(f.cache.commit(step, Counts{2, 0}));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3, 4, 5}));
  EXPECT_EQ(f.tokens(b), (Tokens{}));
  EXPECT_EQ(f.cache.free_pages(), 6);
  EXPECT_OK(f.append(a, {6}));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3, 4, 5, 6}));
}

TEST_P(Section4, CommitRefusesUnwrittenLayersAndWrongCountsAndStaysOpen) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  PagedCache::Step step = f.reserve(a, 2).value();
  const auto code = StatusCode::kInvalidArgument;
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.commit(step));
  EXPECT_OK(f.write_layer(step, 0, {1, 2}));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.commit(step));
  EXPECT_OK(f.write_layer(step, 1, {1, 2}));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.commit(step, Counts{3}));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.commit(step, Counts{-1}));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.commit(step, Counts{1, 1}));
  EXPECT_OK(f.cache.commit(step, Counts{1}));
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kNotFound, f.cache.commit(step));
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kNotFound, f.cache.rollback(step));
  EXPECT_EQ(f.cache.view(step, 0).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(step.num_new_tokens(), 0);
}

TEST_P(Section4, RollbackAndADroppedStepLeaveEverythingAsBefore) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3}));
  const SequenceId b = f.cache.fork(a, 3).value();
  {
    // The first time touches pages, which stay committed: reserved_bytes() says so.
    const std::int64_t reserved = f.cache.reserved_bytes();
    PagedCache::Step first = f.reserve(a, 8).value();
    PagedCache::Step second = f.reserve(b, 1).value();
    EXPECT_OK(f.cache.rollback(first));
    EXPECT_GT(f.cache.reserved_bytes(), reserved);
  }
  const PagedState before = state_of(f, {a, b});
  PagedCache::Step step = f.reserve(a, 8).value();
  const Pages slots = f.cache.slot_mapping(step, 0).value();
  EXPECT_OK(f.cache.rollback(step));
  {
    PagedCache::Step dropped = f.reserve(a, 8).value();
    EXPECT_EQ(f.cache.slot_mapping(dropped, 0).value(), slots);
  }
  PagedCache::Step assigned = f.reserve(a, 8).value();
  assigned = f.reserve(b, 1).value();
  EXPECT_EQ(f.cache.stats().open_steps, 1);
  EXPECT_OK(f.cache.rollback(assigned));
  EXPECT_TRUE(state_of(f, {a, b}) == before);
  // Written rows are forgotten too; only the copying that was done stays counted.
  PagedCache::Step written = f.reserve(a, 2).value();
  EXPECT_OK(f.write(written, {8, 9}));
  EXPECT_OK(f.cache.rollback(written));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3}));
  EXPECT_EQ(f.tokens(b), (Tokens{1, 2, 3}));
  EXPECT_EQ(f.pages(a), f.pages(b));
}

TEST_P(Section4, AStepMayOutliveItsCache) {
  std::optional<PagedFixture> f = make();
  const SequenceId a = f->open();
  PagedCache::Step step = f->reserve(a, 2).value();
  EXPECT_OK(f->write(step, {1, 2}));
  f.reset();
  PagedFixture other = make();
  EXPECT_EQ(other.cache.commit(step).code(), StatusCode::kNotFound);
}

// --- fork, truncate, rewind, reorder. ---

TEST_P(Section4, ForkSharesPagesAndCopiesNone) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  const SequenceId b = f.cache.fork(a, 5).value();
  EXPECT_EQ(f.tokens(b), (Tokens{1, 2, 3, 4, 5}));
  EXPECT_EQ(f.pages(b), f.pages(a));
  EXPECT_EQ(f.cache.free_pages(), 6);
  EXPECT_EQ(f.cache.stats().pages_copied, 0);
  EXPECT_EQ(f.cache.seq_length(f.cache.fork(a, 0).value()).value(), 0);
  EXPECT_REFUSED(f, (Seqs{a, b}), StatusCode::kOutOfRange, f.cache.fork(a, 7).status());
  EXPECT_REFUSED(f, (Seqs{a, b}), StatusCode::kOutOfRange, f.cache.fork(a, -1).status());
}

TEST_P(Section4, TruncateAndRewindGiveTailPagesBack) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_OK(f.cache.rewind(a, 0));
  EXPECT_OK(f.cache.truncate(a, 20));
  EXPECT_EQ(f.cache.seq_length(a).value(), 9);
  EXPECT_OK(f.cache.rewind(a, 3));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(f.cache.free_pages(), 6);
  EXPECT_OK(f.cache.truncate(a, 4));
  EXPECT_EQ(f.cache.free_pages(), 7);
  EXPECT_OK(f.append(a, {15}));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3, 4, 15}));
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kOutOfRange, f.cache.rewind(a, 6));
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kInvalidArgument, f.cache.rewind(a, -1));
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kInvalidArgument, f.cache.truncate(a, -1));
  EXPECT_OK(f.cache.rewind(a, 5));
  EXPECT_EQ(f.cache.free_pages(), 8);
}

TEST_P(Section4, ATruncatedSharerDoesNotOverwriteTheOther) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6, 7, 8}));
  const SequenceId b = f.cache.fork(a, 8).value();
  EXPECT_OK(f.cache.truncate(b, 6));
  EXPECT_OK(f.append(b, {11, 12, 13}));
  EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(f.tokens(b), (Tokens{1, 2, 3, 4, 5, 6, 11, 12, 13}));
  EXPECT_EQ(f.cache.stats().rows_copied, 2);
}

TEST_P(Section4, ReorderMovesReferencesAndKeepsIds) {
  PagedFixture f = make();
  const Seqs seqs = {f.open(), f.open(), f.open()};
  EXPECT_OK(f.append(seqs[0], {1, 2, 3, 4, 5}));
  EXPECT_OK(f.append(seqs[1], {11}));
  EXPECT_OK(f.append(seqs[2], {21, 22}));
  EXPECT_OK(f.cache.reorder(seqs, indices({2, 0, 0}, DType::kI32)));
  EXPECT_EQ(f.tokens(seqs[0]), (Tokens{21, 22}));
  EXPECT_EQ(f.tokens(seqs[1]), (Tokens{1, 2, 3, 4, 5}));
  EXPECT_EQ(f.tokens(seqs[2]), (Tokens{1, 2, 3, 4, 5}));
  EXPECT_EQ(f.cache.free_pages(), 5);  // the page of {11} is free again
  EXPECT_EQ(f.cache.stats().rows_copied, 0);
  EXPECT_OK(f.append(seqs[1], {6}));
  EXPECT_OK(f.append(seqs[2], {7}));
  EXPECT_EQ(f.cache.stats().rows_copied, 1);
  EXPECT_EQ(f.tokens(seqs[1]), (Tokens{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(f.tokens(seqs[2]), (Tokens{1, 2, 3, 4, 5, 7}));
  EXPECT_OK(f.cache.reorder({}, indices({})));
  EXPECT_REFUSED(f, seqs, StatusCode::kOutOfRange, f.cache.reorder(seqs, indices({0, 1, 3})));
  EXPECT_REFUSED(f, seqs, StatusCode::kOutOfRange, f.cache.reorder(seqs, indices({0, -1, 2})));
  const auto code = StatusCode::kInvalidArgument;
  EXPECT_REFUSED(f, seqs, code, f.cache.reorder(seqs, indices({0, 1})));
  EXPECT_REFUSED(f, seqs, code, f.cache.reorder(seqs, index(0)));
  EXPECT_REFUSED(f, seqs, code, f.cache.reorder(seqs, tensor({3}, {0, 1, 2})));
  EXPECT_REFUSED(f, seqs, code, f.cache.reorder(Seqs{seqs[0], seqs[0]}, indices({1, 0})));
}

TEST_P(Section4, RemoveAndShiftAreUnsupportedAndSaidToBe) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2}));
  EXPECT_FALSE(f.cache.supports(Operation::kRemove));
  EXPECT_FALSE(f.cache.supports(Operation::kShift));
  EXPECT_FALSE(f.cache.supports(Operation::kParents));
  for (const Operation operation : {Operation::kFork, Operation::kTruncate, Operation::kRewind,
                                    Operation::kReorder, Operation::kGather}) {
    EXPECT_TRUE(f.cache.supports(operation));
  }
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kUnsupported, f.cache.remove(a, 0, 1));
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kUnsupported, f.cache.shift(a, 0, 1, 1));
}

// --- Tables, gather, numbers. ---

TEST_P(Section4, TheThreeFormsOfTheTableAgree) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  const SequenceId empty = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  EXPECT_OK(f.append(b, {7, 8, 9, 10}));
  const Seqs seqs = {b, a, empty};
  const BlockTable table = f.cache.block_table(0, seqs).value();
  EXPECT_EQ(table.num_seqs, 3);
  EXPECT_EQ(table.max_pages, 2);
  EXPECT_EQ(table.pages, (Pages{2, -1, 0, 1, -1, -1}));
  const PageIndices indices = f.cache.page_indices(1, seqs).value();
  EXPECT_EQ(indices.kv_indptr, (Pages{0, 1, 3, 3}));
  EXPECT_EQ(indices.kv_indices, (Pages{2, 0, 1}));
  EXPECT_EQ(indices.kv_last_page_len, (Pages{4, 2, 0}));
  const Append appends[] = {{b, 1}, {a, 3}};
  PagedCache::Step step = f.cache.reserve(appends).value();
  EXPECT_EQ(f.cache.slot_mapping(step, 0).value(), (Pages{12, 6, 7, 16}));
  EXPECT_EQ(f.cache.slot_mapping(step, 2).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(f.cache.block_table(-1, seqs).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(f.cache.page_indices(2, seqs).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(f.cache.page_indices(0, Seqs{}).value().kv_indptr, (Pages{0}));
}

TEST_P(Section4, GatherIsADenseCopyInAnyTypeAndChecksItsTensors) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_EQ(f.tokens(a, dtype), (Tokens{1, 2, 3, 4, 5, 6}));
  }
  HostTensor k(DType::kF32, {2, 5, 2});
  HostTensor v(DType::kF32, {2, 5, 1});
  EXPECT_REFUSED(f, Seqs{a}, StatusCode::kInvalidArgument,
                 f.cache.gather(0, a, k.mutable_view(), v.mutable_view()));
  EXPECT_EQ(f.cache.gather(2, a, k.mutable_view(), v.mutable_view()).code(),
            StatusCode::kOutOfRange);
}

TEST_P(Section4, FreedPagesAreLastInFirstOutAndFreshOnesAscend) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5}));
  EXPECT_OK(f.append(b, {6}));
  EXPECT_EQ(f.pages(a), (Pages{0, 1}));
  EXPECT_EQ(f.pages(b), (Pages{2}));
  EXPECT_OK(f.cache.release(b));
  EXPECT_OK(f.cache.truncate(a, 4));
  const SequenceId c = f.open();
  EXPECT_OK(f.append(c, Tokens(12, 3)));
  EXPECT_EQ(f.pages(c), (Pages{1, 2, 3}));
}

TEST_P(Section4, StatsCountPagesRowsAndHighWater) {
  PagedFixture f = make();
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  const SequenceId b = f.cache.fork(a, 6).value();
  PagedCache::Step step = f.reserve(b, 3).value();
  PagedStats stats = f.cache.stats();
  EXPECT_EQ(stats.pages_total, 8);
  EXPECT_EQ(stats.pages_held, 2);
  EXPECT_EQ(stats.pages_reserved, 2);  // the copy of the tail, and one more
  EXPECT_EQ(stats.sequences, 2);
  EXPECT_EQ(stats.open_steps, 1);
  EXPECT_OK(f.write(step, {7, 8, 9}));
  EXPECT_OK(f.cache.commit(step));
  EXPECT_OK(f.cache.release(b));
  stats = f.cache.stats();
  EXPECT_EQ(stats.pages_held, 2);
  EXPECT_EQ(stats.pages_high_water, 4);
  EXPECT_EQ(stats.pages_copied, 1);
  EXPECT_EQ(stats.rows_copied, 2);
}

}  // namespace
}  // namespace kvcache::testing
