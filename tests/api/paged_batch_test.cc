// PagedBatch: rows that go forward together, by name or as layers come.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/paged_batch.h"

namespace kvcache::testing {
namespace {

using Rows = std::vector<Tokens>;

// `expr` fails with `code`, and the batch and its cache look as before.
#define EXPECT_BATCH_REFUSED(f, batch, code_in, expr)          \
  do {                                                         \
    const auto before_call = state_of(f, batch);               \
    const ::kvcache::Status refused = (expr);                  \
    EXPECT_EQ(refused.code(), code_in) << refused.to_string(); \
    EXPECT_NE(refused.message(), "");                          \
    EXPECT_TRUE(state_of(f, batch) == before_call);            \
  } while (false)

class PagedBatchTest : public ::testing::TestWithParam<Layout> {
 protected:
  static BatchFixture make(std::int64_t num_pages = 16, std::int64_t num_layers = 2) {
    return BatchFixture(PagedFixture::config(GetParam(), DType::kF32, num_pages, 4, num_layers));
  }
};

INSTANTIATE_TEST_SUITE_P(Layouts, PagedBatchTest, ::testing::Values(Layout::kHND, Layout::kNHD),
                         [](const auto& each) { return std::string(name_of(each.param)); });

// --- Steps by name. ---

TEST_P(PagedBatchTest, AStepBringsEachRowItsOwnNumberOfTokens) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(3);
  const Rows first = {{1, 2, 3, 4, 5}, {}, {6}};
  ASSERT_TRUE(batch.begin(BatchFixture::counts_of(first)).ok());
  EXPECT_EQ(batch.num_new_tokens(), 6);
  EXPECT_EQ(std::vector<std::int32_t>(batch.qo_indptr().begin(), batch.qo_indptr().end()),
            (std::vector<std::int32_t>{0, 5, 5, 6}));
  EXPECT_OK(f.write(batch, first));
  EXPECT_EQ(f.tokens_of(batch, 1), first);
  EXPECT_EQ(f.lengths(batch), (Counts{0, 0, 0}));  // nothing is visible before commit
  EXPECT_OK(batch.commit());
  EXPECT_EQ(f.lengths(batch), (Counts{5, 0, 1}));
  EXPECT_OK(f.step(batch, {{7}, {8, 9}, {}}));
  EXPECT_EQ(f.tokens_of(batch, 0), (Rows{{1, 2, 3, 4, 5, 7}, {8, 9}, {6}}));
  EXPECT_EQ(f.tokens_of(batch, 1), (Rows{{1, 2, 3, 4, 5, 7}, {8, 9}, {6}}));
}

TEST_P(PagedBatchTest, CommitKeepsTheAcceptedTokensAndRollbackNone) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(2);
  const Rows rows = {{1, 2, 3}, {4, 5}};
  ASSERT_TRUE(batch.begin(BatchFixture::counts_of(rows)).ok());
  EXPECT_OK(f.write(batch, rows));
  const Counts accepted = {1, 2};
  EXPECT_OK(batch.commit(accepted));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1}, {4, 5}}));
  ASSERT_TRUE(batch.begin(Counts{2, 2}).ok());
  EXPECT_OK(f.write(batch, {{8, 9}, {8, 9}}));
  EXPECT_OK(batch.rollback());
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1}, {4, 5}}));
  EXPECT_EQ(f.cache.stats().pages_reserved, 0);
}

TEST_P(PagedBatchTest, DenseRowsAreStoredAsPackedOnesWhateverTheirStrides) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(2);
  const Rows rows = {{1, 2, 3}, {4, 5, 6}};
  // Dense in the order of the other layout, then seen in that of the cache.
  const Layout other = GetParam() == Layout::kHND ? Layout::kNHD : Layout::kHND;
  ASSERT_TRUE(batch.begin(Counts{3, 3}).ok());
  for (std::int64_t layer = 0; layer < f.num_layers; ++layer) {
    const HostTensor key = batch_rows(f.spec(), rows, layer, false, other);
    const HostTensor value = batch_rows(f.spec(), rows, layer, true, other);
    const auto turned = [](TensorView view) {
      std::swap(view.shape[1], view.shape[2]);
      std::swap(view.strides[1], view.strides[2]);
      return view;
    };
    EXPECT_OK(batch.write(layer, turned(key), turned(value)));
  }
  EXPECT_OK(batch.commit());
  EXPECT_OK(f.update(batch, {{7, 8}, {9, 10}}));  // dense in the cache's own order
  const Rows expected = {{1, 2, 3, 7, 8}, {4, 5, 6, 9, 10}};
  EXPECT_EQ(f.tokens_of(batch, 0), expected);
  EXPECT_EQ(f.tokens_of(batch, 1), expected);
  EXPECT_EQ(f.gathered(batch, 1), expected);
  EXPECT_EQ(f.gathered(batch, 1, DType::kBF16), expected);
}

