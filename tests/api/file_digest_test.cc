#include <gtest/gtest.h>

#include <set>
#include <string>

#include "kvcache/prefix.h"
#include "support/temp_dir.h"

namespace kvcache {
namespace {

TEST(FileDigest, EveryByteAndTheLengthDecide) {
  const test::TempDir folder;
  const std::string whole((3 << 20) + 17, 'x');
  const std::string digest = digest_of_file(folder.write("a", whole)).value();
  EXPECT_EQ(digest.size(), 32u);
  EXPECT_EQ(digest_of_file(folder.write("b", whole)).value(), digest);
  std::set<std::string> seen = {digest};
  for (std::size_t at = 0; at < whole.size(); at += 300007) {
    std::string changed = whole;
    changed[at] = 'y';
    EXPECT_TRUE(seen.insert(digest_of_file(folder.write("c", changed)).value()).second) << at;
  }
  for (const std::size_t size : {0, 1, 1 << 20, (3 << 20) + 16}) {
    const auto shorter = digest_of_file(folder.write("d", whole.substr(0, size)));
    EXPECT_TRUE(seen.insert(shorter.value()).second) << size;
  }
}

TEST(FileDigest, AFileThatIsMissingOrNoneIsNamed) {
  const test::TempDir folder;
  EXPECT_EQ(digest_of_file(folder.path() + "/none").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(digest_of_file(folder.path()).status().code(), StatusCode::kIo);
}

}  // namespace
}  // namespace kvcache
