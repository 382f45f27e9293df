#include "apps/cli/generate_batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "apps/cli/console.h"
#include "apps/cli/generate_json.h"
#include "runner/generate/running_batch.h"

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

void print_summary(const runner::RunningBatch& batch) {
  std::int64_t prompt_tokens = 0;
  std::int64_t decoded = 0;
  double prefill_seconds = 0;
  for (std::int64_t i = 0; i < batch.size(); ++i) {
    prompt_tokens += batch.result(i).prompt_tokens;
    prefill_seconds += batch.result(i).prefill_seconds;
    decoded += batch.result(i).decode_steps;
  }
  say("{} prompts; prefill {} tokens, {:.1f} tokens/s; ", batch.size(), prompt_tokens,
      per_second(prompt_tokens, prefill_seconds));
  say("decode {} tokens in {} steps, {:.1f} tokens/s\n", decoded, batch.decode_steps(),
      per_second(decoded, batch.decode_seconds()));
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
                      const runner::GenerateOptions& options, std::int64_t max_active, bool json) {
  KVC_ASSIGN_OR_RETURN(
      runner::RunningBatch batch,
      runner::RunningBatch::create(loaded.model, loaded.tokenizer, options, max_active));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto added = batch.add(prompts[i]);
    if (added.ok()) continue;
    return Status(added.status().code(),
                  "[" + std::to_string(i + 1) + "] " + added.status().message());
  }
  LinePrinter printer(prompts.size());
  runner::BatchCallbacks callbacks;
  if (!json) {
    callbacks.on_text = [&](std::int64_t request, std::string_view text) {
      printer.push(request, text);
    };
    callbacks.on_end = [&](std::int64_t request, const runner::GenerateResult&) {
      printer.end(request);
    };
  }
  while (!batch.done()) KVC_RETURN_IF_ERROR(batch.step(callbacks));
  if (!json) {
    print_summary(batch);
    return {};
  }
  auto array = nlohmann::ordered_json::array();
  for (std::int64_t i = 0; i < batch.size(); ++i) {
    array.push_back(to_json(batch.result(i), loaded.tokenizer));
  }
  print("{}\n", array.dump());
  return {};
}

}  // namespace kvcache::cli
