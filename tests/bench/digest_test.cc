#include "bench/digest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "bench/digest_store.h"
#include "support/paths.h"

namespace kvcache::bench {
namespace {

std::vector<Digest> list(const std::string& filter, Executor& executor = default_executor(),
                         const std::string& model = "") {
  DigestOptions options;
  options.filter = filter;
  options.model = model;
  options.context.executor = &executor;
  auto digests = run_digest(options, [](int, int) {});
  EXPECT_TRUE(digests.ok()) << digests.status().to_string();
  return digests.ok() ? std::move(*digests) : std::vector<Digest>();
}

std::vector<std::uint64_t> bits_of(const std::vector<Digest>& digests) {
  std::vector<std::uint64_t> bits;
  for (const Digest& each : digests) bits.push_back(each.bits);
  return bits;
}

TEST(Digest, BackendsAgreeWithTheReferenceAndStoragesBitForBit) {
  const std::vector<Digest> digests = list("decode");
  const Status status = check_digests(digests);
  EXPECT_TRUE(status.ok()) << status.to_string();
  std::set<std::string> storages, backends;
  for (const Digest& each : digests) {
    storages.insert(each.storage);
    backends.insert(each.backend);
  }
  EXPECT_EQ(storages.count("pages of 1, nhd"), 1u);
  EXPECT_EQ(storages.count("shared pages of 16, hnd"), 1u);
  EXPECT_EQ(storages.count("contiguous, hnd"), 1u);
  EXPECT_EQ(backends.count("reference"), 1u);
  EXPECT_EQ(backends.count("portable"), 1u);
}

TEST(Digest, PrefillInEveryStorageHasTheBitsOfContiguousRows) {
  for (const char* filter : {"4/2 x 64+64 f32, prefill, plain", "bf16, prefill, mask", "20 each"}) {
    const std::vector<Digest> digests = list(filter);
    EXPECT_FALSE(digests.empty()) << filter;
    const Status status = check_digests(digests);
    EXPECT_TRUE(status.ok()) << status.to_string();
  }
}

TEST(Digest, ARunningBatchIsInTheList) {
  const std::vector<Digest> digests = list("f16, 8 each");
  EXPECT_TRUE(std::any_of(digests.begin(), digests.end(),
                          [](const Digest& each) { return each.storage == "running batch, nhd"; }));
  EXPECT_TRUE(check_digests(digests).ok());
}

TEST(Digest, StoredRowsAreTheSameInEveryStorage) {
  const std::vector<Digest> digests = list(", rows");
  EXPECT_GT(digests.size(), 30u);
  const Status status = check_digests(digests);
  EXPECT_TRUE(status.ok()) << status.to_string();
}

TEST(Digest, TheSameBitsAgainAndWithoutThreads) {
  const std::vector<Digest> once = list("bf16, decode and prefill");
  EXPECT_FALSE(once.empty());
  EXPECT_EQ(bits_of(once), bits_of(list("bf16, decode and prefill")));
  EXPECT_EQ(bits_of(once), bits_of(list("bf16, decode and prefill", serial_executor())));
}

TEST(Digest, CachesOfAModelHaveTheSameLogits) {
  const std::vector<Digest> digests =
      list("logits", default_executor(), kvcache::testing::source_dir() + "/models/storyteller");
  EXPECT_GT(digests.size(), 20u);
  const Status status = check_digests(digests);
  EXPECT_TRUE(status.ok()) << status.to_string();
}

TEST(Digest, BitsThatDifferBetweenStoragesAndWrongAnswersAreNamed) {
  std::vector<Digest> digests = {{"decode", "contiguous", "avx2", 1, 1e-6, 1e-5},
                                 {"decode", "pages", "avx2", 2, 1e-6, 1e-5}};
  EXPECT_EQ(check_digests(digests).message(),
            "decode; pages; avx2: found 0000000000000002, expected 0000000000000001 as in "
            "contiguous");
  digests[1].bits = 1;
  EXPECT_TRUE(check_digests(digests).ok());
  digests[1].error = 1;
  EXPECT_EQ(check_digests(digests).message(),
            "decode; pages; avx2: found a wrong answer, error 1.0e+00, expected at most 1.0e-05");
}

TEST(Digest, JsonHasSixteenDigitsACase) {
  const auto json = nlohmann::json::parse(to_json({{"decode", "pages", "avx2", 255, 0.5, 1}}));
  EXPECT_EQ(json["digests"][0]["bits"], "00000000000000ff");
  EXPECT_EQ(json["digests"][0]["storage"], "pages");
}

// Inputs must never change: two builds could no longer be compared.
TEST(Digest, InputsAreTheseNumbers) {
  float least = 0, most = 0;
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    const float value = digest_value(DigestStream::kKey, 0, i / 64, 0, i % 64);
    least = std::min(least, value);
    most = std::max(most, value);
    sum += value;
  }
  EXPECT_LT(least, -1.99f);
  EXPECT_GT(most, 1.99f);
  EXPECT_NEAR(sum / 10000, 0, 0.05);
  EXPECT_EQ(digest_bytes("a", 1), 0xaf63dc4c8601ec8cu);  // published for FNV-1a
}

}  // namespace
}  // namespace kvcache::bench
