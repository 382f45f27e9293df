// What a case of attention must move and compute at least, and the lists of cases.
#include "bench/attention_shape.h"

#include <limits>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

using ::testing::HasSubstr;

AttentionShape small() {
  AttentionShape shape;
  shape.kv_len = 10;
  shape.queries = 3;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = 8;
  shape.v_head_dim = 16;
  return shape;
}

void expect_refused(const AttentionShape& shape, const std::string& what) {
  const Status status = check_shape(shape);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(what));
}

TEST(CountAttention, CountsEveryRowOnceAndEveryVisiblePairForEachHead) {
  const AttentionCounts counts = count_attention(small(), {10});
  EXPECT_EQ(counts.rows, 10);
  EXPECT_EQ(counts.bytes, 10 * 2 * (8 + 16) * 2);
  EXPECT_EQ(counts.operations, 2.0 * 4 * (8 + 16) * (8 + 9 + 10));
  EXPECT_EQ(counts.widened, 10.0 * 2 * (8 + 16));
}

TEST(CountAttention, RowsInF32AreNotWidened) {
  AttentionShape shape = small();
  shape.dtype = DType::kF32;
  const AttentionCounts counts = count_attention(shape, {10});
  EXPECT_EQ(counts.bytes, 10 * 2 * (8 + 16) * 4);
  EXPECT_EQ(counts.widened, 0);
}

TEST(CountAttention, RaggedLengthsAddUp) {
  AttentionShape shape = small();
  shape.batch = 2;
  const AttentionCounts counts = count_attention(shape, {10, 3});
  EXPECT_EQ(counts.rows, 13);
  EXPECT_EQ(counts.operations, 2.0 * 4 * (8 + 16) * (8 + 9 + 10 + 1 + 2 + 3));
}

TEST(CountAttention, ASharedPrefixIsReadOnceButComputedForAll) {
  AttentionShape shape = small();
  shape.batch = 3;
  shape.page_size = 2;
  shape.shared_prefix = 6;
  const AttentionCounts counts = count_attention(shape, {10, 10, 9});
  EXPECT_EQ(counts.rows, 6 + 4 + 4 + 3);
  EXPECT_EQ(counts.operations, 2.0 * 4 * (8 + 16) * (27 + 27 + 24));
}

TEST(CountAttention, TheDocumentedExample) {
  AttentionShape shape;  // 512 causal queries over 4096 keys, 32 heads x 128: 32.2 GFLOP
  shape.queries = 512;
  shape.kv_len = 4096;
  EXPECT_NEAR(count_attention(shape, {4096}).operations, 32.2e9, 0.05e9);
  shape.queries = 1;  // 16k tokens of 8 heads x 128 in bf16: 67 MB
  shape.kv_len = 16384;
  EXPECT_EQ(count_attention(shape, {16384}).bytes, 67108864);
}

TEST(BoundOf, IsTheLargerOfReadingAndComputing) {
  AttentionCounts counts;
  counts.bytes = 100;
  counts.operations = 60;
  counts.widened = 20;
  EXPECT_DOUBLE_EQ(bound_of(counts, {10, 20, 5}).seconds(), 10);
  EXPECT_DOUBLE_EQ(bound_of(counts, {50, 20, 5}).seconds(), 7);
  EXPECT_DOUBLE_EQ(bound_of(counts, {50, 20, 5}).read, 2);
}

TEST(BoundOf, NothingToWidenCostsNothing) {
  AttentionCounts counts;
  counts.bytes = 1;
  counts.operations = 60;
  const Rates rates{1e9, 20, std::numeric_limits<double>::infinity()};
  EXPECT_DOUBLE_EQ(bound_of(counts, rates).seconds(), 3);
}

TEST(LengthsOf, AreAllKvLenUnlessRagged) {
  AttentionShape shape = small();
  shape.batch = 3;
  EXPECT_THAT(lengths_of(shape, 1), ::testing::ElementsAre(10, 10, 10));
}

TEST(LengthsOf, RaggedOnesReachFromTheQueriesToKvLen) {
  AttentionShape shape = small();
  shape.batch = 4;
  shape.ragged = true;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    EXPECT_THAT(lengths_of(shape, seed), ::testing::UnorderedElementsAre(3, 6, 8, 10));
  }
}

TEST(CheckShape, TheDefaultsAndTheListsAreRight) {
  EXPECT_TRUE(check_shape({}).ok());
  std::set<std::string> names;
  for (const char* list : {"decode", "prefill", "ladder"}) {
    const auto cases = attention_cases(list, {});
    ASSERT_TRUE(cases.ok());
    EXPECT_FALSE(cases->empty());
    for (const AttentionShape& shape : *cases) {
      EXPECT_TRUE(check_shape(shape).ok()) << describe(shape);
      names.insert(std::string(list) + describe(shape));
    }
  }
  const auto all = attention_cases("all", {});
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(all->size(), names.size());
}

TEST(CheckShape, NamesWhatIsWrong) {
  AttentionShape shape;
  shape.heads = 30;
  expect_refused(shape, "heads: found 30, expected a multiple of kv-heads 8");
  shape = {};
  shape.queries = shape.kv_len + 1;
  expect_refused(shape, "queries: found 16385");
  shape = {};
  shape.head_dim = 0;
  expect_refused(shape, "head-dim: found 0");
  shape = {};
  shape.batch = std::int64_t{1} << 40;
  expect_refused(shape, "batch");
  shape = {};
  shape.dtype = DType::kI32;
  expect_refused(shape, "dtype: found i32");
}

TEST(CheckShape, ASharedPrefixNeedsWholePages) {
  AttentionShape shape;
  shape.shared_prefix = 24;
  expect_refused(shape, "page-size: found contiguous");
  shape.page_size = 16;
  expect_refused(shape, "shared-prefix: found 24, expected a multiple of page-size 16");
  shape.page_size = 8;
  EXPECT_TRUE(check_shape(shape).ok());
  shape.shared_prefix = shape.kv_len;
  expect_refused(shape, "shared-prefix: found 16384, expected 0 .. 16383");
}

TEST(AttentionCases, TakeThreadsAndBackendOfTheBase) {
  AttentionShape base;
  base.threads = 3;
  base.backend = "portable";
  const auto cases = attention_cases("prefill", base);
  ASSERT_TRUE(cases.ok());
  for (const AttentionShape& shape : *cases) {
    EXPECT_EQ(shape.threads, 3);
    EXPECT_EQ(shape.backend, "portable");
  }
}

TEST(AttentionCases, AnUnknownListIsNamed) {
  const auto cases = attention_cases("everything", {});
  EXPECT_EQ(cases.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(cases.status().message(), HasSubstr("cases: found everything"));
}

TEST(Describe, SaysWhatIsUnusual) {
  AttentionShape shape = small();
  EXPECT_EQ(describe(shape), "3 over 10, 4/2 x 8+16, bf16");
  shape.page_size = 2;
  shape.batch = 2;
  shape.layout = Layout::kNHD;
  EXPECT_EQ(describe(shape), "3 over 10, 4/2 x 8+16, bf16, batch 2, pages of 2, nhd");
}

}  // namespace
}  // namespace kvcache::bench
