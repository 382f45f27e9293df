// The command line as a newcomer types it: words and numbers that are wrong, output that is lost,
// JSON that stays alone on stdout.
#include <sys/wait.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/golden_checkpoint.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace kvcache {
namespace {

struct Ran {
  int exit_code = -1;
  std::string out;
  std::string error;
};

class CommandTest : public ::testing::Test {
 protected:
  // `kvcache` with these words; stdout goes to `to`, or into the result. `more` redirects further.
  Ran run(const std::string& words, const std::string& to = "", const std::string& more = "") {
    const std::string out = to.empty() ? directory_.path() + "/stdout" : to;
    const std::string error = directory_.path() + "/stderr";
    std::ofstream(error).close();
    const std::string command = program_ + " " + words + " > " + out + " 2> " + error + " " + more;
    const int state = std::system(command.c_str());
    Ran ran;
    ran.exit_code = WIFEXITED(state) ? WEXITSTATUS(state) : -1;
    if (to.empty()) ran.out = test::read_file(out);
    ran.error = test::read_file(error);
    return ran;
  }

  const std::string model_ = " --model " + testing::golden_directory("qwen2_tied") + " ";
  std::string program_ = testing::cli_path();
  test::TempDir directory_;
};

TEST_F(CommandTest, BadWordsAndNumbersAreOneLineAndExitCodeTwo) {
  for (const std::string& words : std::vector<std::string>{
           "",
           "genrate --prompt x",
           "info --jsno",
           "plan --context 0",
           "plan --context -1",
           "plan --batch 0",
           "plan --page-size 0",
           "plan --kv-dtype f64",
           "plan --weights int4",
           "info --model " + directory_.path() + "/missing",
           "plan --model " + directory_.path() + "/missing",
           // More bytes, and more rows to count, than 63 bits hold.
           "plan --context 2147483648 --batch 1048576" + model_,
           "generate --prompt x --seed -1",
           "generate --prompt x --stop \"$(printf '\\200')\"",
           "generate --prompt x -f y",
           "compare --prompt x --max-tokens 0" + model_,
           "watch --prompt x --max-tokens 0" + model_,
           "compare --prompt x --turns 0" + model_,
           "bench",
           "bench attention --page-size 0",
       }) {
    const Ran ran = run(words);
    EXPECT_EQ(ran.exit_code, 2) << words << ": " << ran.error;
    EXPECT_EQ(ran.out, "") << words;
    ASSERT_GE(ran.error.size(), 9u) << words;
    // `plan` may say before that the model itself stops earlier.
    const std::size_t last = ran.error.rfind('\n', ran.error.size() - 2);
    EXPECT_EQ(ran.error.substr(last + 1, 9), "kvcache: ") << words << ": " << ran.error;
    if (words.rfind("plan --context 2147483648", 0) == 0) continue;
    EXPECT_EQ(std::count(ran.error.begin(), ran.error.end(), '\n'), 1) << words << ran.error;
  }
  EXPECT_NE(run("genrate").error.find("found genrate, expected one of generate"),
            std::string::npos);
}

TEST_F(CommandTest, AModelIsFoundByItsName) {
  const std::string words = "generate --json --prompt x --max-tokens 2";
  const Ran shipped = run(words);
  const Ran named = run(words + " --model storyteller");
  ASSERT_EQ(named.exit_code, 0) << named.error;
  EXPECT_EQ(nlohmann::json::parse(named.out)["tokens"],
            nlohmann::json::parse(shipped.out)["tokens"]);
}

TEST_F(CommandTest, AFetchedModelThatIsNotThereSaysHowToFetchIt) {
  // A copy of the program elsewhere has no folder of models beside it, but one made here.
  const std::filesystem::path bin = std::filesystem::path(directory_.path()) / "bin";
  std::filesystem::create_directory(bin);
  std::filesystem::copy_file(testing::cli_path(), bin / "kvcache");
  program_ = (bin / "kvcache").string();
  for (const char* command :
       {"generate --prompt x", "compare", "watch --prompt x", "plan", "info"}) {
    const Ran ran = run(std::string(command) + " --model smollm2");
    EXPECT_EQ(ran.exit_code, 2) << command;
    EXPECT_EQ(ran.error,
              "kvcache: model: found no smollm2 here yet, expected it fetched: ./dev model "
              "smollm2\n");
  }
  const auto fetched = bin.parent_path() / "share" / "kvcache" / "fetched";
  std::filesystem::create_directories(fetched);
  std::filesystem::create_directory_symlink(testing::golden_directory("qwen2_tied"),
                                            fetched / "smollm2");
  const Ran ran = run("generate --prompt x --max-tokens 2 --model smollm2");
  EXPECT_EQ(ran.exit_code, 0) << ran.error;
}

TEST_F(CommandTest, HelpIsNoError) {
  for (const char* words : {"--help", "--version", "generate --help", "compare --help",
                            "watch --help", "plan --help", "info --help", "bench --help"}) {
    const Ran ran = run(words);
    EXPECT_EQ(ran.exit_code, 0) << words;
    EXPECT_NE(ran.out, "") << words;
    EXPECT_EQ(ran.error, "") << words;
  }
}

TEST_F(CommandTest, OutputThatFindsNoRoomIsAFailure) {
  for (const std::string& words :
       std::vector<std::string>{"info", "info --json", "--help", "plan" + model_,
                                "generate --prompt x --max-tokens 2 --json" + model_}) {
    const Ran ran = run(words, "/dev/full");
    EXPECT_EQ(ran.exit_code, 1) << words;
    EXPECT_NE(ran.error.find("stdout"), std::string::npos) << words << ": " << ran.error;
  }
}

TEST_F(CommandTest, WhatStderrDoesNotTakeChangesNothingElse) {
  const std::string many = directory_.write("many", "one\ntwo\n");
  for (const std::string& words : std::vector<std::string>{
           "--version", "genrate", "info --jsno", "info --json", "plan --context 100000" + model_,
           "plan --model " + directory_.path() + "/missing",
           "generate --prompt x --max-tokens 2" + model_,
           "generate -f " + many + " --max-tokens 2" + model_,
           "generate --prompt x --max-tokens 0" + model_,
           "compare --prompt x --max-tokens 2 --json" + model_,
           "compare --prompt x --max-tokens 2 --plot /nowhere/p.png" + model_,
           "watch --prompt x --max-tokens 2" + model_, "bench nothing"}) {
    const Ran normal = run(words);
    for (const char* lost : {"2>/dev/full", "2>&-", "2>&- <&-"}) {
      const Ran ran = run(words, "", lost);
      EXPECT_EQ(ran.exit_code, normal.exit_code) << words << lost;
      // What is measured differs from run to run.
      if (words.find("compare") != std::string::npos || words == "info --json") continue;
      EXPECT_EQ(ran.out, normal.out) << words << lost;
    }
  }
}

TEST_F(CommandTest, AClosedStdoutIsAFailureAndNoFileTakesItsPlace) {
  for (const std::string& words : std::vector<std::string>{
           "info", "--help", "plan" + model_, "generate --prompt x --max-tokens 2" + model_}) {
    EXPECT_EQ(run(words, "", ">&-").exit_code, 1) << words;
    EXPECT_NE(run(words, "", ">&-").error.find("stdout"), std::string::npos) << words;
    EXPECT_EQ(run(words, "", ">&- 2>&- <&-").exit_code, 1) << words;
  }
}

TEST_F(CommandTest, AStdinThatCannotBeReadIsNoEmptyPrompt) {
  for (const char* from : {"<&-", "</"}) {
    for (const char* command : {"generate", "compare", "watch"}) {
      const Ran ran = run(std::string(command) + " -f - --max-tokens 2" + model_, "", from);
      EXPECT_EQ(ran.exit_code, 1) << command << from;
      EXPECT_EQ(ran.error.rfind("kvcache: stdin: reading failed: ", 0), 0u) << ran.error;
    }
  }
}

// Every option that --help shows with a number.
TEST_F(CommandTest, NumbersAreDecimalAndFitOrAreRefused) {
  const std::regex option(R"(\n  (?:-\w,)?(--[a-z0-9-]+) ([^\s:]+))");
  int numbers = 0;
  for (const std::string command :
       {"generate", "compare", "watch", "plan", "eval", "replay", "info", "bench append",
        "bench attention", "bench prefill", "bench roofs", "bench linear", "bench decode-model",
        "bench prefix"}) {
    const Ran help = run(command + " --help");
    ASSERT_EQ(help.exit_code, 0) << command;
    for (std::sregex_iterator it(help.out.begin(), help.out.end(), option), end; it != end; ++it) {
      const std::string name = (*it)[1];
      const std::string type = (*it)[2];
      const bool is_page_size = name == "--page-size";
      if (!is_page_size &&
          (type.starts_with("TEXT") || type.starts_with("FILE") || type.starts_with("DIR") ||
           type.starts_with("CMD") || type.starts_with("FORMS") || type.starts_with("{"))) {
        continue;
      }
      ++numbers;
      for (const char* text : {"0x10", "1e", "ten", "1,000x", "123456789012345678901234e999"}) {
        const Ran ran = run(command + " " + name + " " + text);
        EXPECT_EQ(ran.exit_code, 2) << command << name << text;
        EXPECT_NE(ran.error.find(name), std::string::npos) << ran.error;
      }
    }
  }
  // A build with a sanitizer leaves `bench` out.
  const bool has_bench = run("--help").out.find("\n  bench") != std::string::npos;
  EXPECT_GT(numbers, has_bench ? 40 : 20);
  const auto tokens = [&](const std::string& words) {
    const Ran ran = run("generate --json --prompt 'one two' " + words + model_);
    EXPECT_EQ(ran.exit_code, 0) << words << ran.error;
    return nlohmann::json::parse(ran.out)["tokens"];
  };
  EXPECT_EQ(tokens("--max-tokens 010"), tokens("--max-tokens 10"));
  EXPECT_EQ(tokens("--max-tokens 3 --seed 0017 --temperature 1"),
            tokens("--max-tokens 3 --seed 17 --temperature 1"));
  tokens("--max-tokens 2 --seed 18446744073709551615");
  for (const char* words :
       {"--seed 18446744073709551616", "--seed -1", "--top-k 12345678901234567890123",
        "--temperature 0x1p3", "--temperature nan", "--top-p inf", "--max-tokens 1.5",
        "--max-tokens +5", "--max-tokens ' 5'"}) {
    const Ran ran = run(std::string("generate --prompt x ") + words + model_);
    EXPECT_EQ(ran.exit_code, 2) << words;
    EXPECT_NE(ran.error.find(", expected a "), std::string::npos) << ran.error;
    EXPECT_EQ(std::count(ran.error.begin(), ran.error.end(), '\n'), 1) << ran.error;
  }
}

TEST_F(CommandTest, JsonIsAloneOnStdout) {
  for (const std::string& words :
       std::vector<std::string>{"info --json", "plan --json --context 100000" + model_,
                                "compare --json --prompt x --max-tokens 1" + model_,
                                "compare --json --prompt x --turns 2 --max-tokens 3" + model_}) {
    const Ran ran = run(words);
    EXPECT_EQ(ran.exit_code, 0) << words << ": " << ran.error;
    EXPECT_FALSE(nlohmann::json::parse(ran.out, nullptr, false).is_discarded()) << ran.out;
  }
}

TEST_F(CommandTest, Int8WeightsAreCountedAndRunByEveryCommand) {
  const auto bytes = [&](const std::string& weights) {
    const Ran plan = run("plan --json --weights " + weights + model_);
    const Ran info = run("info --json --weights " + weights + model_);
    EXPECT_EQ(plan.exit_code, 0) << plan.error;
    EXPECT_EQ(info.exit_code, 0) << info.error;
    const auto planned = nlohmann::json::parse(plan.out);
    const auto told = nlohmann::json::parse(info.out);
    EXPECT_EQ(planned["weights"], weights);
    EXPECT_EQ(told["model"]["weights"], weights);
    EXPECT_EQ(told["model"]["weight_bytes"], planned["weight_bytes"]);
    return planned["weight_bytes"].get<std::int64_t>();
  };
  EXPECT_LT(bytes("int8"), bytes("f32") / 2);
  for (const char* words : {"generate --prompt x --max-tokens 3", "watch --prompt x --max-tokens 3",
                            "compare --prompt x --max-tokens 3"}) {
    const Ran ran = run(std::string(words) + " --weights int8" + model_);
    EXPECT_EQ(ran.exit_code, 0) << words << ": " << ran.error;
  }
}

TEST_F(CommandTest, AFileOfOneLineIsThatLine) {
  const std::string file = directory_.path() + "/prompt";
  const Ran typed = run("generate --prompt 'one two' --max-tokens 3 --json" + model_);
  ASSERT_EQ(typed.exit_code, 0) << typed.error;
  const auto tokens = nlohmann::json::parse(typed.out)["tokens"];
  for (const std::string end : {"", "\\n", "\\r\\n"}) {
    for (const std::string cache : {"", " --cache static"}) {
      ASSERT_EQ(std::system(("printf 'one two" + end + "' > " + file).c_str()), 0);
      const Ran read = run("generate -f " + file + " --max-tokens 3 --json" + cache + model_);
      ASSERT_EQ(read.exit_code, 0) << read.error;
      EXPECT_EQ(nlohmann::json::parse(read.out)["tokens"], tokens) << end << cache;
    }
  }
}

TEST_F(CommandTest, APictureThatCannotBeDrawnLeavesNoFileBehind) {
  const std::string picture = directory_.path() + "/picture.png";
  const std::string command = "PATH=" + directory_.path() + " " + testing::cli_path() +
                              " compare --prompt x --max-tokens 2 --plot " + picture + model_ +
                              " > /dev/null 2> /dev/null";
  const int state = std::system(command.c_str());
  EXPECT_NE(state, 0);
  EXPECT_EQ(test::read_file(picture + ".json"), "");
}

// What people plot and compare: a name is not changed unseen.
TEST_F(CommandTest, AReplayedTraceSaysWhatEachPolicyFoundAndWhatNoneCouldBeat) {
  const std::string trace = directory_.path() + "/trace.jsonl";
  {
    std::ofstream file(trace);
    for (int turn = 0; turn < 12; ++turn) {
      const int session = 10 + turn % 3;
      file << R"({"timestamp": 0, "input_length": 1500, "output_length": 9, "hash_ids": [0, )"
           << session << ", " << 100 + turn << "]}\n";
    }
  }
  const Ran ran = run("replay " + trace +
                      " --policy lru,s3fifo,arc,adaptive,belady,infinite --capacity-tokens 4096,1e5"
                      " --block 64 --json");
  ASSERT_EQ(ran.exit_code, 0) << ran.error;
  const auto runs = nlohmann::json::parse(ran.out)["runs"];
  ASSERT_EQ(runs.size(), 12U);
  for (const auto& each : runs) {
    const double found = each["token_hit_ratio"];
    EXPECT_GE(each["block_hit_ratio"], 0.0) << each;
    EXPECT_EQ(each["requests"], 12) << each;
    EXPECT_EQ(each["wrong_hits"], 0) << each;
    EXPECT_GE(each["ns_per_op"], 0.0) << each;
    EXPECT_LE(each["fraction_of_infinite"], 1.0) << each;
    // 0 and the block of the session, of three, from its second turn on; and 0 in its first.
    if (each["capacity_tokens"] == 100000) {
      EXPECT_NEAR(found, (9 * 1024 + 2 * 512) / 18000.0, 1e-9) << each;
      EXPECT_NEAR(each["fraction_of_belady"], 1, 1e-9) << each;
    } else if (each["policy"] != "infinite") {
      EXPECT_LE(each["fraction_of_belady"], 1 + 1e-9) << each;
    }
  }
  // Halves begin with an empty cache.
  for (const char* half : {"first", "second"}) {
    const Ran part = run("replay " + trace + " --capacity-tokens 1e5 --json --half " + half);
    ASSERT_EQ(part.exit_code, 0) << part.error;
    const auto found = nlohmann::json::parse(part.out)["runs"][0];
    EXPECT_EQ(found["requests"], 6);
    EXPECT_NEAR(found["token_hit_ratio"], (3 * 1024 + 2 * 512) / 9000.0, 1e-9);
  }
  EXPECT_EQ(run("replay " + trace + " --half third").exit_code, 2);
  EXPECT_EQ(run("replay " + directory_.path() + "/none").exit_code, 2);
  EXPECT_EQ(run("replay " + trace + " --policy fifo").exit_code, 2);
  EXPECT_EQ(run("replay " + trace + " --capacity-tokens 100").exit_code, 2);
  // What was measured is there, whether it can be drawn or not.
  const Ran undrawn = run("replay " + trace + " --plot /nowhere/p.png");
  EXPECT_EQ(undrawn.exit_code, 1);
  EXPECT_NE(undrawn.out.find("lru"), std::string::npos);
}

TEST_F(CommandTest, InspectSaysWhatIsInAFile) {
  const std::string golden = testing::source_dir() + "/tests/golden/formats/";
  const Ran words = run("inspect " + golden + "windows.kvc");
  EXPECT_EQ(words.exit_code, 0) << words.error;
  EXPECT_NE(words.out.find("260 tokens"), std::string::npos) << words.out;
  EXPECT_NE(words.out.find("a window of 9, 2 sinks, from position 252 on"), std::string::npos)
      << words.out;
  EXPECT_NE(words.out.find("sums: all 2 match"), std::string::npos) << words.out;
  const std::string svg = directory_.path() + "/a.svg";
  const Ran json = run("inspect " + golden + "forms.kvc --json --svg " + svg);
  const auto said = nlohmann::json::parse(json.out);
  EXPECT_EQ(said["length"], 21);
  EXPECT_EQ(said["layers"][2]["buffers"][0]["form"], "int4");
  EXPECT_EQ(said["sums_match"], true);
  EXPECT_NE(test::read_file(svg).find("<svg"), std::string::npos);
  const auto layers = nlohmann::json::parse(run("inspect " + golden + "layers.kvc --json").out);
  EXPECT_EQ(layers["kind"], "layers");
  EXPECT_EQ(layers["layers"][0]["batch"], 2);
  EXPECT_EQ(layers["layers"][1]["buffers"].size(), 0u);  // never populated
  EXPECT_EQ(layers["sums_match"], true);
  const auto texts = nlohmann::json::parse(run("inspect " + golden + "texts.kvc --json").out);
  EXPECT_EQ(texts["kind"], "texts");
  EXPECT_EQ(texts["namespaces"].size(), 2u);
  EXPECT_EQ(texts["pages"][3]["parent"], 1);
  EXPECT_EQ(texts["sums_match"], true);
  std::string damaged = test::read_file(golden + "plain.kvc");
  damaged[5000] = static_cast<char>(damaged[5000] ^ 1);
  const Ran bad = run("inspect " + directory_.write("bad.kvc", damaged));
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_NE(bad.error.find("bad.kvc: sum of block 0: found another"), std::string::npos)
      << bad.error;
}

}  // namespace
}  // namespace kvcache
