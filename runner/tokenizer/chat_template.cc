#include "runner/tokenizer/chat_template.h"

#include <ctime>
#include <filesystem>
#include <system_error>

#include <nlohmann/json.hpp>

#include "runner/config/json_file.h"
#include "runner/tokenizer/sha256.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMaxTokenizerConfigBytes = std::int64_t{16} << 20;
constexpr std::string_view kJinjaFile = "chat_template.jinja";

Result<bool> config_has_template(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const Json document, load_json(path, kMaxTokenizerConfigBytes));
  KVC_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::create(document, path));
  return root.has("chat_template");
}

// The template itself.
Result<std::string> read_template(const std::string& path) {
  if (path.ends_with(kJinjaFile)) return read_text_file(path, kMaxTokenizerConfigBytes);
  KVC_ASSIGN_OR_RETURN(const Json document, load_json(path, kMaxTokenizerConfigBytes));
  KVC_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::create(document, path));
  return root.text("chat_template");
}

// As Python's str.strip does.
std::string_view trimmed(std::string_view text) {
  std::size_t begin = text.size();
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = next_utf8(text.substr(at));
    const bool space =
        step.kind == Utf8Step::kCharacter &&
        (is_white_space(step.code_point) || (step.code_point >= 0x1c && step.code_point <= 0x1f));
    if (!space && begin == text.size()) begin = at;
    at += step.length;
    if (!space) end = at;
  }
  return begin < end ? text.substr(begin, end - begin) : std::string_view();
}

// "05 Mar 2026", as strftime's "%d %b %Y" has it in English.
std::string today() {
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  return (parts.tm_mday < 10 ? "0" : "") + std::to_string(parts.tm_mday) + " " +
         kMonths[parts.tm_mon] + " " + std::to_string(parts.tm_year + 1900);
}

// The marks around turns.
struct Marks {
  const char* begin;   // of the dialogue
  const char* system;  // before an instruction
  const char* user;
  const char* answer;
  const char* end;  // of a turn
};

constexpr Marks kChatMl = {"", "<|im_start|>system\n", "<|im_start|>user\n",
                           "<|im_start|>assistant\n", "<|im_end|>\n"};
constexpr Marks kLlama3 = {"<|begin_of_text|>", "<|start_header_id|>system<|end_header_id|>\n\n",
                           "<|start_header_id|>user<|end_header_id|>\n\n",
                           "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"};

}  // namespace

struct ChatTemplate::Form {
  const char* digest;
  const Marks* marks;
  const char* instruction;  // where none is given; nullptr: no turn for it
  enum { kNoDate, kFixedDate, kToday } date;
  bool trims;  // white space around what is said
};

const ChatTemplate::Form ChatTemplate::kForms[] = {
    // SmolLM2
    {"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788", &kChatMl,
     "You are a helpful AI assistant named SmolLM, trained by Hugging Face", Form::kNoDate, false},
    // Qwen2.5
    {"cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f", &kChatMl,
     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", Form::kNoDate, false},
    // Qwen3
    {"87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5", &kChatMl, nullptr,
     Form::kNoDate, false},
    // Llama 3.1 and 3.3
    {"e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65", &kLlama3, "",
     Form::kFixedDate, true},
    // Llama 3.2
    {"5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4", &kLlama3, "", Form::kToday,
     true}};

std::string find_chat_template(const std::string& directory) {
  for (const char* name : {"chat_template.jinja", "chat_template.json"}) {
    const std::string path = directory + "/" + name;
    std::error_code unreadable;
    if (std::filesystem::is_regular_file(path, unreadable)) return path;
  }
  const std::string path = directory + "/tokenizer_config.json";
  const Result<bool> found =
      without_exceptions(path, [&]() -> Result<bool> { return config_has_template(path); });
  return found.ok() && *found ? path : std::string();
}

std::optional<ChatTemplate> ChatTemplate::known(std::string_view sha256) {
  for (const Form& form : kForms) {
    if (form.digest == sha256) return ChatTemplate(form);
  }
  return std::nullopt;
}

Result<ChatTemplate> ChatTemplate::load(const std::string& directory) {
  const std::string path = find_chat_template(directory);
  if (path.empty()) {
    return found_expected(StatusCode::kNotFound, directory, "no chat template",
                          "chat_template.jinja, or \"chat_template\" in tokenizer_config.json");
  }
  return without_exceptions(path, [&]() -> Result<ChatTemplate> {
    KVC_ASSIGN_OR_RETURN(const std::string text, read_template(path));
    const std::string digest = sha256(text);
    if (const auto found = known(digest)) return *found;
    return found_expected(StatusCode::kUnsupported, path,
                          "a chat template of SHA-256 " + digest.substr(0, 16) + "...",
                          "that of SmolLM2, Qwen2.5, Qwen3, Llama 3.1, 3.2 or 3.3");
  });
}

std::string ChatTemplate::ask(std::string_view question,
                              const std::optional<std::string>& system) const {
  const Marks& marks = *form_->marks;
  const auto said = [&](std::string_view text) {
    return std::string(form_->trims ? trimmed(text) : text);
  };
  std::string text = marks.begin;
  if (system || form_->instruction != nullptr) {
    text += marks.system;
    if (form_->date != Form::kNoDate) {
      text += "Cutting Knowledge Date: December 2023\nToday Date: ";
      text += form_->date == Form::kToday ? today() : "26 Jul 2024";
      text += "\n\n";
    }
    text += system ? said(*system) : form_->instruction;
    text += marks.end;
  }
  return text + marks.user + said(question) + marks.end + marks.answer;
}

}  // namespace kvcache::runner
