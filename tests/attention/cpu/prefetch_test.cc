#include "attention/cpu/prefetch.h"

#include <cstdlib>

#include "attention/plan.h"
#include "gtest/gtest.h"
#include "kernels/select.h"
#include "support/environment.h"
#include "support/kv_fixture.h"

namespace kvcache::testing {
namespace {

TEST(SelectPrefetch, TheEnvironmentNamesALevel) {
  const internal::Backend* backend = internal::find_backend("portable");
  internal::Prefetch level = internal::Prefetch::kNone;
  for (const char* name : {"l1", "l2", "l3", "runs", "none"}) {
    const GivenEnvironment given({"", name});
    ASSERT_TRUE(internal::select_prefetch(*backend, {256, 1 << 30}, &level).ok());
    EXPECT_STREQ(internal::name_of(level), name);
  }
  {
    const GivenEnvironment unknown({"", "l4"});
    const Status status = internal::select_prefetch(*backend, {256, 1 << 30}, &level);
    internal::Plan plan;
    const std::vector<std::int32_t> indptr = {0, 1};
    const KvRowsData data({7}, 2, 8, 8);
    const KvStorage storage(data, {});
    EXPECT_EQ(plan.plan(storage.view(), indptr, 2, {}, {}).code(), StatusCode::kUnavailable);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_NE(status.message().find("KVCACHE_PREFETCH: found \"l4\", expected one of none, runs"),
              std::string::npos);
    EXPECT_EQ(level, internal::Prefetch::kNone);
  }
  EXPECT_TRUE(internal::select_prefetch(*backend, {256, 1 << 30}, &level).ok());
}

TEST(SelectPrefetch, CodedRowsAreAskedForWhole) {
  const internal::Backend* backend = internal::find_backend("portable");
  for (const std::int64_t bytes : {1 << 20, 1 << 30}) {
    internal::Prefetch level = internal::Prefetch::kNone;
    ASSERT_TRUE(internal::select_prefetch(*backend, {128, bytes, true}, &level).ok());
    EXPECT_GE(level, internal::Prefetch::kL1);
  }
}

// A plan beside a thread that calls setenv would read memory that setenv frees.
TEST(Environment, IsReadOnce) {
  const internal::Environment before = internal::environment();
  ::setenv("KVCACHE_BACKEND", "abacus", 1);
  ::setenv("KVCACHE_PREFETCH", "l4", 1);
  const internal::Backend* backend = nullptr;
  internal::Prefetch level = internal::Prefetch::kNone;
  const Status selected = internal::select_backend(nullptr, {}, &backend);
  bool named = false;
  const Status prefetched = internal::named_prefetch(&level, &named);
  ::unsetenv("KVCACHE_BACKEND");
  ::unsetenv("KVCACHE_PREFETCH");
  EXPECT_TRUE(selected.ok()) << selected.to_string();
  EXPECT_TRUE(prefetched.ok()) << prefetched.to_string();
  EXPECT_EQ(internal::environment().backend, before.backend);
  EXPECT_EQ(internal::environment().prefetch, before.prefetch);
}

}  // namespace
}  // namespace kvcache::testing
