#include "kvcache/backend.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/select.h"
#include "kvcache/dynamic_cache.h"
#include "kvcache/functional.h"
#include "kvcache/memory.h"
#include "kvcache/paged_cache.h"
#include "kvcache/static_cache.h"

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

TEST(Backends, CudaIsListedWithTheReasonWhyItIsNotHere) {
  const std::vector<BackendInfo> all = backends().value();
  for (const BackendInfo& info : all) {
    const bool cuda = info.device.kind == DeviceKind::kCuda;
    EXPECT_EQ(cuda, info.name == "cuda");
    EXPECT_TRUE(!cuda || (!info.available && !info.selected));
  }
}

// Memory that says it is a GPU's.
class CudaMemory final : public MemoryResource {
 public:
  Device device() const noexcept override { return {DeviceKind::kCuda, 1}; }
  Result<Region> reserve(std::int64_t) noexcept override { return refused(); }
  Status commit(const Region&, std::int64_t) noexcept override { return refused(); }
  void decommit(const Region&, std::int64_t, std::int64_t, std::int64_t) noexcept override {}
  Result<Region> grow(const Region&, const RowSpan&, const RowSpan&, std::int64_t,
                      std::int64_t*) noexcept override {
    return refused();
  }
  void release(const Region&, std::int64_t) noexcept override {}

 private:
  static Status refused() { return Status(StatusCode::kInternal, "asked for memory"); }
};

TEST(Backends, EveryCacheRefusesMemoryOfADeviceWithoutOneByName) {
  CudaMemory memory;
  const auto expect_refused = [](const char* cache, const Status& status) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << cache;
    EXPECT_THAT(status.message(), testing::StartsWith("memory: found cuda:1, expected the CPU"))
        << cache;
  };
  CacheOptions layered;
  layered.memory = &memory;
  expect_refused("dynamic", DynamicCache::create(layered).status());
  expect_refused("static", StaticCache::create(16, 1, layered).status());
  CacheConfig paged = CacheConfig::uniform(1, 1, 8, DType::kF32);
  paged.num_pages = 4;
  paged.memory = &memory;
  expect_refused("paged", PagedCache::create(paged).status());
  functional::InitOptions states;
  states.memory = &memory;
  expect_refused("functional", functional::init(states).status());
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
