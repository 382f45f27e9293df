// The command line of `generate`: beams, running batches, and what it says to bad input.
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
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

class GenerateCommandTest : public ::testing::Test {
 protected:
  // `kvcache generate` on the qwen2_tied checkpoint.
  Ran run(const std::string& arguments) {
    const std::string error = directory_.path() + "/stderr";
    const std::string command = testing::cli_path() + " generate --threads 1 --model " +
                                testing::golden_directory("qwen2_tied") + " " + arguments + " 2> " +
                                error;
    Ran ran;
    FILE* pipe = ::popen(command.c_str(), "r");
    if (pipe == nullptr) return ran;
    char piece[4096];
    for (std::size_t n; (n = std::fread(piece, 1, sizeof(piece), pipe)) > 0;) {
      ran.out.append(piece, n);
    }
    const int state = ::pclose(pipe);
    ran.exit_code = WIFEXITED(state) ? WEXITSTATUS(state) : -1;
    ran.error = test::read_file(error);
    return ran;
  }

  nlohmann::json run_json(const std::string& arguments) {
    const Ran ran = run(arguments + " --json");
    EXPECT_EQ(ran.exit_code, 0) << arguments << ": " << ran.error;
    return nlohmann::json::parse(ran.out, nullptr, false);
  }

  test::TempDir directory_;
};

TEST_F(GenerateCommandTest, BadInputIsOneLineAndExitCodeTwo) {
  const std::string prompts = directory_.write("prompts", "one\ntwo\n");
  const std::string empty = directory_.write("empty", "\n\r\n\n");
  for (const std::string& arguments : std::vector<std::string>{
           "--prompt x --num-beams 0",
           "--prompt x --num-beams -2",
           "--prompt x --num-beams 1025",
           "--prompt x --num-beams 4 --temperature 0.7",
           "--prompt x --num-beams 4 --repeat-penalty 1.2",
           "--prompt x --num-beams 4 --stop y",
           "--prompt x --num-beams 4 --length-penalty nan",
           "--prompt x --num-beams 4 --cache batching",
           "--prompt x --num-beams 4 --cache functional",
           "--prompt x --num-beams 1000",
           "--num-beams 4 -f " + prompts,
           "--prompt x --max-active 2",
           "--prompt x --cache paged --max-active 2",
           "--prompt x --cache batching --max-active 0",
           "--max-active -1 -f " + prompts,
           "--max-active 65537 -f " + prompts,
           "--prefill-chunk -1 -f " + prompts,
           "--max-tokens 0 -f " + prompts,
           "--cache batching -f " + empty,
           "--prompt x --prefix-cache 0",
           "--prompt x --prefix-cache -1",
           "--prompt x --prefix-cache 12Gigs",
           "--prompt x --prefix-cache 100",
           "--prompt x --prefix-cache --cache dynamic",
           "--prefix-cache many -f " + prompts,
           "--cache batching -f " + directory_.path() + "/missing",
       }) {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.exit_code, 2) << arguments << ": " << ran.error;
    EXPECT_EQ(ran.out, "") << arguments;
    EXPECT_EQ(ran.error.substr(0, 9), "kvcache: ") << arguments << ": " << ran.error;
    EXPECT_EQ(std::count(ran.error.begin(), ran.error.end(), '\n'), 1) << ran.error;
  }
}

TEST_F(GenerateCommandTest, APromptOfABatchThatIsTooLongIsNamed) {
  std::string text = "short\n";
  for (int i = 0; i < 400; ++i) text += "0123456789 ";
  const Ran ran = run("-f " + directory_.write("prompts", text));
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_EQ(ran.error.substr(0, 13), "kvcache: [2] ") << ran.error;
}

