#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/options.h"
#include "apps/cli/picture.h"
#include "runner/compare/compare.h"

namespace kvcache::cli {
namespace {

using runner::CompareRun;
using runner::HistoryKind;
using Json = nlohmann::ordered_json;

constexpr const char* kDefaultPrompt = "Once upon a time";

struct Flags {
  ModelFlags model;
  PromptFlags prompt;
  StorageFlags storage;
  runner::GenerateOptions options;
  std::int64_t turns = 1;
  std::string plot;
  bool json = false;
};

Json to_json(const std::vector<CompareRun>& runs, std::int64_t turns, bool with_trace) {
  Json json;
  json["turns"] = turns;
  json["prompt_tokens"] = runs.front().generated.prompt_tokens;
  json["runs"] = Json::array();
  for (const CompareRun& run : runs) {
    if (with_trace && run.generated.trace.empty()) continue;  // a batch
    Json entry;
    entry["cache"] = name_of(run.cache);
    entry["same_tokens"] = run.same_tokens;
    entry["prefill_ms"] = run.prefill_ms();
    entry["decode_tokens_per_s"] = run.decode_tokens_per_s();
    entry["kv_bytes"] = run.generated.usage.nbytes;
    entry["rows_computed"] = run.generated.counters.rows_computed;
    entry["rows_read"] = run.generated.counters.rows_read;
    entry["bytes_copied"] = run.generated.usage.copied_bytes;
    for (const runner::ComparedRequest& request : run.requests) {
      entry["requests"].push_back({{"prompt_tokens", request.prompt_tokens},
                                   {"new_tokens", request.new_tokens},
                                   {"same_tokens", request.same_tokens}});
    }
    if (with_trace) {
      entry["trace"] = Json::array();
      for (const runner::TokenTrace& token : run.generated.trace) {
        entry["trace"].push_back({{"position", token.position},
                                  {"ms", token.seconds * 1e3},
                                  {"rows_computed", token.rows_computed}});
      }
    }
    json["runs"].push_back(std::move(entry));
  }
  return json;
}

// The requests of a running batch, in a sentence.
void print_requests(const CompareRun& run) {
  if (run.requests.empty()) return;
  std::string lengths;
  std::string same;
  for (std::size_t i = 0; i < run.requests.size(); ++i) {
    const bool last = i + 1 == run.requests.size();
    const char* before = i == 0 ? "" : last ? " and " : ", ";
    lengths += fmt::format("{}{}", before, run.requests[i].prompt_tokens);
    same += fmt::format("{}{}", before, run.requests[i].same_tokens ? "yes" : "NO");
  }
  print("\n{}: prompts of {} tokens together; same words as each alone: {}. Its counts are sums.\n",
        name_of(run.cache), lengths, same);
}

void print_table(const std::vector<CompareRun>& runs, std::int64_t turns) {
  std::vector<std::vector<std::string>> rows = {{"cache", "same words", "prefill ms",
                                                 "decode tokens/s", "KV bytes", "rows computed",
                                                 "rows read", "bytes copied"}};
  for (const CompareRun& run : runs) {
    rows.push_back({name_of(run.cache),
                    run.cache == HistoryKind::kNone ? "-"
                    : run.same_tokens               ? "yes"
                                                    : "NO",
                    fmt::format("{:.1f}", run.prefill_ms()),
                    fmt::format("{:.1f}", run.decode_tokens_per_s()),
                    with_thousands(run.generated.usage.nbytes),
                    with_thousands(run.generated.counters.rows_computed),
                    with_thousands(run.generated.counters.rows_read),
                    with_thousands(run.generated.usage.copied_bytes)});
  }
  print("\n{}", table(rows));
  if (turns > 1) print("\nTimes are the least of {} turns, token by token.\n", turns);
  for (const CompareRun& run : runs) print_requests(run);
  const auto& without = runs[0].generated;
  const auto& with = runs[1].generated;
  print(
      "\nPrompt of {} tokens, {} new ones. Rows are counted, per layer: without a cache every "
      "step\n"
      "computes the keys and values of the whole text again, {} rows in all; with one a step\n"
      "computes its own, {} in all: {:.0f} times fewer.\n",
      without.prompt_tokens, without.tokens.size(), with_thousands(without.counters.rows_computed),
      with_thousands(with.counters.rows_computed),
      static_cast<double>(without.counters.rows_computed) /
          static_cast<double>(with.counters.rows_computed));
}

Status run(Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::string prompt, flags.prompt.read(kDefaultPrompt));
  flags.options.layout = flags.storage.parsed_layout();
  KVC_ASSIGN_OR_RETURN(flags.options.kv_dtype, flags.storage.parsed_dtype());
  flags.options.page_size = flags.storage.page_size;
  KVC_ASSIGN_OR_RETURN(const Threads threads, Threads::create(flags.model.threads));
  flags.options.context = threads.context();
  KVC_ASSIGN_OR_RETURN(const runner::LoadedModel loaded, load(flags.model));
  KVC_ASSIGN_OR_RETURN(const std::vector<std::int32_t> tokens, loaded.tokenizer.encode(prompt));
  // Before anything is printed.
  KVC_RETURN_IF_ERROR(runner::check_prompt(loaded.model.config(), tokens));
  KVC_RETURN_IF_ERROR(runner::check_options(flags.options));

