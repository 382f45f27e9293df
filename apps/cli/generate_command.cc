#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/options.h"
#include "runner/generate/generate.h"
#include "runner/tokenizer/chat_template.h"

namespace kvcache::cli {
namespace {

struct Flags {
  ModelFlags model;
  PromptFlags prompt;
  StorageFlags storage;
  std::string cache = "dynamic";
  runner::GenerateOptions options;
  bool json = false;
};

void print_json(const runner::GenerateResult& result) {
  const auto per_second = [](std::int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  nlohmann::ordered_json json;
  json["text"] = result.text;
  json["tokens"] = result.tokens;
  json["stop_reason"] = name_of(result.stop_reason);
  json["prefill_tokens_per_s"] = per_second(result.prompt_tokens, result.prefill_seconds);
  json["decode_tokens_per_s"] = per_second(result.decode_steps, result.decode_seconds);
  json["kv_bytes"] = result.usage.nbytes;
  fmt::print("{}\n", json.dump());
}

void print_summary(const runner::GenerateResult& result) {
  fmt::print(stderr, "prefill {} tokens, {:.1f} tokens/s; ", result.prompt_tokens,
             static_cast<double>(result.prompt_tokens) / result.prefill_seconds);
  if (result.decode_steps > 0) {
    fmt::print(stderr, "decode {} tokens, {:.1f} tokens/s; ", result.decode_steps,
               static_cast<double>(result.decode_steps) / result.decode_seconds);
  }
  fmt::print(stderr, "KV rows {}, {} held; stopped by: {}\n", human_bytes(result.usage.nbytes),
             human_bytes(result.usage.reserved_bytes), name_of(result.stop_reason));
}

Status run(Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::string prompt, flags.prompt.read());
  KVC_ASSIGN_OR_RETURN(flags.options.cache, runner::parse_store_kind(flags.cache));
  flags.options.layout = flags.storage.parsed_layout();
  flags.options.kv_dtype = flags.storage.parsed_dtype();
  flags.options.page_size = flags.storage.page_size;
  KVC_ASSIGN_OR_RETURN(const Threads threads, Threads::create(flags.model.threads));
  flags.options.context = threads.context();
  KVC_ASSIGN_OR_RETURN(const LoadedModel loaded, load(flags.model));
  if (const std::string path = runner::find_chat_template(loaded.directory); !path.empty()) {
    fmt::print(stderr, "{}: a chat template, which is not applied: the prompt goes in as it is\n",
               path);
  }
  KVC_ASSIGN_OR_RETURN(const std::vector<std::int32_t> tokens, loaded.tokenizer.encode(prompt));

  ProgressBar prefill("prefill");
  runner::GenerateCallbacks callbacks;
  callbacks.on_prefill = [&](std::int64_t done, std::int64_t total) {
    if (done < total) {
      prefill.update(done, total);
    } else {
      prefill.clear();
    }
  };
  if (!flags.json) {
    callbacks.on_text = [&](std::string_view text) {
      fmt::print("{}", text);
      std::fflush(stdout);
    };
  }
  KVC_ASSIGN_OR_RETURN(
      const runner::GenerateResult result,
      runner::generate(loaded.model, loaded.tokenizer, tokens, flags.options, callbacks));
  if (flags.json) {
    print_json(result);
  } else {
    fmt::print("\n");
    std::fflush(stdout);
    print_summary(result);
  }
  return {};
}

}  // namespace

void add_generate(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("generate", "Continue a text");
  flags->prompt.add(*command);
  flags->model.add_model(*command);
  auto& options = flags->options;
  command->add_option("--max-tokens", options.max_tokens, "New tokens at the most")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--cache", flags->cache, "Where keys and values are kept")
      ->check(CLI::IsMember({"none", "dynamic", "static", "paged"}))
      ->capture_default_str();
  flags->storage.add(*command);
  command
      ->add_option("--prefill-chunk", options.prefill_chunk,
                   "Prompt tokens a step takes; 0: all at once")
      ->type_name("C")
      ->capture_default_str();
  auto& sampler = options.sampler;
  command->add_option("--temperature", sampler.temperature, "0 takes the likeliest token")
      ->type_name("T")
      ->capture_default_str();
  command->add_option("--top-k", sampler.top_k, "Only the k likeliest tokens; 0: all")
      ->type_name("K")
      ->capture_default_str();
  command
      ->add_option("--top-p", sampler.top_p,
                   "The fewest tokens whose probabilities reach P; 1: all")
      ->type_name("P")
      ->capture_default_str();
  command
      ->add_option("--min-p", sampler.min_p,
                   "Tokens at least P times as probable as the likeliest; 0: all")
      ->type_name("P")
      ->capture_default_str();
  command
      ->add_option("--repeat-penalty", sampler.repetition_penalty,
                   "Divides the positive logits of tokens already seen; 1: off")
      ->type_name("R")
      ->capture_default_str();
  command->add_option("--seed", sampler.seed, "Seed of the sampler")
      ->type_name("S")
      ->capture_default_str();
  command->add_option("--stop", options.stop, "End before this text; may be given several times")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  flags->model.add_threads(*command);
  command->add_flag("--json", flags->json, "Print one JSON object instead");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