TEST_F(GenerateCommandTest, EveryPromptOfAFileHasTheTokensOfItsRunAlone) {
  const std::vector<std::string> lines = {"In 1984 there", "x", "It's 12 o'clock, they say."};
  const std::string file =
      directory_.write("prompts", lines[0] + "\n\n" + lines[1] + "\r\n" + lines[2]);
  for (const std::string& flags : std::vector<std::string>{"", "--cache batching --max-active 1",
                                                           "--max-active 2 --prefill-chunk 3"}) {
    const auto together = run_json("--max-tokens 12 -f " + file + " " + flags);
    ASSERT_EQ(together.size(), 3u) << flags;
    for (std::size_t i = 0; i < 3; ++i) {
      const auto alone = run_json("--max-tokens 12 --prompt \"" + lines[i] + "\"");
      EXPECT_EQ(together[i].at("tokens"), alone.at("tokens")) << flags << " prompt " << i;
      EXPECT_EQ(together[i].at("text"), alone.at("text")) << flags << " prompt " << i;
      EXPECT_EQ(together[i].at("kv_bytes"), alone.at("kv_bytes")) << flags << " prompt " << i;
    }
  }
  const auto one = run_json("--max-tokens 12 --cache batching --prompt x");
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0].at("tokens"), run_json("--max-tokens 12 --prompt x").at("tokens"));
}

TEST_F(GenerateCommandTest, SixtyFourPromptsTogetherHaveTheTokensOfEachAfterTheOther) {
  std::string lines;
  for (int i = 0; i < 64; ++i) {
    lines += "In " + std::to_string(1900 + i) + " there was" + std::string(i % 7, '!') + "\n";
  }
  const std::string flags = "--max-tokens 10 -f " + directory_.write("prompts", lines);
  const auto together = run_json(flags + " --max-active 64");
  const auto one_by_one = run_json(flags + " --max-active 1");
  ASSERT_EQ(together.size(), 64u);
  for (std::size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(together[i].at("tokens"), one_by_one[i].at("tokens")) << i;
    EXPECT_EQ(together[i].at("stop_reason"), one_by_one[i].at("stop_reason")) << i;
    EXPECT_FALSE(together[i].contains("error")) << i;
  }
}

TEST_F(GenerateCommandTest, LinesOfABatchCarryTheNumberOfTheirPrompt) {
  const std::string file = directory_.write("prompts", "In 1984 there\nx\nthey say\n");
  const Ran ran = run("--max-tokens 40 -f " + file);
  ASSERT_EQ(ran.exit_code, 0) << ran.error;
  const auto json = run_json("--max-tokens 40 -f " + file);
  std::vector<std::string> texts(3);
  std::size_t at = 0;
  while (at < ran.out.size()) {
    const std::size_t end = ran.out.find('\n', at);
    ASSERT_NE(end, std::string::npos) << "an unfinished line";
    const std::string line = ran.out.substr(at, end - at);
    at = end + 1;
    ASSERT_GE(line.size(), 4u) << line;
    ASSERT_TRUE(line[0] == '[' && line[1] >= '1' && line[1] <= '3' && line[2] == ']') << line;
    texts[static_cast<std::size_t>(line[1] - '1')] += line.substr(4) + "\n";
  }
  for (std::size_t i = 0; i < 3; ++i) {
    std::string expected = json[i].at("text").get<std::string>();
    if (!expected.empty() && expected.back() != '\n') expected += "\n";
    EXPECT_EQ(texts[i], expected);
  }
}

TEST_F(GenerateCommandTest, AFileIsOnePromptWhereAnotherCacheIsNamed) {
  const std::string file = directory_.write("prompts", "one\ntwo\n");
  for (const char* cache : {"none", "dynamic", "static", "paged", "functional"}) {
    const auto json = run_json("--max-tokens 8 -f " + file + " --cache " + cache);
    ASSERT_TRUE(json.is_object()) << cache;
    EXPECT_EQ(json.at("tokens"), run_json("--max-tokens 8 --cache paged -f " + file).at("tokens"));
  }
}

TEST_F(GenerateCommandTest, BeamsAreTransformers) {
  const auto golden = testing::load_golden("qwen2_tied");
  const auto& prompt = golden.prompts.front();
  const std::string file = directory_.write("prompt", prompt.text);
  for (const char* cache : {"none", "dynamic", "static", "paged"}) {
    const auto json = run_json("--num-beams 4 --length-penalty 1 --max-tokens 24 --cache " +
                               std::string(cache) + " -f " + file);
    ASSERT_EQ(json.at("beams").size(), 4u);
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(json["beams"][i].at("tokens"), prompt.beam4.sequences[i]) << cache;
      EXPECT_NEAR(json["beams"][i].at("score"), prompt.beam4.scores[i], 2e-4) << cache;
    }
    EXPECT_EQ(json.at("stop_reason"), "eos");
  }
}