TEST_P(PagedBatchTest, AStepByNameIsEndedByNameAlone) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(2);
  EXPECT_OK(f.step(batch, {{1}, {2}}));
  ASSERT_TRUE(batch.begin(Counts{1, 1}).ok());
  const auto invalid = StatusCode::kInvalidArgument;
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.begin(Counts{1, 1}));
  EXPECT_BATCH_REFUSED(f, batch, invalid, f.update(batch, 0, {{3}, {4}}));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.add());
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.release(0));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.select(indices({0})));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.reorder(indices({1, 0})));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.repeat(2));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.fork().status());
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.rewind(1));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.truncate(0));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.commit());  // nothing is written
  EXPECT_OK(batch.rollback());
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.commit());
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.rollback());
  EXPECT_BATCH_REFUSED(f, batch, invalid, f.write(batch, 0, {{3}, {4}}));
}

// --- Forward passes that nobody announces. ---

TEST_P(PagedBatchTest, TheLastLayerCommitsWhatTheFirstOpened) {
  BatchFixture f = make();
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, 0, {{1, 2}, {3, 4}}));  // the first rows say how many there are
  EXPECT_EQ(batch.num_rows(), 2);
  EXPECT_EQ(f.cache.stats().open_steps, 1);
  EXPECT_EQ(f.tokens_of(batch, 0), (Rows{{1, 2}, {3, 4}}));
  EXPECT_EQ(f.gathered(batch, 0), (Rows{{1, 2}, {3, 4}}));
  EXPECT_EQ(batch.view(1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_OK(f.update(batch, 1, {{1, 2}, {3, 4}}));
  EXPECT_EQ(f.cache.stats().open_steps, 0);
  EXPECT_EQ(f.tokens_of(batch, 1), (Rows{{1, 2}, {3, 4}}));
  EXPECT_OK(f.update(batch, {{5}, {6}}));
  EXPECT_EQ(f.tokens_of(batch, 0), (Rows{{1, 2, 5}, {3, 4, 6}}));
}

TEST_P(PagedBatchTest, LayersMayComeInAnyOrder) {
  BatchFixture f = make(16, 3);
  PagedBatch batch = f.batch();
  for (const std::int64_t layer : {2, 0, 1}) EXPECT_OK(f.update(batch, layer, {{1}}));
  for (const std::int64_t layer : {1, 2, 0}) EXPECT_OK(f.update(batch, layer, {{2}}));
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(f.tokens_of(batch, layer), (Rows{{1, 2}}));
  }
}

TEST_P(PagedBatchTest, ALengthIsThatOfTheLayerWhileAForwardPassIsOnItsWay) {
  BatchFixture f = make();
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, {{1, 2, 3}}));
  EXPECT_OK(f.update(batch, 0, {{4, 5}}));
  EXPECT_EQ(batch.seq_length(0, 0).value(), 5);
  EXPECT_EQ(batch.next_position(0, 0).value(), 5);
  EXPECT_EQ(batch.seq_length(0, 1).value(), 3);
  EXPECT_OK(f.update(batch, 1, {{4, 5}}));  // asking has ended nothing
  EXPECT_EQ(f.tokens_of(batch, 1), (Rows{{1, 2, 3, 4, 5}}));
}

TEST_P(PagedBatchTest, LayersThatNeverComeAreLeftOutAndNothingWaitsForThem) {
  BatchFixture f = make(16, 3);
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, 0, {{1}}));
  EXPECT_OK(f.update(batch, 2, {{1}}));
  EXPECT_OK(f.update(batch, 0, {{2}}));  // ends the first forward pass, which was without layer 1
  EXPECT_EQ(f.cache.stats().open_steps, 1);
  EXPECT_OK(f.update(batch, 2, {{2}}));
  EXPECT_EQ(f.cache.stats().open_steps, 0);  // the second knows which is the last
  EXPECT_EQ(f.tokens_of(batch, 0), (Rows{{1, 2}}));
  EXPECT_EQ(f.tokens_of(batch, 2), (Rows{{1, 2}}));
  EXPECT_EQ(batch.seq_length(0, 1).value(), 0);
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument, batch.view(1).status());
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument, f.update(batch, 1, {{3}}));
}

