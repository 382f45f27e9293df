#include <set>
#include <string>

#include "gtest/gtest.h"
#include "kernels/kernel_table.h"

namespace kvcache::internal {
namespace {

TEST(Registry, NamesAreUniqueAndEachSaysWhy) {
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  std::set<std::string> names;
  for (std::int32_t i = 0; i < count; ++i) {
    EXPECT_TRUE(names.insert(all[i].name).second) << all[i].name;
    EXPECT_NE(std::string(all[i].description), "");
    EXPECT_NE(std::string(all[i].reason), "");
    EXPECT_EQ(find_backend(all[i].name), &all[i]);
  }
  EXPECT_EQ(names, (std::set<std::string>{"avx512bf16", "avx512", "avx2", "neon", "portable",
                                          "reference"}));
}

TEST(Registry, TheReferenceIsLastAndPortableAlwaysRuns) {
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  EXPECT_STREQ(all[count - 1].name, "reference");
  EXPECT_TRUE(all[count - 1].available);
  EXPECT_TRUE(find_backend("portable")->available);
  EXPECT_NE(find_backend("portable")->attention, nullptr);
}

TEST(Registry, AnUnknownNameIsNone) { EXPECT_EQ(find_backend("abacus"), nullptr); }

}  // namespace
}  // namespace kvcache::internal
