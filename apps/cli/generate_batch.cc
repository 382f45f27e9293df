#include "apps/cli/generate_batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "apps/cli/console.h"
#include "apps/cli/generate_json.h"

namespace kvcache::cli {
namespace {

// Texts that grow side by side, printed line by line.
class LinePrinter {
 public:
  explicit LinePrinter(std::size_t texts) : open_(texts) {}

  void push(std::int64_t text, std::string_view piece) {
    std::string& open = open_[static_cast<std::size_t>(text)];
    open += piece;
    for (std::size_t end; (end = open.find('\n')) != std::string::npos; open.erase(0, end + 1)) {
      print_line(text, std::string_view(open).substr(0, end));
    }
  }

  // The last line, which has no end of its own.
  void end(std::int64_t text) {
    std::string& open = open_[static_cast<std::size_t>(text)];
    if (!open.empty()) print_line(text, open);
    open.clear();
  }

 private:
  static void print_line(std::int64_t text, std::string_view line) {
    print("[{}] {}\n", text + 1, line);
    std::fflush(stdout);
  }

  std::vector<std::string> open_;
};

void print_summary(const runner::Engine& engine) {
  std::int64_t prompt_tokens = 0;
  std::int64_t reused = 0;
  std::int64_t decoded = 0;
  for (std::int64_t i = 0; i < engine.size(); ++i) {
    const runner::GenerateResult& result = engine.result(i);
    prompt_tokens += result.prompt_tokens;
    reused += result.reused_tokens;
    decoded += result.decode_steps;
    if (result.reused_tokens == 0) continue;
    say("[{}] {} of {} prompt tokens reused\n", i + 1, result.reused_tokens, result.prompt_tokens);
  }
  say("{} prompts of {} tokens, {} of them reused, and {} decoded ones in {} steps; ",
      engine.size(), prompt_tokens, reused, decoded, engine.steps());
  say("{:.1f} tokens/s, decode {:.1f} tokens/s\n",
      per_second(prompt_tokens - reused + decoded, engine.seconds()),
      per_second(decoded, engine.decode_seconds()));
  const PrefixStats kept = engine.prefix_stats();
  if (kept.pages > 0) {
    say("prefix cache: {} in {} pages, {} evicted\n", human_bytes(kept.bytes), kept.pages,
        kept.pages_evicted);
  }
}

// What failed, one line each; an error if anything did.
Status print_failures(const runner::Engine& engine) {
  std::int64_t failed = 0;
  StatusCode code = StatusCode::kOk;
  for (std::int64_t i = 0; i < engine.size(); ++i) {
    const Status& status = engine.result(i).status;
    if (status.ok()) continue;
    say("[{}] {}\n", i + 1, status.to_string());
    code = status.code();
    ++failed;
  }
  if (failed == 0) return {};
  return Status(code, "prompts: found " + std::to_string(failed) + " of " +
                          std::to_string(engine.size()) + " that failed, expected none");
}

}  // namespace

std::vector<std::string> lines_with_text(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) lines.emplace_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

Status generate_batch(const runner::LoadedModel& loaded,
                      const std::vector<std::vector<std::int32_t>>& prompts,
                      const runner::GenerateOptions& options, const runner::EngineOptions& together,
                      bool json) {
  KVC_ASSIGN_OR_RETURN(runner::Engine engine,
                       runner::Engine::create(loaded.model, loaded.tokenizer, options, together));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto added = engine.add(prompts[i]);
    if (added.ok()) continue;
    return Status(added.status().code(),
                  "[" + std::to_string(i + 1) + "] " + added.status().message());
  }
  LinePrinter printer(prompts.size());
  runner::EngineCallbacks callbacks;
  if (!json) {
    callbacks.on_text = [&](std::int64_t request, std::string_view text) {
      printer.push(request, text);
    };
    callbacks.on_end = [&](std::int64_t request, const runner::GenerateResult&) {
      printer.end(request);
    };
  }
  while (!engine.done()) KVC_RETURN_IF_ERROR(engine.step(callbacks));
  if (!json) {
    print_summary(engine);
    return print_failures(engine);
  }
  auto array = nlohmann::ordered_json::array();
  for (std::int64_t i = 0; i < engine.size(); ++i) {
    array.push_back(to_json(engine.result(i), loaded.tokenizer));
  }
  print("{}\n", array.dump());
  return print_failures(engine);
}

}  // namespace kvcache::cli
