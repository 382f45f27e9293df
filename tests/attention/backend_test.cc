#include "attention/backend.h"

#include "gtest/gtest.h"

namespace kvcache::internal {
namespace {

TEST(Attention, EveryBackendHasOne) {
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    const Attention& attention = attention_of(all[i]);
    ASSERT_NE(attention.workspace, nullptr) << all[i].name;
    ASSERT_NE(attention.run, nullptr) << all[i].name;
    PlanView plan;
    plan.backend = &all[i];
    plan.size.largest_pass = 1;
    const Result<std::int64_t> bytes = attention.workspace(plan);
    EXPECT_EQ(bytes.ok(), all[i].availability.here) << all[i].name;
    EXPECT_TRUE(!bytes.ok() || *bytes > 0) << all[i].name;
  }
}

TEST(Attention, OfADeviceThatIsNotHereSaysWhyNot) {
  PlanView plan;
  plan.backend = find_backend("cuda");
  const Attention& attention = attention_of(*plan.backend);
  for (const Status& status : {attention.workspace(plan).status(), attention.run(plan, {}, {})}) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_EQ(
        status.message(),
        "backend: found cuda, expected one that runs here (this version has no CUDA kernels)");
  }
}

TEST(Attention, AWorkspaceBeyondAnyMemoryIsRefused) {
  PlanView plan;
  plan.backend = find_backend("portable");
  plan.size.largest_pass = 1;
  plan.size.workspace_floats = INT64_MAX / 2;
  EXPECT_EQ(attention_of(*plan.backend).workspace(plan).status().code(), StatusCode::kOutOfMemory);
}

}  // namespace
}  // namespace kvcache::internal