TEST_F(GenerateCommandTest, PromptsThatBeginAlikeComputeWhatTheyShareOnce) {
  const std::string begin = "Once upon a time there was a fox who lived by the sea and ";
  const std::string prompts = directory_.write(
      "prompts", begin + "sang.\n" + begin + "swam every day.\n" + begin + "sang.\nNo.\n");
  const std::string arguments = "--max-tokens 8 --page-size 4 -f " + prompts;
  const auto whole = run_json(arguments + " --no-prefix-cache");
  ASSERT_EQ(whole.size(), 4u);
  for (const char* flags : {"", " --prefix-cache", " --prefix-cache 64MiB", " --prefix-cache=1",
                            " --prefix-policy adaptive"}) {
    const auto shared = run_json(arguments + flags);
    ASSERT_EQ(shared.size(), 4u) << flags;
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(shared[i]["tokens"], whole[i]["tokens"]) << flags << i;
      EXPECT_EQ(shared[i]["prompt_tokens"], whole[i]["prompt_tokens"]);
      EXPECT_EQ(whole[i]["reused_tokens"], 0);
      const bool shares = i == 1 || i == 2;
      EXPECT_EQ(shared[i]["reused_tokens"].get<int>() >= 8, shares) << flags << i;
    }
  }
  const Ran ran = run(arguments);
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_NE(ran.error.find("prompt tokens reused"), std::string::npos) << ran.error;
  EXPECT_NE(ran.error.find("prefix cache: "), std::string::npos) << ran.error;
}

TEST_F(GenerateCommandTest, OnePromptWithAPrefixCacheIsThatWithout) {
  const auto plain = run_json("--prompt 'Once upon a time' --max-tokens 12 --cache paged");
  for (const char* flags : {"--prefix-cache", "--prefix-cache 1MiB", "--prefix-cache 4194304TiB",
                            "--no-prefix-cache", "--prefix-cache --cache paged"}) {
    const auto ran = run_json("--prompt 'Once upon a time' --max-tokens 12 " + std::string(flags));
    EXPECT_EQ(ran["tokens"], plain["tokens"]) << flags;
    EXPECT_EQ(ran["kv_bytes"], plain["kv_bytes"]) << flags;
    EXPECT_EQ(ran["reused_tokens"], 0) << flags;
  }
  EXPECT_EQ(run("--prompt x --prefix-cache --no-prefix-cache").exit_code, 2);
  EXPECT_EQ(run("--prompt x --prefix-policy arc").exit_code, 2) << "without anything to rule";
  EXPECT_EQ(run("--prompt x --prefix-cache --prefix-policy fifo").exit_code, 2);
}

TEST_F(GenerateCommandTest, APromptSavedOnceIsNotComputedAgain) {
  const std::string file = directory_.path() + "/prompt.kvc";
  const std::string begin = "Once upon a time there was a fox";
  const auto saved = run_json("--prompt '" + begin + "' --max-tokens 4 --save-cache " + file);
  const std::string longer = "--prompt '" + begin + " who lived' --max-tokens 12 --cache paged";
  const auto whole = run_json(longer);
  for (const char* more : {"", " --page-size 4", " --layout nhd --page-size 64"}) {
    const auto loaded = run_json(longer + more + " --load-cache " + file);
    EXPECT_EQ(loaded["tokens"], whole["tokens"]) << more;
    EXPECT_GE(loaded["reused_tokens"].get<int>(), saved["prompt_tokens"].get<int>() - 2) << more;
  }
  // A file of other rows is refused by name, as is one that is damaged or not there.
  for (const auto& [flags, words] : std::vector<std::pair<std::string, std::string>>{
           {"--kv-dtype int8 --load-cache " + file, "layers[0].buffers[0].form: found plain"},
           {"--weights int8 --load-cache " + file, "namespace: found "},
           {"--load-cache " + file + ".none", "No such file"},
           {"--cache dynamic --load-cache " + file,
            "load-cache: found cache dynamic, expected paged\n"},
           {"--cache batching --load-cache " + file,
            "load-cache: found a running batch, expected one prompt"},
           {"--cache batching --save-cache " + file,
            "save-cache: found a running batch, expected one prompt"},
           {"--cache dynamic --prefix-cache", "found cache dynamic, expected paged or batching"},
           {"--no-prefix-cache --load-cache " + file, "no-prefix-cache: found it beside"},
           {"--load-cache " + directory_.write("other", "text"), "file: found 4"}}) {
    const Ran ran = run("--prompt x --max-tokens 2 " + flags);
    EXPECT_EQ(ran.exit_code, 2) << flags << ran.error;
    EXPECT_NE(ran.error.find(words), std::string::npos) << ran.error;
  }
}

