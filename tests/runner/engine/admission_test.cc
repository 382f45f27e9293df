#include "runner/engine/admission.h"

#include <gtest/gtest.h>

namespace kvcache::runner {
namespace {

TEST(Admission, CountsWholePages) {
  Admission admission(16, 4, 8);
  EXPECT_TRUE(admission.admits(64));
  EXPECT_FALSE(admission.admits(65));
  admission.join(17);
  EXPECT_EQ(admission.pages(), 2);
  EXPECT_TRUE(admission.admits(32));
  EXPECT_FALSE(admission.admits(33));
  admission.leave(17);
  EXPECT_TRUE(admission.admits(64));
}

TEST(Admission, CountsRequests) {
  Admission admission(16, 100, 2);
  admission.join(1);
  admission.join(1);
  EXPECT_FALSE(admission.admits(1));
  admission.leave(1);
  EXPECT_TRUE(admission.admits(1));
}

}  // namespace
}  // namespace kvcache::runner
