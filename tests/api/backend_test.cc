#include "kvcache/backend.h"

#include "attention/select.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

TEST(Backends, TheBestAvailableIsSelected) {
  const std::vector<BackendInfo> all = backends().value();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.back().name, "reference");
  int selected = 0;
  for (const BackendInfo& info : all) {
    EXPECT_FALSE(info.reason.empty()) << info.name;
    if (info.selected) {
      ++selected;
      EXPECT_TRUE(info.available);
      EXPECT_EQ(info.name, selected_backend().value());
    }
  }
  EXPECT_EQ(selected, 1);
}

TEST(Backends, AnUnknownNameInTheEnvironmentIsAnError) {
  internal::environment().backend = "abacus";
  const Result<std::string> selected = selected_backend();
  const Result<std::vector<BackendInfo>> all = backends();
  internal::environment().backend.clear();
  EXPECT_EQ(selected.status().code(), StatusCode::kUnavailable);
  ASSERT_TRUE(all.ok());
  for (const BackendInfo& info : all.value()) EXPECT_FALSE(info.selected);
}

TEST(Backends, AnUnknownPrefetchLevelInTheEnvironmentIsAnError) {
  internal::environment().prefetch = "l2";
  const auto named = prefetch_choices();
  internal::environment().prefetch = "far";
  const auto unknown = prefetch_choices();
  internal::environment().prefetch.clear();
  ASSERT_TRUE(named.ok());
  for (const PrefetchChoice& choice : *named) {
    EXPECT_EQ(choice.level, "l2");
    EXPECT_EQ(choice.reason, "KVCACHE_PREFETCH");
  }
  EXPECT_EQ(unknown.status().code(), StatusCode::kUnavailable);
}

TEST(Backends, EveryLengthOfRowsHasAChoiceThatStaysAndAReason) {
  const auto first = prefetch_choices();
  const auto second = prefetch_choices();
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_EQ(first->size(), 3u);
  for (std::size_t i = 0; i < first->size(); ++i) {
    EXPECT_EQ((*first)[i].level, (*second)[i].level);
    EXPECT_EQ((*first)[i].reason, (*second)[i].reason);
    EXPECT_NE((*first)[i].reason.find("GB/s"), std::string::npos) << (*first)[i].reason;
  }
  ASSERT_TRUE(prefetch_choices(1).ok());
}

TEST(Backends, TheProcessorHasADescription) { EXPECT_FALSE(cpu_description().value().empty()); }

}  // namespace
}  // namespace kvcache
