#include "base/expect.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace kvcache::internal {
namespace {

TEST(Expect, ARefusalSaysNameFoundAndExpected) {
  const Status status = refusal("page_size", 0, "at least 1");
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "page_size: found 0, expected at least 1");
  const Status coded = refusal(StatusCode::kNotFound, std::string("seq"), "none",
                               std::uint64_t{18446744073709551615u});
  EXPECT_EQ(coded.code(), StatusCode::kNotFound);
  EXPECT_EQ(coded.message(), "seq: found none, expected 18446744073709551615");
}

TEST(Expect, BoundsAreWithinTheRange) {
  EXPECT_TRUE(expect_at_least("n", 2, 2).ok());
  EXPECT_EQ(expect_at_least("n", 1, 2).message(), "n: found 1, expected at least 2");
  EXPECT_TRUE(expect_between("n", 1, 1, 3).ok());
  EXPECT_TRUE(expect_between("n", 3, 1, 3).ok());
  EXPECT_EQ(expect_between("n", 0, 1, 3).message(), "n: found 0, expected 1 .. 3");
  EXPECT_EQ(expect_between("n", 4, 1, 3, StatusCode::kOutOfRange).code(), StatusCode::kOutOfRange);
}

TEST(Expect, AnIndexLiesBelowTheCount) {
  EXPECT_TRUE(expect_index("layer", 0, 1).ok());
  for (const std::int64_t index : {std::int64_t{-1}, std::int64_t{2}, INT64_MAX, INT64_MIN}) {
    const Status status = expect_index("layer", index, 2);
    EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
    EXPECT_EQ(status.message(), "layer: found " + std::to_string(index) + ", expected 0 .. 1");
  }
  EXPECT_EQ(expect_index("layer", 0, 0).message(), "layer: found 0, expected none: there are none");
}

}  // namespace
}  // namespace kvcache::internal
