#include "kvcache/backend.h"

#include <cstdlib>

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
  ::setenv("KVCACHE_BACKEND", "abacus", 1);
  const Result<std::string> selected = selected_backend();
  const Result<std::vector<BackendInfo>> all = backends();
  ::unsetenv("KVCACHE_BACKEND");
  EXPECT_EQ(selected.status().code(), StatusCode::kUnavailable);
  ASSERT_TRUE(all.ok());
  for (const BackendInfo& info : all.value()) EXPECT_FALSE(info.selected);
}

TEST(Backends, AnUnknownPrefetchLevelInTheEnvironmentIsAnError) {
  ::setenv("KVCACHE_PREFETCH", "l2", 1);
  EXPECT_EQ(selected_prefetch().value(), "l2");
  ::setenv("KVCACHE_PREFETCH", "far", 1);
  EXPECT_EQ(selected_prefetch().status().code(), StatusCode::kUnavailable);
  ::unsetenv("KVCACHE_PREFETCH");
  EXPECT_TRUE(selected_prefetch().ok());
}

TEST(Backends, TheProcessorHasADescription) { EXPECT_FALSE(cpu_description().value().empty()); }

}  // namespace
}  // namespace kvcache
