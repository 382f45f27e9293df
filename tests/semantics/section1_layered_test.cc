// Semantics, section 1. Layered caches: one test per row of its tables and per case, for both
// kinds of cache, both layouts and every element type.
#include <gtest/gtest.h>

#include "support/layered.h"

namespace kvcache::testing {
namespace {

class Section1 : public LayeredTest {};
INSTANTIATE_TEST_SUITE_P(Layered, Section1, ::testing::ValuesIn(all_layered_cases()), name_of_case);

// --- The calls. ---

TEST_P(Section1, UpdateAppendsAndReturnsTheFilledPrefixOnly) {
  const auto cache = make();
  const HostTensor first = tokens({1, 2});
  const HostTensor second = tokens({3});
  const KeyValueView two = cache->update(first, first).value();
  EXPECT_EQ(shape_of(two.key), shaped(1, 1, 2, 1));
  const KeyValueView three = cache->update(second, second).value();
  EXPECT_EQ(shape_of(three.key), shaped(1, 1, 3, 1));
  EXPECT_EQ(values(three.key), (Floats{1, 2, 3}));
  EXPECT_EQ(values(three.value), (Floats{1, 2, 3}));
  EXPECT_EQ(three.key.dtype, GetParam().dtype);
}

TEST_P(Section1, UpdateReturnsViewsOfTheStorageNotCopies) {
  const auto cache = make();
  const HostTensor one = tokens({1});
  const KeyValueView updated = cache->update(one, one).value();
  const KeyValueView got = cache->get(0).value();
  EXPECT_EQ(updated.key.data, got.key.data);
  EXPECT_EQ(updated.value.data, got.value.data);
}

TEST_P(Section1, GetOfALayerNeverPopulatedIsNone) {
  const auto cache = make();
  EXPECT_FALSE(cache->get(0).value().key.defined());
  EXPECT_FALSE(cache->get(3).value().value.defined());
  ASSERT_OK(put(*cache, tokens({1}), 2));
  EXPECT_FALSE(cache->get(1).value().key.defined());
}

TEST_P(Section1, SeqLengthIsZeroForEmptyUnknownAndResetLayers) {
  const auto cache = make();
  EXPECT_EQ(cache->seq_length().value(), 0);
  EXPECT_EQ(cache->seq_length(3).value(), 0);
  ASSERT_OK(put(*cache, tokens({1, 2}), 3));
  EXPECT_EQ(cache->seq_length(3).value(), 2);
  EXPECT_EQ(cache->next_position(3).value(), 2);
  cache->reset();
  EXPECT_EQ(cache->seq_length(3).value(), 0);
  EXPECT_EQ(cache->next_position(3).value(), 0);
}

TEST_P(Section1, ALayerOutsideAStaticCacheIsAnErrorAndUnknownInADynamicOne) {
  const auto cache = make(16, 4);
  if (is_static()) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "layer_idx: found 4, expected 0 .. 3",
                           cache->seq_length(4).status());
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "layer_idx", cache->get(4).status());
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "layer_idx",
                           put(*cache, tokens({1}), 4));
  } else {
    EXPECT_EQ(cache->seq_length(4).value(), 0);
    EXPECT_FALSE(cache->get(4).value().key.defined());
    EXPECT_OK(put(*cache, tokens({1}), 4));
    EXPECT_EQ(cache->num_layers(), 5);
  }
}

TEST_P(Section1, MaxLengthIsNoneForDynamicAndTheCapacityForStatic) {
  const auto cache = make(7);
  EXPECT_EQ(cache->max_length(),
            is_static() ? std::optional<std::int64_t>(7) : std::optional<std::int64_t>());
}

