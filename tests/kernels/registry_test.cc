#include <set>
#include <string>

#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace kvcache::internal {
namespace {

TEST(Registry, NamesAreUniqueAndEachSaysWhy) {
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  std::set<std::string> names;
  for (std::int32_t i = 0; i < count; ++i) {
    EXPECT_TRUE(names.insert(all[i].name).second) << all[i].name;
    EXPECT_NE(std::string(all[i].description), "");
    EXPECT_NE(std::string(all[i].availability.reason), "");
    EXPECT_EQ(find_backend(all[i].name), &all[i]);
  }
  EXPECT_EQ(names, (std::set<std::string>{"avx512bf16", "avx512", "avx2", "neon", "portable",
                                          "cuda", "reference"}));
}

TEST(Registry, TheReferenceIsLastAndPortableAlwaysRuns) {
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  EXPECT_STREQ(all[count - 1].name, "reference");
  EXPECT_TRUE(all[count - 1].availability.here);
  EXPECT_EQ(all[count - 1].attends, Attends::kByDefinition);
  EXPECT_TRUE(find_backend("portable")->availability.here);
}

TEST(Registry, NoTableIsNull) {
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    ASSERT_NE(all[i].rows, nullptr) << all[i].name;
    EXPECT_NE(all[i].rows->store, nullptr) << all[i].name;
    EXPECT_NE(all[i].rows->load, nullptr) << all[i].name;
    EXPECT_NE(all[i].rows->copy, nullptr) << all[i].name;
    const bool cuts = all[i].attends == Attends::kByCuts && all[i].availability.here;
    EXPECT_TRUE(!cuts || all[i].cuts != nullptr) << all[i].name;
  }
}

TEST(Registry, CudaSaysWhyItIsNotHere) {
  const Backend* cuda = find_backend("cuda");
  ASSERT_NE(cuda, nullptr);
  EXPECT_EQ(cuda->device.kind, DeviceKind::kCuda);
  EXPECT_FALSE(cuda->availability.here);
  EXPECT_EQ(cuda->attends, Attends::kNowhere);
  cuda->rows->store({});  // as nobody does: nothing happens
}

TEST(Registry, AnUnknownNameIsNone) { EXPECT_EQ(find_backend("abacus"), nullptr); }

}  // namespace
}  // namespace kvcache::internal
