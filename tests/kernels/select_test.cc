#include "kernels/select.h"

#include <string>

#include "gtest/gtest.h"
#include "support/environment.h"

namespace kvcache::testing {
namespace {

constexpr Device kCuda = {DeviceKind::kCuda, 1};

TEST(SelectBackend, TheEnvironmentNamesOne) {
  const internal::Backend* backend = nullptr;
  {
    const GivenEnvironment portable({"portable", ""});
    ASSERT_TRUE(internal::select_backend(nullptr, {}, &backend).ok());
    EXPECT_STREQ(backend->name, "portable");
    ASSERT_TRUE(internal::select_backend("reference", {}, &backend).ok());
    EXPECT_STREQ(backend->name, "reference");
  }
  const GivenEnvironment unknown({"abacus", ""});
  const Status status = internal::select_backend(nullptr, {}, &backend);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("KVCACHE_BACKEND: found \"abacus\""), std::string::npos);
  EXPECT_STREQ(backend->name, "reference");
}

TEST(SelectBackend, ADeviceWithoutABackendIsUnavailableByName) {
  const internal::Backend* backend = nullptr;
  const Status status = internal::select_backend(nullptr, kCuda, &backend);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "device: found cuda:1, expected the CPU (cuda: this version has no CUDA kernels)");
  EXPECT_EQ(internal::expect_backend("kv.device", kCuda).message(), "kv." + status.message());
  EXPECT_EQ(backend, nullptr);
  EXPECT_TRUE(internal::expect_backend("kv.device", {}).ok());
}

TEST(SelectBackend, OneThatIsNotHereSaysWhyNot) {
  const internal::Backend* backend = nullptr;
  const Status status = internal::select_backend("cuda", {}, &backend);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "options.backend: found \"cuda\", expected a backend that runs here (this version has "
            "no CUDA kernels)");
}

TEST(SelectBackend, OneOfAnotherDeviceIsRefused) {
  const internal::Backend* backend = nullptr;
  const Status status = internal::select_backend("portable", kCuda, &backend);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "options.backend: found \"portable\", expected a backend of cuda:1");
}

TEST(SelectedRows, AreThoseOfABackendThatRunsHere) {
  const internal::RowKernels& rows = internal::selected_rows();
  EXPECT_EQ(&internal::selected_rows(), &rows);
  std::int32_t count = 0;
  const internal::Backend* all = internal::all_backends(&count);
  bool found = false;
  for (std::int32_t i = 0; i < count; ++i) {
    found = found || (all[i].availability.here && all[i].rows == &rows);
  }
  EXPECT_TRUE(found);
}

}  // namespace
}  // namespace kvcache::testing