TEST_P(Section1, ReorderGathersTheBatchOfEveryPopulatedLayer) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2}, {3, 4}}), 0));
  ASSERT_OK(put(*cache, batch({{5}, {6}}), 2));
  ASSERT_OK(cache->reorder(indices({1, 0})));
  EXPECT_EQ(keys(*cache, 0), (Floats{3, 4, 1, 2}));
  EXPECT_EQ(keys(*cache, 2), (Floats{6, 5}));
  EXPECT_FALSE(cache->get(1).value().key.defined());
}

TEST_P(Section1, BatchSelectMayShrinkTheBatch) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2}, {3, 4}, {5, 6}})));
  ASSERT_OK(cache->batch_select(indices({2}, DType::kI32)));
  EXPECT_EQ(shape_of(cache->get(0).value().key), shaped(1, 1, 2, 1));
  EXPECT_EQ(keys(*cache), (Floats{5, 6}));
}

TEST_P(Section1, AnIndexOutsideTheBatchIsAnError) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2}, {3, 4}})));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "indices: found 2, expected 0 .. 1",
                         cache->batch_select(indices({0, 2})));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "indices: found -1",
                         cache->reorder(indices({0, -1})));
}

TEST_P(Section1, AnIndexOutsideTheSmallestBatchOfTheLayersIsAnError) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1}, {2}, {3}}), 0));
  ASSERT_OK(put(*cache, batch({{4}, {5}}), 1));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "indices: found 2",
                         cache->reorder(indices({2, 0})));
}

TEST_P(Section1, BatchRepeatInterleaveRepeatsEachRow) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2}, {3, 4}})));
  ASSERT_OK(cache->batch_repeat_interleave(2));
  EXPECT_EQ(shape_of(cache->get(0).value().key), shaped(4, 1, 2, 1));
  EXPECT_EQ(keys(*cache), (Floats{1, 2, 1, 2, 3, 4, 3, 4}));
}

TEST_P(Section1, BatchRepeatInterleaveByOneChangesNothingAndByLessIsAnError) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2}, {3, 4}})));
  const CacheState before = state_of(*cache);
  EXPECT_OK(cache->batch_repeat_interleave(1));
  EXPECT_TRUE(state_of(*cache) == before);
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "n: found 0",
                         cache->batch_repeat_interleave(0));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "n: found -1",
                         cache->batch_repeat_interleave(-1));
}

TEST_P(Section1, CropKeepsTheMostRecentAndLeavesShorterLayersAlone) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3, 4, 5}), 0));
  ASSERT_OK(put(*cache, tokens({6, 7}), 1));
  ASSERT_OK(cache->crop(3));
  EXPECT_EQ(keys(*cache, 0), (Floats{3, 4, 5}));
  EXPECT_EQ(keys(*cache, 1), (Floats{6, 7}));
  EXPECT_EQ(cache->next_position(1).value(), 2);
}

TEST_P(Section1, CropToZeroEmptiesAndNegativeIsAnError) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3})));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "n: found -1", cache->crop(-1));
  ASSERT_OK(cache->crop(0));
  EXPECT_EQ(shape_of(cache->get(0).value().key), shaped(1, 1, 0, 1));
  EXPECT_EQ(cache->next_position().value(), 3);
}

TEST_P(Section1, TruncateKeepsTheFirst) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3, 4, 5})));
  ASSERT_OK(cache->truncate(2));
  EXPECT_EQ(keys(*cache), (Floats{1, 2}));
  EXPECT_EQ(cache->next_position().value(), 2);
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "n: found -1", cache->truncate(-1));
}

TEST_P(Section1, RewindDropsTheNewest) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3})));
  ASSERT_OK(cache->rewind(0));
  ASSERT_OK(cache->rewind(2));
  EXPECT_EQ(keys(*cache), (Floats{1}));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "n: found 2", cache->rewind(2));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "n: found -1", cache->rewind(-1));
}

TEST_P(Section1, ResetLetsTheNextUpdateHaveAnyShape) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3})));
  cache->reset();
  EXPECT_FALSE(cache->get(0).value().key.defined());
  const HostTensor wide = iota(shaped(2, 3, 2, 4));
  ASSERT_OK(put(*cache, wide));
  EXPECT_EQ(keys(*cache), values(wide));
}

