#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <utility>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/generate_batch.h"
#include "apps/cli/generate_json.h"
#include "apps/cli/options.h"
#include "runner/generate/generate.h"
#include "runner/generate/model_space.h"
#include "runner/tokenizer/chat_template.h"

namespace kvcache::cli {
namespace {

struct Flags {
  ModelFlags model;
  PromptFlags prompt;
  StorageFlags storage;
  std::string cache;  // empty: dynamic, or batching for several prompts
  std::optional<std::int64_t> max_active;
  PrefixFlags prefix;
  std::string load_file, save_file;  // of one text
  runner::GenerateOptions options;
  bool chat = false;
  std::optional<std::string> system;
  bool json = false;

  // Those of the two that are there, for messages; empty: neither.
  std::string named_files() const {
    const std::string save = save_file.empty() ? "" : "save-cache";
    const std::string load = load_file.empty() ? "" : "load-cache";
    return save + (save.empty() || load.empty() ? "" : ", ") + load;
  }
};

constexpr std::int64_t kMaxActive = 8;

void print_summary(const runner::GenerateResult& result) {
  const std::int64_t computed = result.prompt_tokens - result.reused_tokens;
  if (result.reused_tokens > 0) {
    say("{} of {} prompt tokens reused; ", result.reused_tokens, result.prompt_tokens);
  }
  say("prefill {} tokens, {:.1f} tokens/s; ", computed,
      per_second(computed, result.prefill_seconds));
  if (result.decode_steps > 0) {
    say("decode {} tokens, {:.1f} tokens/s; ", result.decode_steps,
        per_second(result.decode_steps, result.decode_seconds));
  }
  say("KV rows {}, {} held; stopped by: {}\n", human_bytes(result.usage.nbytes),
      human_bytes(result.usage.reserved_bytes), name_of(result.stop_reason));
}

// The prompts of a running batch; none where the text is to be continued by itself.
Result<std::vector<std::string>> batch_prompts(const Flags& flags, const std::string& text) {
  const bool named = flags.cache == "batching";
  std::vector<std::string> prompts;
  if (flags.prompt.file.empty()) {
    if (named) prompts.push_back(text);
  } else if (named || flags.cache.empty()) {
    prompts = lines_with_text(text);
    if (!named && prompts.size() < 2) prompts.clear();
    if (named && prompts.empty()) {
      return Status(StatusCode::kInvalidArgument,
                    flags.prompt.file + ": found no line with text, expected a prompt a line");
    }
  }
  return prompts;
}

Status check_batch_flags(const Flags& flags, bool batch) {
  if (const std::string files = flags.named_files(); batch && !files.empty()) {
    return Status(StatusCode::kInvalidArgument,
                  files +
                      ": found a running batch, expected one prompt (--cache paged takes a "
                      "whole file as one)");
  }
  if (batch && flags.options.num_beams != 1) {
    return Status(StatusCode::kInvalidArgument,
                  "num-beams: found " + std::to_string(flags.options.num_beams) +
                      " in a running batch, expected 1 (--cache dynamic, static or paged takes a "
                      "whole file as one prompt)");
  }
  if (flags.max_active.has_value() && !batch) {
    return Status(StatusCode::kInvalidArgument,
                  "max-active: found one prompt" +
                      (flags.cache.empty() ? "" : " and cache " + flags.cache) +
                      ", expected several prompts or --cache batching");
  }
  const std::int64_t slots = flags.max_active.value_or(kMaxActive);
  if (slots < 1 || slots > 65536) {
    return Status(StatusCode::kInvalidArgument,
                  "max-active: found " + std::to_string(slots) + ", expected 1 .. 65536");
  }
  return {};
}

// Pages that outlive a text, for one that is continued by itself; none unless they are asked for.
Result<std::shared_ptr<runner::PrefixStore>> open_prefixes(const Flags& flags,
                                                           const runner::LoadedModel& loaded) {
  const runner::Model& model = loaded.model;
  KVC_ASSIGN_OR_RETURN(const std::int64_t bytes, flags.prefix.bytes());
  const std::string files = flags.named_files();
  if (!flags.prefix.wanted() && files.empty()) {
    if (!flags.prefix.names_policy()) return std::shared_ptr<runner::PrefixStore>();
    return Status(StatusCode::kInvalidArgument,
                  "prefix-policy: found one prompt and no prefix-cache, expected one to rule");
  }
  if (bytes == 0) {
    return Status(StatusCode::kInvalidArgument,
                  "no-prefix-cache: found it beside " + files + ", expected one of them");
  }
  if (!flags.cache.empty() && flags.cache != "paged") {
    return Status(StatusCode::kInvalidArgument,
                  (files.empty() ? "prefix-cache" : files) + ": found cache " + flags.cache +
                      ", expected paged" + (files.empty() ? " or batching" : ""));
  }
  runner::HistoryOptions rows;
  rows.rows = flags.options.kv_dtype;
  rows.dtype = model.default_kv_dtype();
  rows.layout = flags.options.layout;
  rows.page_size = flags.options.page_size;
  runner::PrefixStoreOptions kept;
  kept.budget_bytes = bytes;
  KVC_ASSIGN_OR_RETURN(kept.eviction, flags.prefix.eviction());
  if (!files.empty()) {
    KVC_ASSIGN_OR_RETURN(kept.space, runner::space_of(loaded, flags.model.activations));
  }
  KVC_ASSIGN_OR_RETURN(auto store, runner::PrefixStore::create(model.config(), rows, kept));
  if (!flags.load_file.empty()) {
    KVC_ASSIGN_OR_RETURN(const std::int64_t tokens, store->load_text(flags.load_file));
    say("{}: {} tokens\n", flags.load_file, tokens);
  }
  return store;
}

// A text without room in the store goes past it, and a file is of what is in the store.
Status check_room(const Flags& flags, const runner::Model& model, std::int64_t prompt_tokens) {
  if (flags.named_files().empty()) return {};
  const runner::PrefixStore& store = *flags.options.prefixes;
  const std::int64_t pages = runner::shared_pages_of(model, prompt_tokens, flags.options);
  if (pages <= store.num_pages()) return {};
  return Status(
      StatusCode::kInvalidArgument,
      fmt::format("prefix-cache: found {}, room for {} tokens, expected room for {}, {} of rows",
                  human_bytes(store.budget_bytes()), store.num_pages() * store.page_size(),
                  pages * store.page_size(),
                  human_bytes(pages * store.page_size() * store.row_bytes())));
}

// Writes the rows of a prompt and of what came after it. The newest token was never stored, and of
// beams that had ended their last rows may be gone.
Status save_rows(const Flags& flags, std::vector<std::int32_t> text,
                 const runner::GenerateResult& result) {
  auto least = static_cast<std::int64_t>(text.size());
  if (flags.options.num_beams == 1) least += static_cast<std::int64_t>(result.tokens.size()) - 1;
  text.insert(text.end(), result.tokens.begin(), result.tokens.end());
  KVC_ASSIGN_OR_RETURN(const std::int64_t tokens,
                       flags.options.prefixes->save_text(flags.save_file, text, least));
  say("{}: {} tokens\n", flags.save_file, tokens);
  return {};
}

// Turns a prompt into tokens, as it is or as a question in the form of the model's chat template.
class PromptEncoder {
 public:
  static Result<PromptEncoder> create(const Flags& flags, const runner::LoadedModel& loaded) {
    PromptEncoder made(loaded.tokenizer, flags.system);
    if (flags.chat) {
      KVC_ASSIGN_OR_RETURN(made.chat_, runner::ChatTemplate::load(loaded.directory));
    } else if (const std::string path = runner::find_chat_template(loaded.directory);
               !path.empty()) {
      say("{}: a chat template, which is not applied: the prompt goes in as it is (--chat "
          "asks by it)\n",
          path);
    }
    return made;
  }

