#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/options.h"
#include "apps/cli/picture.h"
#include "runner/eval/eval.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::cli {
namespace {

using runner::EvalRun;
using Json = nlohmann::ordered_json;

struct Flags {
  ModelFlags model;
  std::string text;
  std::vector<std::string> kv_dtypes = {
      "f16",           "int8", "int8-rotated", "q8_0",           "fp8_e4m3", "k=int8,v=lm4",
      "k=int8,v=int4", "lm4",  "int4",         "int4-unrotated", "q4_0",     "q4_0-rotated",
  };
  std::int64_t residual_tokens = 0;
  std::int64_t tokens = 20000;
  runner::EvalOptions options;
  std::string plot;
  bool json = false;
};

// The beginning of a text, whole characters, long enough for so many tokens: nobody waits for the
// tokens of a book of which a chapter is read.
std::string_view beginning(std::string_view text, std::int64_t tokens) {
  constexpr std::size_t kBytesOfAToken = 16;  // far more than a token of running text has
  const std::size_t most = static_cast<std::size_t>(tokens) * kBytesOfAToken;
  if (text.size() <= most) return text;
  std::size_t end = most;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

Json to_json(const std::vector<EvalRun>& runs, const Flags& flags) {
  Json json;
  json["context"] = flags.options.context;
  json["residual_tokens"] = flags.residual_tokens;
  json["predicted"] = runs.front().predicted;
  json["runs"] = Json::array();
  for (const EvalRun& run : runs) {
    json["runs"].push_back({{"kv_dtype", run.words},
                            {"token_bytes", run.token_bytes},
                            {"perplexity", run.perplexity},
                            {"divergence", run.divergence},
                            {"same_top", run.same_top},
                            {"greedy_tokens", run.greedy_tokens},
                            {"first_difference", run.first_difference},
                            {"prefill_tokens_per_s", run.prefill_tokens_per_s()},
                            {"decode_tokens_per_s", run.decode_tokens_per_s()}});
  }
  return json;
}

void print_table(const std::vector<EvalRun>& runs, const Flags& flags) {
  const EvalRun& reference = runs.front();
  std::vector<std::vector<std::string>> rows = {{"rows", "bytes a token", "of bf16", "perplexity",
                                                 "more", "KL", "same top", "greedy differs at",
                                                 "decode tokens/s", "prompt tokens/s"}};
  for (const EvalRun& run : runs) {
    rows.push_back(
        {run.words, with_thousands(run.token_bytes),
         fmt::format("{:.3f}", static_cast<double>(run.token_bytes) /
                                   static_cast<double>(reference.token_bytes)),
         fmt::format("{:.4f}", run.perplexity),
         fmt::format("{:+.2f} %", 100 * (run.perplexity / reference.perplexity - 1)),
         fmt::format("{:.2e}", run.divergence), fmt::format("{:.2f} %", 100 * run.same_top),
         run.greedy_tokens == 0                      ? "-"
         : run.first_difference == run.greedy_tokens ? "never"
                                                     : std::to_string(run.first_difference),
         fmt::format("{:.1f}", run.decode_tokens_per_s()),
         fmt::format("{:.1f}", run.prefill_tokens_per_s())});
  }
  print("{}\n", table(rows));
  print(
      "{} tokens foretold in windows of {}, {} a step, over stored rows. KL is the mean of\n"
      "KL(bf16 || rows) of the next token, in nats; greedy: of {} tokens decoded behind half a "
      "window.\n",
      with_thousands(reference.predicted), flags.options.context, flags.options.prefill_chunk,
      reference.greedy_tokens);
  if (flags.residual_tokens > 0) {
    print("Of coded rows the newest {}, and those of a step, are plain.\n", flags.residual_tokens);
  }
}

Status run(Flags& flags) {
  for (const std::string& words : flags.kv_dtypes) {
    KVC_ASSIGN_OR_RETURN(runner::KvDtype form, runner::KvDtype::parse(words));
    if (form.is_coded()) form.keep_plain(flags.residual_tokens);
    flags.options.forms.push_back(std::move(form));
  }
  KVC_ASSIGN_OR_RETURN(const std::string text, read_input(flags.text));
  if (const auto at = runner::find_invalid_utf8(text)) {
    return Status(StatusCode::kInvalidArgument, flags.text + ": at byte " + std::to_string(*at) +
                                                    ": found no UTF-8, expected UTF-8");
  }
  KVC_ASSIGN_OR_RETURN(const Threads threads, Threads::create(flags.model.threads));
  flags.options.context_of_work = threads.context();
  KVC_ASSIGN_OR_RETURN(const runner::LoadedModel loaded, load(flags.model));
  KVC_ASSIGN_OR_RETURN(std::vector<std::int32_t> tokens,
                       loaded.tokenizer.encode(beginning(text, flags.tokens)));
  if (static_cast<std::int64_t>(tokens.size()) > flags.tokens) {
    tokens.resize(static_cast<std::size_t>(flags.tokens));
  }
  ProgressBar bar("eval");
  KVC_ASSIGN_OR_RETURN(
      const std::vector<EvalRun> runs,
      runner::evaluate(loaded.model, tokens, flags.options,
                       [&](std::int64_t done, std::int64_t total) { bar.update(done, total); }));
  bar.clear();
  if (flags.json) {
    print("{}\n", to_json(runs, flags).dump());
  } else {
    print_table(runs, flags);
  }
  std::fflush(stdout);
  if (flags.plot.empty()) return {};
  return draw("eval", to_json(runs, flags).dump(), flags.plot);
}

}  // namespace

void add_eval(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "eval", "What forms of stored rows cost in quality, on a text, beside 16-bit rows");
  command->footer(
      "Texts: a book of Debian, `apt-get install bible-kjv`, then\n"
      "  bible -f gen1:1-rev22:21 > bible.txt\n"
      "or stories that the model that ships never read,\n"
      "  python3 tools/storyteller/grammar.py --corpus --seed 11 --stories 60 > stories.txt");
  flags->model.add_model(*command);
  command->add_option("--text", flags->text, "The text to read (- for stdin)")
      ->type_name("FILE")
      ->required();
  command
      ->add_option("--kv-dtype", flags->kv_dtypes,
                   "Forms to compare, several words, each as other commands take it (int8, "
                   "k=int8,v=lm4, int8:0-3,lm4, @FILE) [every form]")
      ->type_name("FORMS");
  add_residual_tokens(*command, flags->residual_tokens);
  add_number(*command, "--tokens", flags->tokens, "Tokens of the text at the most")
      ->type_name("N")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  add_number(*command, "--context", flags->options.context, "Tokens of a window")
      ->type_name("N")
      ->capture_default_str();
  add_number(*command, "--prefill-chunk", flags->options.prefill_chunk, "Tokens a step takes")
      ->type_name("C")
      ->capture_default_str();
  add_number(*command, "--greedy", flags->options.greedy_tokens, "Tokens decoded greedily; 0: none")
      ->type_name("N")
      ->capture_default_str();
  add_number(*command, "--page-size", flags->options.page_size, "Tokens a page holds")
      ->type_name("P")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  flags->model.add_threads(*command);
  command->add_option("--plot", flags->plot, "Draw quality against bytes (needs matplotlib)")
      ->type_name("FILE.png");
  command->add_flag("--json", flags->json, "Print one JSON object instead");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
