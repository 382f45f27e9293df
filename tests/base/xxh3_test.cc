#include "base/xxh3.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <span>
#include <string_view>
#include <vector>

namespace kvcache::internal {
namespace {

std::uint64_t of(std::string_view text) { return xxh3(std::as_bytes(std::span(text))); }

// The buffer of xxHash's own tests (tests/sanity_test.c).
std::vector<std::byte> sanity_buffer(std::size_t size) {
  std::vector<std::byte> bytes(size);
  std::uint64_t generator = 2654435761U;
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>(generator >> 56);
    generator *= 11400714785074694797ULL;
  }
  return bytes;
}

// XSUM_XXH3_testdata of xxHash 0.8.2, those of seed 0: a length of each way through the algorithm.
TEST(Xxh3, GivesThePublishedVectors) {
  const struct {
    std::size_t length;
    std::uint64_t sum;
  } kVectors[] = {
      {0, 0x2D06800538D394C2},    {1, 0xC44BDFF4074EECDB},    {6, 0x27B56A84CD2D7325},
      {12, 0xA713DAF0DFBB77E7},   {24, 0xA3FE70BF9D3510EB},   {48, 0x397DA259ECBA1F11},
      {80, 0xBCDEFBBB2C47C90A},   {195, 0xCD94217EE362EC3A},  {240, 0x81C3C2B67F568CCF},
      {241, 0xC5A639ECD2030E5E},  {403, 0xCDEB804D65C6DEA4},  {512, 0x617E49599013CB6B},
      {2048, 0xDD59E2C3A5F038E0}, {2099, 0xC6B9D9B3FC9AC765}, {2240, 0x6E73A90539CF2948},
      {2367, 0xCB37AEB9E5D361ED},
  };
  const std::vector<std::byte> bytes = sanity_buffer(4096);
  for (const auto& [length, sum] : kVectors) {
    EXPECT_EQ(xxh3(std::span(bytes).first(length)), sum) << length << " bytes";
  }
}

TEST(Xxh3, GivesThoseOfWords) {
  EXPECT_EQ(of("a"), 0xE6C632B61E964E1F);
  EXPECT_EQ(of("abc"), 0x78AF5F94892F3950);
  EXPECT_EQ(of("hello"), 10760762337991515389ULL);
  EXPECT_EQ(of("The quick brown fox jumps over the lazy dog"), 14879076941462221669ULL);
  EXPECT_EQ(of(std::string(1024, 'a')), 5358556820880783900ULL);
}

TEST(Xxh3, ReadsFromAnyAddress) {
  const std::vector<std::byte> bytes = sanity_buffer(1500);
  for (std::size_t shift = 1; shift < 16; ++shift) {
    std::vector<std::byte> moved(shift + bytes.size());
    std::copy(bytes.begin(), bytes.end(), moved.begin() + static_cast<std::ptrdiff_t>(shift));
    EXPECT_EQ(xxh3(std::span(moved).subspan(shift)), xxh3(bytes)) << shift;
  }
}

TEST(Xxh3, PiecesOfAnySizesHaveTheSumOfTheWhole) {
  std::vector<std::byte> bytes(5000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 % 251);
  std::minstd_rand random(1);
  for (const std::size_t size : {0u, 1u, 16u, 17u, 240u, 241u, 1000u, 1023u, 1024u, 1025u, 1087u,
                                 1088u, 2048u, 2049u, 4096u, 5000u}) {
    const auto whole = std::span(bytes).first(size);
    for (const std::size_t most : {1u, 63u, 64u, 1023u, 1024u, 1025u, 3000u, 6000u}) {
      Xxh3 sum;
      for (std::size_t at = 0; at < size;) {
        const std::size_t count = std::min(size - at, 1 + random() % most);
        sum.add(whole.subspan(at, count));
        at += count;
        sum.add({});
      }
      EXPECT_EQ(sum.sum(), xxh3(whole)) << size << " bytes in pieces of up to " << most;
    }
  }
}

}  // namespace
}  // namespace kvcache::internal