// A text that the prefix cache has no room for goes past it, so that there are no rows to save and
// nothing is begun with: said before anything is computed.
TEST_F(GenerateCommandTest, AFileOfATextWithoutRoomIsRefusedAndNotWritten) {
  const std::string file = directory_.path() + "/none.kvc";
  const std::string prompt = "--prompt 'Once upon a time there was a fox' --max-tokens 60 ";
  const Ran ran = run(prompt + "--prefix-cache 20KiB --save-cache " + file);
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_NE(ran.error.find(
                "prefix-cache: found 20.0 KiB, room for 16 tokens, expected room for 96, 48.0 KiB"),
            std::string::npos)
      << ran.error;
  EXPECT_EQ(ran.out, "");
  EXPECT_FALSE(std::filesystem::exists(file));

  const Ran saved = run(prompt + "--prefix-cache 4MiB --save-cache " + file);
  EXPECT_EQ(saved.exit_code, 0) << saved.error;
  EXPECT_NE(saved.error.find(file + ": 51 tokens"), std::string::npos) << saved.error;
  for (const char* room : {"50KiB", "20KiB"}) {  // not what is new, and not even the file
    const std::string words = "--prompt 'Once upon a time there was a fox' --max-tokens 90 ";
    const Ran loaded = run(words + "--load-cache " + file + " --prefix-cache " + room);
    EXPECT_NE(loaded.exit_code, 0) << room;
    EXPECT_EQ(loaded.out, "") << room;
  }
}

TEST_F(GenerateCommandTest, AFileOfATextIsOfItsRowsWhereverItEnds) {
  const std::string file = directory_.path() + "/text.kvc";
  for (const char* flags : {"--max-tokens 1", "--max-tokens 30", "--max-tokens 30 --num-beams 3",
                            "--max-tokens 30 --prefill-chunk 3"}) {
    const auto saved =
        run_json("--prompt 'Once upon a time' " + std::string(flags) + " --save-cache " + file);
    const Ran ran = run("--prompt 'Once upon a time' --max-tokens 1 --load-cache " + file);
    const auto prompt = saved["prompt_tokens"].get<std::size_t>();
    const auto most = prompt + saved["tokens"].size() - 1;
    std::size_t tokens = 0;
    ASSERT_EQ(std::sscanf(ran.error.c_str() + ran.error.find(": ") + 2, "%zu tokens", &tokens), 1)
        << ran.error;
    EXPECT_LE(tokens, most) << flags;
    EXPECT_GE(tokens, saved.contains("beams") ? prompt : most) << flags;
  }
}

TEST_F(GenerateCommandTest, AnAmountOfMemoryIsReadExactlyAsPythonReadsIt) {
  for (const auto& [amount, bytes] :
       std::vector<std::pair<std::string, std::string>>{{"100", "100"},
                                                        {"1.001KB", "1001"},
                                                        {" 0.1 kb ", "100"},
                                                        {"0.999999999999999999K", "1023"},
                                                        {"7B", "7"}}) {
    const Ran ran = run("--prompt x --prefix-cache '" + amount + "'");
    EXPECT_EQ(ran.exit_code, 2) << amount;
    EXPECT_NE(ran.error.find("prefix_cache: found " + bytes + ", expected at least"),
              std::string::npos)
        << amount << ran.error;
  }
  for (const char* amount : {".5GiB", "1.GiB", "1.5.5GiB", "-1", "+1", "1e9", "inf", "nan", "0x10",
                             "1 2", "GiB", "2 Gigs", "0", "0.2", "4611686018427387905",
                             "99999999TiB", "18446744073709551617", "99999999999999999990"}) {
    const Ran ran = run("--prompt x --prefix-cache='" + std::string(amount) + "'");
    EXPECT_EQ(ran.exit_code, 2) << amount;
    EXPECT_NE(ran.error.find("found " + std::string(amount)), std::string::npos) << ran.error;
    EXPECT_NE(ran.error.find("expected 1 byte .. 2^62"), std::string::npos) << ran.error;
  }
}

}  // namespace
}  // namespace kvcache