  Result<std::vector<std::int32_t>> encode(const std::string& prompt) const {
    if (!chat_) return tokenizer_->encode(prompt);
    return tokenizer_->encode(chat_->ask(prompt, system_), false);
  }

 private:
  PromptEncoder(const runner::Tokenizer& tokenizer, std::optional<std::string> system)
      : tokenizer_(&tokenizer), system_(std::move(system)) {}

  const runner::Tokenizer* tokenizer_;
  std::optional<std::string> system_;
  std::optional<runner::ChatTemplate> chat_;
};

Status run(Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::string prompt, flags.prompt.read());
  KVC_RETURN_IF_ERROR(runner::check_options(flags.options));
  KVC_ASSIGN_OR_RETURN(const std::vector<std::string> batch, batch_prompts(flags, prompt));
  KVC_RETURN_IF_ERROR(check_batch_flags(flags, !batch.empty()));
  if (batch.empty() && !flags.cache.empty()) {
    KVC_ASSIGN_OR_RETURN(flags.options.cache, runner::parse_history_kind(flags.cache));
  }
  flags.options.layout = flags.storage.parsed_layout();
  KVC_ASSIGN_OR_RETURN(flags.options.kv_dtype, flags.storage.parsed_dtype());
  if (flags.cache.empty() && flags.options.kv_dtype.needs_pages()) {
    flags.options.cache = runner::HistoryKind::kPaged;
  }
  flags.options.page_size = flags.storage.page_size;
  KVC_ASSIGN_OR_RETURN(const Threads threads, Threads::create(flags.model.threads));
  flags.options.context = threads.context();
  KVC_ASSIGN_OR_RETURN(const runner::LoadedModel loaded, load(flags.model));
  KVC_ASSIGN_OR_RETURN(const PromptEncoder encoder, PromptEncoder::create(flags, loaded));
  if (!batch.empty()) {
    std::vector<std::vector<std::int32_t>> prompts;
    for (const std::string& each : batch) {
      KVC_ASSIGN_OR_RETURN(std::vector<std::int32_t> tokens, encoder.encode(each));
      prompts.push_back(std::move(tokens));
    }
    runner::EngineOptions together;
    together.max_active = flags.max_active.value_or(kMaxActive);
    KVC_ASSIGN_OR_RETURN(together.cached_bytes, flags.prefix.bytes());
    KVC_ASSIGN_OR_RETURN(together.eviction, flags.prefix.eviction());
    return generate_batch(loaded, prompts, flags.options, together, flags.json);
  }
  KVC_ASSIGN_OR_RETURN(flags.options.prefixes, open_prefixes(flags, loaded));
  KVC_ASSIGN_OR_RETURN(const std::vector<std::int32_t> tokens, encoder.encode(prompt));
  KVC_RETURN_IF_ERROR(runner::check_prompt(loaded.model.config(), tokens));
  KVC_RETURN_IF_ERROR(check_room(flags, loaded.model, static_cast<std::int64_t>(tokens.size())));

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
      print("{}", text);
      std::fflush(stdout);
    };
  }
  KVC_ASSIGN_OR_RETURN(
      const runner::GenerateResult result,
      runner::generate(loaded.model, loaded.tokenizer, tokens, flags.options, callbacks));
  if (flags.json) {
    print("{}\n", to_json(result, loaded.tokenizer).dump());
  } else {
    print("\n");
    std::fflush(stdout);
    print_summary(result);
  }
  return flags.save_file.empty() ? Status() : save_rows(flags, tokens, result);
}

}  // namespace

