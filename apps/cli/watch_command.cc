#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/options.h"
#include "runner/compare/compare.h"
#include "runner/generate/generate.h"

namespace kvcache::cli {
namespace {

struct Flags {
  ModelFlags model;
  PromptFlags prompt;
  StorageFlags storage;
  runner::GenerateOptions options;
};

// A token's text on one line.
std::string visible(std::string_view text) {
  std::string shown;
  for (const char c : text) {
    if (c == '\n') {
      shown += "\\n";
    } else if (c == '\t') {
      shown += "\\t";
    } else if (c == '\r') {
      shown += "\\r";
    } else {
      shown += c;
    }
  }
  return shown;
}

Status run(Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::string prompt, flags.prompt.read());
  flags.options.cache = runner::HistoryKind::kPaged;
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

  print(
      "rows: K/V rows each layer computed for the token; the paged cache runs, the column\n"
      "without a cache is what that step would compute, the whole text.\n\n");
  print("{:>8}  {:>13}  {:>10}  {:>12}  {:>10}  {:>5}  {}\n", "position", "rows without",
        "rows with", "cache length", "bytes", "pages", "token");
  runner::GenerateCallbacks callbacks;
  callbacks.on_token = [&](const runner::TokenTrace& trace) {
    const std::int32_t ids[] = {trace.token};
    print("{:>8}  {:>13}  {:>10}  {:>12}  {:>10}  {:>5}  {}\n", trace.position, trace.position,
          trace.rows_computed, trace.cache_length, with_thousands(trace.usage.nbytes),
          trace.usage.pages, visible(loaded.tokenizer.decode(ids)));
    std::fflush(stdout);
  };
  KVC_ASSIGN_OR_RETURN(
      const runner::GenerateResult result,
      runner::generate(loaded.model, loaded.tokenizer, tokens, flags.options, callbacks));
  const auto sampled = static_cast<std::int64_t>(result.trace.size());
  const std::int64_t without =
      runner::expected_rows_computed(runner::HistoryKind::kNone, result.prompt_tokens, sampled);
  print("\nIn all {} rows a layer; without a cache it would have been {}, {:.1f} times as many.\n",
        with_thousands(result.counters.rows_computed), with_thousands(without),
        static_cast<double>(without) / static_cast<double>(result.counters.rows_computed));
  return {};
}

}  // namespace

void add_watch(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  flags->options.max_tokens = 32;
  CLI::App* command =
      app.add_subcommand("watch", "A line per token: what it costs without a cache, and with one");
  flags->prompt.add(*command);
  add_number(*command, "--max-tokens", flags->options.max_tokens, "New tokens at the most")
      ->type_name("N")
      ->capture_default_str();
  flags->model.add_model(*command);
  flags->storage.add(*command);
  flags->model.add_threads(*command);
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