  std::unique_ptr<ProgressBar> bar;
  runner::CompareCallbacks callbacks;
  // The words appear as they are written, first without a cache and then with one; the other kinds
  // show a bar.
  const auto written = [&](HistoryKind cache) {
    return !flags.json && (cache == HistoryKind::kNone || cache == HistoryKind::kDynamic);
  };
  bool shown = false;  // the words of the run that is under way are
  callbacks.on_run = [&](HistoryKind cache, std::int64_t turn) {
    bar = std::make_unique<ProgressBar>(name_of(cache));
    shown = turn == 0 && written(cache);
    if (!shown) return;
    print("{}{}:\n{}", cache == HistoryKind::kNone ? "" : "\n\n",
          cache == HistoryKind::kNone ? "Without a cache" : "With a cache", prompt);
    std::fflush(stdout);
  };
  callbacks.on_text = [&](HistoryKind, std::string_view text) {
    if (!shown) return;
    print("{}", text);
    std::fflush(stdout);
  };
  callbacks.on_progress = [&](HistoryKind, std::int64_t done, std::int64_t total) {
    if (!shown) bar->update(done, total);
  };
  KVC_ASSIGN_OR_RETURN(const std::vector<CompareRun> runs,
                       runner::compare(loaded.model, loaded.tokenizer, tokens, flags.options,
                                       flags.turns, callbacks));
  bar.reset();
  if (flags.json) {
    print("{}\n", to_json(runs, flags.turns, false).dump());
  } else {
    print("\n");
    print_table(runs, flags.turns);
  }
  std::fflush(stdout);
  if (!flags.plot.empty()) {
    KVC_RETURN_IF_ERROR(draw("compare", to_json(runs, flags.turns, true).dump(), flags.plot));
  }
  for (const CompareRun& each : runs) {
    if (!each.same_tokens) {
      return Status(StatusCode::kInternal,
                    std::string(name_of(each.cache)) + ": found other tokens than " +
                        (each.requests.empty() ? "without a cache" : "each request alone"));
    }
  }
  return {};
}

}  // namespace

void add_compare(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "compare", "The same prompt without a cache and with each kind: same words, other cost");
  flags->prompt.add(*command);
  add_number(*command, "--max-tokens", flags->options.max_tokens, "New tokens of each run")
      ->type_name("N")
      ->capture_default_str();
  flags->model.add_model(*command);
  flags->storage.add(*command);
  add_number(*command, "--prefill-chunk", flags->options.prefill_chunk,
             "Prompt tokens a step takes; 0: all at once")
      ->type_name("C")
      ->capture_default_str();
  add_number(*command, "--turns", flags->turns,
             "Do it all N times and count each token's least time: neighbours only add")
      ->type_name("N")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  flags->model.add_threads(*command);
  command
      ->add_option("--plot", flags->plot,
                   "Draw time per token and rows computed against position (needs matplotlib)")
      ->type_name("FILE.png");
  command->add_flag("--json", flags->json, "Print one JSON object instead");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
