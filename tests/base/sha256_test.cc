#include "base/sha256.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace kvcache::internal {
namespace {

std::string hex(const Sha256Digest& digest) {
  std::string text;
  for (const std::byte byte : digest) {
    text += "0123456789abcdef"[std::to_integer<int>(byte) / 16];
    text += "0123456789abcdef"[std::to_integer<int>(byte) % 16];
  }
  return text;
}
std::string of(std::string_view text) { return hex(sha256(std::as_bytes(std::span(text)))); }

// The examples of FIPS 180-4, and the message of a million of them.
TEST(Sha256, GivesThePublishedVectors) {
  EXPECT_EQ(of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(of("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmno"
               "ijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(of(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, IsTheSameHoweverTheTextIsCut) {
  const std::string text(300, 'x');
  const auto bytes = std::as_bytes(std::span(text));
  for (std::size_t length = 0; length <= text.size(); ++length) {
    Sha256 sum;
    for (std::size_t at = 0; at < length; at += 7) {
      sum.add(bytes.subspan(at, std::min<std::size_t>(7, length - at)));
    }
    EXPECT_EQ(hex(sum.finish()), of(std::string_view(text).substr(0, length))) << length;
  }
}

}  // namespace
}  // namespace kvcache::internal