TEST_P(PagedBatchTest, ALayerLeftOutComesBackWhereTheOthersAreCutToIt) {
  BatchFixture f = make(16, 3);
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, {{1, 2}}));
  // Drafts of an early exit: two tokens, without the last layer.
  for (const double token : {3, 4}) {
    EXPECT_OK(f.update(batch, 0, {{token}}));
    EXPECT_OK(f.update(batch, 1, {{token}}));
  }
  EXPECT_EQ(batch.seq_length(0, 0).value(), 4);
  EXPECT_EQ(batch.seq_length(0, 2).value(), 2);
  EXPECT_OK(batch.rewind(2));
  EXPECT_EQ(f.lengths(batch, 2), (Counts{2}));
  EXPECT_OK(f.update(batch, {{5, 6, 7}}));
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(f.tokens_of(batch, layer), (Rows{{1, 2, 5, 6, 7}}));
  }
}

TEST_P(PagedBatchTest, AForwardPassThatDiedIsTakenBack) {
  BatchFixture f = make(16, 3);
  for (const bool by_rewind : {false, true}) {
    PagedBatch batch = f.batch();
    EXPECT_OK(f.update(batch, {{1, 2}, {3, 4}}));
    EXPECT_OK(f.update(batch, 0, {{5}, {6}}));  // and then the model throws
    EXPECT_OK(by_rewind ? batch.rewind(1) : batch.rollback());
    EXPECT_EQ(f.lengths(batch, 0), (Counts{2, 2}));
    EXPECT_OK(f.update(batch, {{7}, {8}}));
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      EXPECT_EQ(f.tokens_of(batch, layer), (Rows{{1, 2, 7}, {3, 4, 8}}));
    }
  }
}

TEST_P(PagedBatchTest, AForwardPassThatDiedAndIsGoneOnFromIsAnErrorNotRowsThatAreMissing) {
  BatchFixture f = make(16, 3);
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, {{1, 2}}));
  EXPECT_OK(f.update(batch, 0, {{3}}));
  EXPECT_OK(f.update(batch, 0, {{4}}));
  const Status status = f.update(batch, 1, {{4}});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("layer 1: found 2 of 4 tokens"), std::string::npos)
      << status.message();
  EXPECT_OK(batch.rewind(2));
  EXPECT_OK(f.update(batch, {{5}}));
  EXPECT_EQ(f.tokens_of(batch, 2), (Rows{{1, 2, 5}}));
}

TEST_P(PagedBatchTest, NoTokensChangeNothingAndMakeNoRows) {
  BatchFixture f = make();
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, 0, {{}, {}}));
  EXPECT_EQ(batch.num_rows(), 0);
  EXPECT_FALSE(batch.step_open());
}

TEST_P(PagedBatchTest, UpdateChecksItsRows) {
  BatchFixture f = make();
  PagedBatch batch = f.batch();
  const auto invalid = StatusCode::kInvalidArgument;
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfRange, f.update(batch, 2, {{1}}));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfRange, f.update(batch, -1, {{1}}));
  const HostTensor one = batch_rows(f.spec(), {{1}}, 0, false, GetParam());
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.update(0, one, one));  // v_head_dim is another
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.update(0, {}, one));
  EXPECT_OK(f.update(batch, {{1}, {2}}));
  EXPECT_BATCH_REFUSED(f, batch, invalid, f.update(batch, 0, {{3}}));  // another batch
  EXPECT_OK(f.update(batch, 0, {{3}, {4}}));
  EXPECT_BATCH_REFUSED(f, batch, invalid, f.update(batch, 1, {{3, 5}, {4, 6}}));  // another T
  EXPECT_OK(f.update(batch, 1, {{3}, {4}}));
}

TEST_P(PagedBatchTest, ARefusedForwardPassLeavesNoRowsBehind) {
  TestMemory memory;
  CacheConfig config = PagedFixture::config(GetParam(), DType::kF32, 2);
  config.memory = &memory;
  BatchFixture f(config);
  PagedBatch batch = f.batch();
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kNeverFits,
                       f.update(batch, 0, {{1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}}));
  memory.fail_after(0);
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfMemory, f.update(batch, 0, {{1}, {2}}));
  memory.never_fail();
  EXPECT_OK(f.update(batch, {{1}, {2}}));
  PagedBatch second = f.batch();
  EXPECT_BATCH_REFUSED(f, second, StatusCode::kRetryLater, f.update(second, 0, {{3}}));
  EXPECT_EQ(second.num_rows(), 0);
}