TEST_P(Section1, ResetKeepsTheMemoryAndShrinkGivesItBack) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3})));
  const std::int64_t held = cache->reserved_bytes();
  ASSERT_GT(held, 0);
  cache->reset();
  EXPECT_EQ(cache->reserved_bytes(), held);
  ASSERT_OK(put(*cache, tokens({4})));
  EXPECT_EQ(cache->reserved_bytes(), held);
  EXPECT_EQ(keys(*cache), (Floats{4}));
  cache->reset();
  cache->shrink();
  EXPECT_EQ(cache->reserved_bytes(), 0);
  ASSERT_OK(put(*cache, tokens({5})));
  EXPECT_EQ(keys(*cache), (Floats{5}));
}

// --- cache_position. ---

TEST_P(Section1, AScalarPositionWritesExactlyOneToken) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3})));
  ASSERT_OK(put(*cache, tokens({9}), 0, index(1)));
  EXPECT_EQ(keys(*cache), (Floats{1, 9, 3}));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "cache_position",
                         put(*cache, tokens({7, 8}), 0, index(1)));
}

TEST_P(Section1, PositionsMayBeInt32) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2}), 0, indices({1, 0}, DType::kI32)));
  EXPECT_EQ(keys(*cache), (Floats{2, 1}));
}

TEST_P(Section1, AnythingElseThanTheThreeModesIsAnError) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2}, {3, 4}})));
  const HostTensor next = batch({{5, 6}, {7, 8}});
  const auto refused = [&](const TensorView& position) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "cache_position",
                           put(*cache, next, 0, position));
  };
  refused(indices({0, -1}));                              // negative
  refused(tensor({2}, {0, 1}, DType::kF32));              // floating point
  refused(indices({0, 1, 2}));                            // another number of tokens
  refused(index_table({{0, 1}}));                         // another batch
  refused(index_table({{0}, {1}}));                       // another number of tokens
  refused(tensor({1, 2, 2}, {0, 1, 2, 3}, DType::kI64));  // another rank
}

TEST_P(Section1, ALaterAppendGoesAfterTheLength) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({7}), 0, index(5)));
  ASSERT_OK(put(*cache, tokens({8})));
  EXPECT_EQ(keys(*cache), (Floats{0, 0, 0, 0, 0, 7, 8}));
}

TEST_P(Section1, GapsAreZerosAlsoWhereOlderRowsLay) {
  for (const bool by_crop : {false, true}) {
    const auto cache = make();
    ASSERT_OK(put(*cache, tokens({1, 2, 3, 4, 5, 6, 7, 8})));
    ASSERT_OK(by_crop ? cache->crop(2) : cache->truncate(2));
    ASSERT_OK(put(*cache, tokens({9}), 0, index(6)));
    const Floats expected = by_crop ? Floats{7, 8, 0, 0, 0, 0, 9} : Floats{1, 2, 0, 0, 0, 0, 9};
    EXPECT_EQ(keys(*cache), expected);
  }
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3, 4})));
  cache->reset();
  ASSERT_OK(put(*cache, tokens({9}), 0, index(2)));
  EXPECT_EQ(keys(*cache), (Floats{0, 0, 9}));
}

TEST_P(Section1, AStaticCacheNamesCapacityLengthAndRequest) {
  if (!is_static()) {
    const auto cache = make(4);
    EXPECT_OK(put(*cache, tokens({1, 2, 3, 4, 5, 6, 7, 8, 9})));
    return;
  }
  const auto cache = make(4);
  ASSERT_OK(put(*cache, tokens({1, 2, 3})));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange,
                         "key: found 2 new tokens after a length of 3, expected at most the "
                         "capacity of 4",
                         put(*cache, tokens({4, 5})));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange,
                         "cache_position: found 4 at a length of 3, expected less than the "
                         "capacity of 4",
                         put(*cache, tokens({4}), 0, index(4)));
}