void add_generate(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("generate", "Continue a text");
  command->footer(
      "A file (-f) of several lines is several prompts, one a line, which run together in one "
      "batch\n"
      "(--cache batching): each joins when a slot is free and leaves when it ends, and its lines "
      "are\n"
      "printed as [2] text. With another --cache named, a file is one prompt, all but its last "
      "line end\n"
      "included. Prompts of a batch that begin alike compute what they share once "
      "(--no-prefix-cache: "
      "each\n"
      "its own), and the words are the same; in 16 bits and in codes for sure with "
      "--reproducible.");
  flags->prompt.add(*command);
  auto* chat =
      command->add_flag("--chat", flags->chat,
                        "Ask: the prompt becomes a turn in the form of the model's chat template");
  command
      ->add_option("--system", flags->system,
                   "The instruction before the question [that of the chat template]")
      ->type_name("TEXT")
      ->needs(chat);
  flags->model.add_model(*command);
  auto& options = flags->options;
  add_number(*command, "--max-tokens", options.max_tokens, "New tokens at the most")
      ->type_name("N")
      ->capture_default_str();
  command
      ->add_option(
          "--cache", flags->cache,
          "Where keys and values are kept [dynamic, or paged where only pages hold the rows; "
          "batching for several prompts]")
      ->check(CLI::IsMember({"none", "dynamic", "static", "paged", "functional", "batching"}));
  add_number(*command, "--max-active", flags->max_active,
             "Prompts of a running batch that decode together [8]")
      ->type_name("N");
  flags->storage.add(*command);
  flags->prefix.add(*command);
  command
      ->add_option("--save-cache", flags->save_file,
                   "Write the rows of the prompt and of what came after it to FILE at the end")
      ->type_name("FILE");
  command
      ->add_option("--load-cache", flags->load_file,
                   "Begin with the rows of FILE, as far as the prompt begins like its text")
      ->type_name("FILE");
  command->add_flag(
      "--reproducible", options.attention.reproducible,
      "Attention adds in one order, however many tokens come at a time: what is found "
      "in a cache moves no bit");
  add_number(*command, "--prefill-chunk", options.prefill_chunk,
             "Prompt tokens a step takes; 0: all at once")
      ->type_name("C")
      ->capture_default_str();
  add_number(*command, "--num-beams", options.num_beams,
             "Beams of a beam search, which keeps the likeliest texts; 1: none")
      ->type_name("N")
      ->capture_default_str();
  add_number(*command, "--length-penalty", options.length_penalty,
             "Beams score their log-probability / length ^ P: more favours longer texts")
      ->type_name("P")
      ->capture_default_str();
  auto& sampler = options.sampler;
  add_number(*command, "--temperature", sampler.temperature, "0 takes the likeliest token")
      ->type_name("T")
      ->capture_default_str();
  add_number(*command, "--top-k", sampler.top_k, "Only the k likeliest tokens; 0: all")
      ->type_name("K")
      ->capture_default_str();
  add_number(*command, "--top-p", sampler.top_p,
             "The fewest tokens whose probabilities reach P; 1: all")
      ->type_name("P")
      ->capture_default_str();
  add_number(*command, "--min-p", sampler.min_p,
             "Tokens at least P times as probable as the likeliest; 0: all")
      ->type_name("P")
      ->capture_default_str();
  add_number(*command, "--repeat-penalty", sampler.repetition_penalty,
             "Divides the positive logits of tokens already seen; 1: off")
      ->type_name("R")
      ->capture_default_str();
  add_number(*command, "--seed", sampler.seed, "Seed of the sampler")
      ->type_name("S")
      ->capture_default_str();
  command->add_option("--stop", options.stop, "End before this text; may be given several times")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  flags->model.add_threads(*command);
  command->add_flag("--json", flags->json,
                    "Print one JSON object instead, of several prompts an array");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