// --- Rows. ---

TEST_P(PagedBatchTest, SelectMovesReferencesAndCopiesNoRow) {
  BatchFixture f = make();
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, {{1, 2}, {3, 4}, {5, 6}}));
  EXPECT_OK(batch.select(indices({2, 0, 2, 2}, DType::kI32)));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{5, 6}, {1, 2}, {5, 6}, {5, 6}}));
  EXPECT_EQ(f.cache.stats().pages_held, 2);
  EXPECT_EQ(f.cache.stats().sequences, 4);
  EXPECT_OK(batch.select(indices({1})));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1, 2}}));
  EXPECT_EQ(f.cache.stats().sequences, 1);
  EXPECT_OK(batch.repeat(3));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1, 2}, {1, 2}, {1, 2}}));
  EXPECT_EQ(f.cache.stats().rows_copied, 0);
  EXPECT_OK(f.update(batch, {{7}, {8}, {9}}));  // each copies the tail that is shared now
  EXPECT_EQ(f.tokens_of(batch, 1), (Rows{{1, 2, 7}, {1, 2, 8}, {1, 2, 9}}));
  EXPECT_OK(batch.reorder(indices({1, 1, 0})));
  EXPECT_EQ(f.tokens_of(batch, 1), (Rows{{1, 2, 8}, {1, 2, 8}, {1, 2, 7}}));
}

TEST_P(PagedBatchTest, APermutationNeedsNoRoomInTheTables) {
  CacheConfig config = PagedFixture::config(GetParam(), DType::kF32, 0);
  PagedFixture probe(PagedFixture::config(GetParam(), DType::kF32, 2));
  for (int i = 0; i < 2; ++i) EXPECT_OK(probe.append(probe.open(), {1}));
  config.budget_bytes = probe.cache.reserved_bytes();
  BatchFixture f(config);
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, {{1}, {2}}));
  EXPECT_OK(batch.reorder(indices({1, 0})));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{2}, {1}}));
  EXPECT_OK(batch.reorder(indices({1, 1})));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1}, {1}}));
}

TEST_P(PagedBatchTest, RowsComeAndGoWhileTheOthersStay) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(1);
  EXPECT_OK(f.step(batch, {{1, 2}}));
  EXPECT_OK(batch.add(2));
  EXPECT_OK(f.step(batch, {{3}, {4, 5}, {6}}));
  EXPECT_OK(batch.release(1));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1, 2, 3}, {6}}));
  EXPECT_EQ(f.cache.stats().pages_held, 2);
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfRange, batch.release(2));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfRange, batch.seq_length(2).status());
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument, batch.add(-1));
  ASSERT_TRUE(batch.begin(Counts{1, 1}).ok());
  batch.reset();
  EXPECT_EQ(batch.num_rows(), 0);
  EXPECT_EQ(f.cache.stats().pages_held + f.cache.stats().pages_reserved, 0);
  EXPECT_OK(f.update(batch, {{7}, {8}, {9}}));  // another batch size
}

TEST_P(PagedBatchTest, AForkSharesPagesUntilOneSideWrites) {
  BatchFixture f = make();
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, {{1, 2, 3}, {4, 5, 6}}));
  PagedBatch child = batch.fork().value();
  EXPECT_EQ(f.cache.stats().pages_held, 2);
  EXPECT_OK(f.update(child, {{7}, {8}}));
  EXPECT_OK(f.update(batch, {{9}, {10}}));
  EXPECT_EQ(f.tokens_of(child), (Rows{{1, 2, 3, 7}, {4, 5, 6, 8}}));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1, 2, 3, 9}, {4, 5, 6, 10}}));
}

TEST_P(PagedBatchTest, RowsAreCutTogetherOrEachByItself) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(2);
  EXPECT_OK(f.step(batch, {{1, 2, 3, 4, 5}, {6, 7}}));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfRange, batch.rewind(3));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument, batch.rewind(-1));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument, batch.rewind(Counts{1}));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument, batch.truncate(-1));
  EXPECT_OK(batch.rewind(Counts{2, 0}));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1, 2, 3}, {6, 7}}));
  EXPECT_OK(batch.rewind(1));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1, 2}, {6}}));
  EXPECT_OK(batch.truncate(1));
  EXPECT_EQ(f.tokens_of(batch), (Rows{{1}, {6}}));
}

