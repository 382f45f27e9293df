// `kvcache bench` as people type it: flags, JSON, exit codes.
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "support/paths.h"

namespace kvcache::testing {
namespace {

using ::testing::HasSubstr;

struct Ran {
  std::string output;  // stdout and stderr
  int exit_code = -1;
};

Ran run_bench(const std::string& arguments) {
  Ran ran;
  FILE* pipe = popen((cli_path() + " bench " + arguments + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return ran;
  std::array<char, 4096> buffer;
  while (std::fgets(buffer.data(), static_cast<int>(buffer.size()), pipe) != nullptr) {
    ran.output += buffer.data();
  }
  const int state = pclose(pipe);
  if (WIFEXITED(state)) ran.exit_code = WEXITSTATUS(state);
  return ran;
}

constexpr const char* kSmall =
    "attention --kv-len 96 --queries 2 --heads 4 --kv-heads 2 --head-dim 16 --repeats 2 --ring-mib "
    "1 ";

TEST(BenchCommand, OneCaseIsOneObject) {
  const Ran ran = run_bench(std::string(kSmall) +
                            "--v-head-dim 8 --dtype f16 --page-size 16 --layout nhd --batch 2 "
                            "--ragged --threads 2 --backend portable --clock cpu --seed 1 --json");
  ASSERT_EQ(ran.exit_code, 0) << ran.output;
  const auto json = nlohmann::json::parse(ran.output);
  ASSERT_EQ(json["cases"].size(), 1u);
  const auto& found = json["cases"][0];
  EXPECT_EQ(found["name"], "2 over 96, 4/2 x 16+8, f16, batch 2, ragged, pages of 16, nhd");
  for (const char* field : {"achieved", "roof", "ratio"}) EXPECT_GT(found[field], 0) << field;
  EXPECT_LT(found["error"], 1e-5);
  EXPECT_EQ(found["details"]["rows counted"], found["details"]["rows needed"]);
}

TEST(BenchCommand, ATableSaysWhatItWasMeasuredOn) {
  const Ran ran = run_bench(std::string(kSmall) + "--shared-prefix 32 --page-size 32 --batch 3");
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_THAT(ran.output, HasSubstr("backend"));
  EXPECT_THAT(ran.output, HasSubstr("32 shared"));
}

TEST(BenchCommand, APageSizeIsDecimalOrRefused) {
  const Ran ran = run_bench(std::string(kSmall) + "--page-size 16 --json");
  ASSERT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_THAT(ran.output, HasSubstr("pages of 16"));
  EXPECT_EQ(run_bench(std::string(kSmall) + "--page-size 0x10").exit_code, 2);
}

TEST(BenchCommand, APeerIsRunInTurnAndTheRatiosPrinted) {
  const Ran ran = run_bench(std::string(kSmall) + "--json --peer 'echo 0.5'");
  ASSERT_EQ(ran.exit_code, 0) << ran.output;
  const auto json = nlohmann::json::parse(ran.output);
  EXPECT_EQ(json["cases"][0]["roof"], 0.5);
  EXPECT_GT(json["cases"][0]["details"]["pair 2"], 0);  // --repeats 2
  const Ran itself =
      run_bench(std::string(kSmall) + "--peer '" + cli_path() + " bench " + kSmall + "--json'");
  EXPECT_EQ(itself.exit_code, 0) << itself.output;
  EXPECT_THAT(itself.output, HasSubstr("pair 2"));
  EXPECT_EQ(run_bench(std::string(kSmall) + "--peer false").exit_code, 2);
}

TEST(BenchCommand, BadArgumentsAreRefusedInOneLine) {
  const Ran heads = run_bench("attention --heads 30");
  EXPECT_EQ(heads.exit_code, 2);
  EXPECT_THAT(heads.output, HasSubstr("heads: found 30, expected a multiple of kv-heads 8"));
  EXPECT_EQ(run_bench("attention --page-size none").exit_code, 2);
  EXPECT_EQ(run_bench("attention --dtype f64").exit_code, 2);
  EXPECT_EQ(run_bench("attention --cases every").exit_code, 2);
  EXPECT_EQ(run_bench("decode-model --shape gpt-9").exit_code, 2);
  EXPECT_EQ(run_bench("").exit_code, 2);
}

}  // namespace
}  // namespace kvcache::testing
