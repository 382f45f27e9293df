// PagedBatch over layers that drop rows.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kvcache/attention.h"
#include "support/paged_batch.h"

namespace kvcache::testing {
namespace {

constexpr Life kWindow{3, 0, 1};
constexpr Life kChunk{0, 4};

CacheConfig config(const std::vector<Life>& lives, std::int64_t rewind_tokens = 0) {
  CacheConfig config = PagedFixture::config(Layout::kHND, DType::kF32, 64, 2, 0);
  for (const Life& life : lives) config.layers.push_back(paged_spec().living(life));
  config.rewind_tokens = rewind_tokens;
  return config;
}

// What gather() shows of each row in one layer.
std::vector<Tokens> gathered(const BatchFixture& f, const PagedBatch& batch, std::int64_t layer) {
  const OwnedKvView view = batch.view(layer).value();
  std::vector<Tokens> rows;
  for (std::int32_t row = 0; row < batch.num_rows(); ++row) {
    rows.push_back(f.tokens(view, row, layer));
    EXPECT_EQ(std::int64_t(rows.back().size()), batch.rows_held(row, layer).value());
  }
  const std::int64_t length = batch.rows_held(0, layer).value();
  HostTensor k(DType::kF32, {batch.num_rows(), 2, length, 2});
  HostTensor v(DType::kF32, {batch.num_rows(), 2, length, 1});
  EXPECT_OK(batch.gather(layer, k.mutable_view(), v.mutable_view()));
  for (std::int64_t row = 0; row < batch.num_rows(); ++row) {
    for (std::int64_t t = 0; t < length; ++t) {
      const double token = rows[std::size_t(row)][std::size_t(t)];
      for (std::int64_t h = 0; h < 2; ++h) {
        const std::int64_t at = (row * 2 + h) * length + t;
        EXPECT_EQ(values(k)[std::size_t(at * 2 + 1)], element(token, layer, h, 1, false));
        EXPECT_EQ(values(v)[std::size_t(at)], element(token, layer, h, 0, true));
      }
    }
  }
  return rows;
}

TEST(PagedBatchWindows, TheLastLayersQueriesSeeTheirWindowToo) {
  BatchFixture f(config({Life(), kWindow, kChunk}));
  PagedBatch batch = f.batch(2);
  ASSERT_OK(f.update(batch, {{0, 1, 2, 3, 4}, {10, 11, 12, 13, 14}}));
  EXPECT_TRUE(batch.step_open());
  EXPECT_EQ(batch.seq_length(0, 1).value(), 5);
  EXPECT_EQ(gathered(f, batch, 1), (std::vector<Tokens>{{0, 1, 2, 3, 4}, {10, 11, 12, 13, 14}}));
  ASSERT_OK(f.update(batch, {{5, 6}, {15, 16}}));
  EXPECT_EQ(gathered(f, batch, 0)[0], (Tokens{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(gathered(f, batch, 1), (std::vector<Tokens>{{0, 3, 4, 5, 6}, {10, 13, 14, 15, 16}}));
  EXPECT_EQ(gathered(f, batch, 2), (std::vector<Tokens>{{4, 5, 6}, {14, 15, 16}}));
  ASSERT_OK(batch.commit());
  EXPECT_FALSE(batch.step_open());
  EXPECT_EQ(batch.first_position(0, 1).value(), 5);
  EXPECT_EQ(gathered(f, batch, 1), (std::vector<Tokens>{{0, 5, 6}, {10, 15, 16}}));
}

TEST(PagedBatchWindows, RejectedTokensOfTheOpenForwardPassNeedNoRewindTokens) {
  BatchFixture f(config({Life(), kWindow, kChunk}));
  PagedBatch batch = f.batch(2);
  ASSERT_OK(f.update(batch, {{0, 1, 2, 3, 4}, {10, 11, 12, 13, 14}}));
  ASSERT_OK(f.update(batch, {{5, 6, 7, 8, 9}, {15, 16, 17, 18, 19}}));
  ASSERT_OK(batch.rewind(Counts{4, 2}));
  EXPECT_EQ(f.held(1, batch.sequences()[0]), (Tokens{0, 4, 5}));
  EXPECT_EQ(f.held(1, batch.sequences()[1]), (Tokens{10, 16, 17}));
  EXPECT_EQ(f.held(2, batch.sequences()[1]), Tokens{});
  // What is committed stays: no row is cut where one cannot be.
  const std::vector<SequenceId> seqs(batch.sequences().begin(), batch.sequences().end());
  EXPECT_REFUSED(f, seqs, StatusCode::kOutOfRange, batch.rewind(Counts{0, 1}));
  EXPECT_REFUSED(f, seqs, StatusCode::kOutOfRange, batch.rewind(Counts{1, 0}));
  EXPECT_REFUSED(f, seqs, StatusCode::kOutOfRange, batch.truncate(5));
  EXPECT_EQ(batch.seq_length(1).value(), 8);
  ASSERT_OK(batch.truncate(8));
}

TEST(PagedBatchWindows, AForwardPassThatDiedIsTakenBack) {
  for (const bool by_rewind : {true, false}) {
    BatchFixture f(config({Life(), kWindow, kChunk}));
    PagedBatch batch = f.batch(1);
    ASSERT_OK(f.update(batch, {{0, 1, 2, 3, 4}}));
    ASSERT_OK(f.update(batch, 0, {{40, 41}}));
    ASSERT_OK(f.update(batch, 1, {{40, 41}}));
    ASSERT_OK(by_rewind ? batch.rewind(2) : batch.rollback());
    ASSERT_OK(f.update(batch, {{5, 6}}));
    EXPECT_EQ(gathered(f, batch, 0)[0], (Tokens{0, 1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(gathered(f, batch, 1)[0], (Tokens{0, 3, 4, 5, 6}));
    EXPECT_EQ(gathered(f, batch, 2)[0], (Tokens{4, 5, 6}));
  }
}

TEST(PagedBatchWindows, ARefusedCallHasEndedTheForwardPassOnlyWhereRoomIsShort) {
  BatchFixture f(config({Life(), kWindow}));
  PagedBatch batch = f.batch(2);
  ASSERT_OK(f.update(batch, {{0, 1, 2, 3, 4}, {10, 11, 12, 13, 14}}));
  const std::vector<std::int32_t> ids = {1};
  EXPECT_EQ(batch.begin(Counts{1, -1}).message(), "counts[1]: found -1, expected 0 .. 2147483646");
  EXPECT_EQ(batch.begin(Counts{1, 1}, ids).message(), "tokens: found 1, expected none or 2");
  EXPECT_TRUE(batch.step_open());
  EXPECT_EQ(batch.rows_held(0, 1).value(), 5);
  EXPECT_EQ(batch.begin(Counts{200, 0}).code(), StatusCode::kNeverFits);
  EXPECT_FALSE(batch.step_open());
  EXPECT_EQ(batch.seq_length(0).value(), 5);
  EXPECT_EQ(gathered(f, batch, 1), (std::vector<Tokens>{{0, 3, 4}, {10, 13, 14}}));
  EXPECT_OK(f.cache.check_invariants());
}

TEST(PagedBatchWindows, RollbackTakesBackAFinishedForwardPassThatIsOpenYet) {
  BatchFixture f(config({Life(), kWindow}));
  PagedBatch batch = f.batch(1);
  ASSERT_OK(f.update(batch, {{0, 1, 2, 3, 4}}));
  ASSERT_OK(f.update(batch, {{5, 6}}));
  ASSERT_OK(batch.rollback());
  EXPECT_EQ(batch.seq_length(0, 1).value(), 5);
  EXPECT_EQ(gathered(f, batch, 1)[0], (Tokens{0, 3, 4}));
}

TEST(PagedBatchWindows, RowsOfSelectionsAndForksGoOnApart) {
  BatchFixture f(config({Life(), kWindow, kChunk}));
  PagedBatch batch = f.batch(2);
  ASSERT_OK(f.update(batch, {{0, 1, 2, 3, 4}, {10, 11, 12, 13, 14}}));
  ASSERT_OK(batch.select(indices({1, 1, 0})));
  PagedBatch fork = batch.fork().value();
  ASSERT_OK(f.update(batch, {{20}, {21}, {22}}));
  ASSERT_OK(f.update(fork, {{30}, {31}, {32}}));
  EXPECT_EQ(gathered(f, batch, 1),
            (std::vector<Tokens>{{10, 13, 14, 20}, {10, 13, 14, 21}, {0, 3, 4, 22}}));
  EXPECT_EQ(gathered(f, fork, 1),
            (std::vector<Tokens>{{10, 13, 14, 30}, {10, 13, 14, 31}, {0, 3, 4, 32}}));
  EXPECT_OK(f.cache.check_invariants());
}

TEST(PagedBatchWindows, RandomForwardPassesAgreeWithFullRows) {
  std::mt19937 rng(3);
  const auto below = [&](std::int64_t n) { return std::int64_t(rng() % std::uint64_t(n)); };
  for (int round = 0; round < 40; ++round) {
    const Life life =
        round % 2 == 0 ? Life{1 + below(6), 0, std::int32_t(below(3))} : Life{0, 1 + below(6)};
    const std::int64_t rewind = below(4);
    BatchFixture f(config({Life(), life}, rewind));
    PagedBatch batch = f.batch(2);
    double token = 0;
    AttentionOptions options;
    options.window = std::int32_t(life.window);
    options.sink_tokens = life.sink_tokens;
    options.chunk = std::int32_t(life.chunk);
    for (int pass = 0; pass < 20; ++pass) {
      const std::int64_t count = 1 + below(4);
      if (batch.seq_length(0).value() + count > 60) break;
      std::vector<Tokens> rows(2);
      for (Tokens& row : rows) {
        for (std::int64_t t = 0; t < count; ++t)
          row.push_back(token = std::int64_t(token + 1) % 60);
      }
      std::vector<std::vector<float>> results;
      const HostTensor q = batch_rows(paged_spec(), rows, 0, false, Layout::kHND);
      for (const std::int64_t layer : {0, 1}) {
        // Equal rows in both layers.
        ASSERT_OK(batch.update(layer, batch_rows(paged_spec(), rows, 0, false, Layout::kHND),
                               batch_rows(paged_spec(), rows, 0, true, Layout::kHND)));
        HostTensor out(DType::kF32, {2, 2, count, 1});
        ASSERT_OK(attend(q, {}, batch.view(layer).value(), out.mutable_view(), {}, options));
        results.push_back(values(out));
      }
      ASSERT_EQ(results[0], results[1]);
      if (below(3) == 0) ASSERT_OK(batch.rewind(below(count + 1)));
      ASSERT_OK(f.cache.check_invariants());
    }
  }
}

}  // namespace
}  // namespace kvcache::testing