TEST_P(PagedBatchTest, GatherTakesRowsOfOneLength) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(2);
  EXPECT_OK(f.step(batch, {{1, 2}, {3}}));
  HostTensor k(DType::kF32, {2, 2, 2, 2});
  HostTensor v(DType::kF32, {2, 2, 2, 1});
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument,
                       batch.gather(0, k.mutable_view(), v.mutable_view()));
  EXPECT_OK(f.step(batch, {{}, {4}}));
  EXPECT_OK(batch.gather(0, k.mutable_view(), v.mutable_view()));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument,
                       batch.gather(0, v.mutable_view(), k.mutable_view()));
}

TEST_P(PagedBatchTest, SelectChecksItsIndices) {
  BatchFixture f = make();
  PagedBatch batch = f.batch();
  EXPECT_OK(f.update(batch, {{1}, {2}}));
  const auto invalid = StatusCode::kInvalidArgument;
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.select(indices({})));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfRange, batch.select(indices({0, 2})));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfRange, batch.select(indices({-1})));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.select(index(0)));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.reorder(indices({0})));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.repeat(0));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.repeat(std::int64_t{1} << 40));
}

TEST_P(PagedBatchTest, ABatchThatIsDroppedOrMovedOverGivesEverythingBack) {
  BatchFixture f = make();
  {
    PagedBatch batch = f.batch();
    EXPECT_OK(f.update(batch, {{1}, {2}}));
    EXPECT_OK(f.update(batch, 0, {{3}, {4}}));
    PagedBatch other = f.batch(1);
    EXPECT_OK(f.step(other, {{5}}));
    other = std::move(batch);
    EXPECT_EQ(f.lengths(other, 0), (Counts{2, 2}));
    EXPECT_EQ(f.cache.stats().sequences, 2);
  }
  const PagedStats stats = f.cache.stats();
  EXPECT_EQ(stats.sequences + stats.open_steps + stats.pages_held + stats.pages_reserved, 0);
  EXPECT_OK(f.cache.check_invariants());
}

TEST_P(PagedBatchTest, CreateChecksItsArguments) {
  BatchFixture f = make();
  EXPECT_EQ(PagedBatch::create(nullptr).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(PagedBatch::create(f.shared, -1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(f.cache.stats().sequences, 0);
}

TEST_P(PagedBatchTest, BeginChecksItsCounts) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(2);
  const auto invalid = StatusCode::kInvalidArgument;
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.begin(Counts{1}));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.begin(Counts{1, -1}));
  const std::int64_t large = std::int64_t{1} << 31;
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.begin(Counts{large, 0}));
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.begin(Counts{large - 1, large - 1}));
  const std::vector<std::int32_t> tokens = {7, 8, 9};
  EXPECT_BATCH_REFUSED(f, batch, invalid, batch.begin(Counts{1, 1}, tokens));
  EXPECT_OK(batch.begin(Counts{1, 2}, tokens));
  EXPECT_OK(batch.rollback());
}

TEST_P(PagedBatchTest, ARowBecomesAnotherSequenceOfItsCache) {
  BatchFixture f = make();
  PagedBatch batch = f.batch(2);
  EXPECT_OK(f.step(batch, {{1, 2, 3, 4, 5}, {6}}));
  const SequenceId fork = batch.cache()->fork(batch.sequences()[0], 3).value();
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kOutOfRange, batch.replace(2, fork));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kNotFound, batch.replace(0, SequenceId{-1}));
  EXPECT_BATCH_REFUSED(f, batch, StatusCode::kInvalidArgument,
                       batch.replace(1, batch.sequences()[0]));
  EXPECT_OK(batch.replace(1, fork));
  EXPECT_EQ(f.lengths(batch), (Counts{5, 3}));
  EXPECT_EQ(batch.cache()->stats().sequences, 2);
  EXPECT_OK(f.step(batch, {{}, {9}}));
  EXPECT_EQ(f.tokens_of(batch, 0), (Rows{{1, 2, 3, 4, 5}, {1, 2, 3, 9}}));
}

}  // namespace
}  // namespace kvcache::testing