// --- The cases, as printed. ---

TEST_P(Section1, CasePositionFiveOnEmptyThenAppendThenOverwrite) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({7}), 0, index(5)));
  EXPECT_EQ(keys(*cache), (Floats{0, 0, 0, 0, 0, 7}));
  EXPECT_EQ(cache->seq_length().value(), 6);
  ASSERT_OK(put(*cache, tokens({8})));
  EXPECT_EQ(cache->seq_length().value(), 7);
  ASSERT_OK(put(*cache, tokens({9}), 0, index(1)));
  EXPECT_EQ(keys(*cache), (Floats{0, 9, 0, 0, 0, 7, 8}));
}

TEST_P(Section1, CaseOneDimensionalPositionsWithGaps) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3}), 0, indices({0, 2, 4})));
  EXPECT_EQ(keys(*cache), (Floats{1, 0, 2, 0, 3}));
}

TEST_P(Section1, CaseTheLastOfDuplicatesWins) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3}), 0, indices({1, 1, 0})));
  EXPECT_EQ(keys(*cache), (Floats{3, 2}));
}

TEST_P(Section1, CaseTwoDimensionalPositionsAreRowWise) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2}, {3, 4}}), 0, index_table({{0, 2}, {1, 3}})));
  EXPECT_EQ(keys(*cache), (Floats{1, 0, 2, 0, 0, 3, 0, 4}));
  EXPECT_EQ(cache->seq_length().value(), 4);
}

TEST_P(Section1, CaseCropTwoThenNineAtPositionFour) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3, 4, 5})));
  ASSERT_OK(cache->crop(2));
  ASSERT_OK(put(*cache, tokens({9}), 0, index(4)));
  EXPECT_EQ(keys(*cache), (Floats{4, 5, 0, 0, 9}));
}

TEST_P(Section1, CaseStaticCapacityFourFull) {
  const auto cache = make(4);
  ASSERT_OK(put(*cache, tokens({1, 2, 3, 4})));
  if (is_static()) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "capacity of 4",
                           put(*cache, tokens({5})));
  }
  ASSERT_OK(cache->crop(3));
  ASSERT_OK(put(*cache, tokens({5})));
  EXPECT_EQ(keys(*cache), (Floats{2, 3, 4, 5}));
}

TEST_P(Section1, CaseAFailedFirstUpdateLeavesTheLayerUnpopulated) {
  const auto cache = make(4);
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "value",
                         cache->update(tokens({1}), tokens({1, 2})).status());
  EXPECT_FALSE(cache->get(0).value().key.defined());
  if (is_static()) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "capacity of 4",
                           put(*cache, tokens({1, 2, 3, 4, 5})));
    EXPECT_FALSE(cache->get(0).value().key.defined());
  }
  EXPECT_OK(put(*cache, iota(shaped(2, 2, 2, 2))));  // any shape
}

TEST_P(Section1, CaseSelectMovesRowsAndFixesTheNewBatch) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{0, 1}, {10, 11}, {20, 21}})));
  ASSERT_OK(cache->batch_select(indices({2, 0, 1})));
  EXPECT_EQ(keys(*cache), (Floats{20, 21, 0, 1, 10, 11}));
  ASSERT_OK(cache->batch_select(indices({1, 2, 0})));  // back
  ASSERT_OK(cache->batch_select(indices({0, 0, 2, 2, 1})));
  EXPECT_EQ(keys(*cache), (Floats{0, 1, 0, 1, 20, 21, 20, 21, 10, 11}));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "key: found",
                         put(*cache, batch({{1}, {2}, {3}})));
  EXPECT_OK(put(*cache, batch({{1}, {2}, {3}, {4}, {5}})));
  EXPECT_EQ(cache->seq_length().value(), 3);
}

}  // namespace
}  // namespace kvcache::testing
