// What decode prefetches: a table, overruled by figures that leave no doubt.
#include "attention/cpu/calibrate.h"

#include "attention/cpu/prefetch.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache::internal {
namespace {

using ::testing::HasSubstr;

TEST(ChoosePrefetch, OnlyAMarginOverrulesTheTable) {
  // Of runs, l1, l2.
  EXPECT_EQ(choose_prefetch({10, 11.4, 9}, Prefetch::kRuns), Prefetch::kRuns);
  EXPECT_EQ(choose_prefetch({10, 11.6, 9}, Prefetch::kRuns), Prefetch::kL1);
  EXPECT_EQ(choose_prefetch({10, 11.6, 12}, Prefetch::kRuns), Prefetch::kL2);
  EXPECT_EQ(choose_prefetch({10, 11, 10.1}, Prefetch::kL2), Prefetch::kL2);
  EXPECT_EQ(choose_prefetch({20, 11, 10}, Prefetch::kL2), Prefetch::kRuns);
}

TEST(ChoosePrefetch, WithoutFiguresTheTableStands) {
  for (const Prefetch table : kPrefetchLevels) {
    EXPECT_EQ(choose_prefetch({0, 0, 0}, table), table);
  }
}

TEST(PrefetchTable, KnowsTheFamiliesItWasMeasuredOn) {
  EXPECT_EQ(prefetch_table(0x19, 0x01), Prefetch::kRuns);  // Zen 3
  EXPECT_EQ(prefetch_table(0x19, 0x21), Prefetch::kRuns);
  EXPECT_EQ(prefetch_table(0x19, 0x11), Prefetch::kL2);  // Zen 4
  EXPECT_EQ(prefetch_table(0x1a, 2), Prefetch::kL1);     // Zen 5
  EXPECT_EQ(prefetch_table(0, 0), Prefetch::kL2);
}

TEST(PrefetchTrial, IsJudgedByTheBestOfEachLevel) {
  PrefetchTrial trial;  // in a moment that held l2 back
  trial.table = Prefetch::kL2;
  trial.add({{13, 15, 12}, Prefetch::kL2, Prefetch::kL1});
  EXPECT_EQ(trial.level, Prefetch::kL1);
  trial.add({{12, 14, 17}, Prefetch::kL2, Prefetch::kL2});
  EXPECT_EQ(trial.level, Prefetch::kL2);
  EXPECT_THAT(trial.gb_per_s, ::testing::ElementsAre(13, 15, 17));
}

TEST(PrefetchRow, RowsShareTheChoiceOfTheNextLongerKind) {
  EXPECT_EQ(prefetch_row(0), 0);
  EXPECT_EQ(prefetch_row(128), 0);
  EXPECT_EQ(prefetch_row(130), 1);
  EXPECT_EQ(prefetch_row(512), 2);
  EXPECT_EQ(prefetch_row(4096), 2);
}

TEST(TryPrefetch, MeasuresEveryLevelOnEveryBackendWithAKernel) {
  std::int32_t count = 0;
  const Backend* backends = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    if (!backends[i].availability.here) continue;
    const bool measured = backends[i].attends == Attends::kByCuts;
    for (int row = 0; row < kNumPrefetchRows; ++row) {
      const PrefetchTrial trial = try_prefetch(backends[i], row, 1);
      for (const double rate : trial.gb_per_s) {
        EXPECT_EQ(rate > 0, measured) << backends[i].name;
      }
      EXPECT_EQ(trial.level, choose_prefetch(trial.gb_per_s, trial.table));
      EXPECT_THAT(reason_of(trial), HasSubstr(measured ? "measured runs" : "not measured"));
    }
  }
}

TEST(DecidedPrefetch, IsMeasuredOnce) {
  const Backend* backend = find_backend("portable");
  const PrefetchTrial& first = decided_prefetch(*backend, 1);
  EXPECT_EQ(&decided_prefetch(*backend, 1), &first);
  EXPECT_NE(&decided_prefetch(*backend, 0), &first);
}

TEST(SelectPrefetch, FewRowsAreNotWorthAMeasurement) {
  const Backend* backend = find_backend("portable");
  Prefetch level = Prefetch::kL3;
  ASSERT_TRUE(select_prefetch(*backend, {256, 1 << 20}, &level).ok());
  EXPECT_EQ(level, try_prefetch(*backend, 1, 0).table);
}

}  // namespace
}  // namespace kvcache::internal
