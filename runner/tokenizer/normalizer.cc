#include "runner/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "runner/tokenizer/component.h"
#include "runner/tokenizer/unicode.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

bool is_one_character(std::string_view text) {
  return !text.empty() && next_utf8(text).length == text.size();
}

// Appends the NFC of `text`, as utf8proc has it.
Status compose(std::string_view text, std::string* out) {
  const bool ascii = std::all_of(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 128; });
  if (ascii) {
    *out += text;
    return Status();
  }
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &composed,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(composed, &std::free);
  if (length == UTF8PROC_ERROR_NOMEM) {
    return Status(StatusCode::kOutOfMemory, "text: found no memory to normalise it");
  }
  if (length < 0) {
    return found_expected(StatusCode::kInvalidArgument, "text", utf8proc_errmsg(length),
                          "text that NFC can normalise");
  }
  out->append(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(length));
  return Status();
}

}  // namespace

Result<std::string> Nfc::apply(std::string_view text) const {
  std::string composed;
  std::size_t done = 0;  // where the text that waits for utf8proc begins
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = next_utf8(text.substr(at));
    // Whatever Unicode utf8proc knows: a character that this one does not is a wall.
    if (step.code_point >= 0x300 && normalization_ignores(step.code_point)) {
      KVC_RETURN_IF_ERROR(compose(text.substr(done, at - done), &composed));
      composed += text.substr(at, step.length);
      done = at + step.length;
    }
    at += step.length;
  }
  KVC_RETURN_IF_ERROR(compose(text.substr(done), &composed));
  return composed;
}

Result<std::string> Prepend::apply(std::string_view text) const {
  return text.empty() ? std::string() : prefix + std::string(text);
}

Result<Normalizer> Normalizer::create(const JsonObject& root) {
  Normalizer result;
  if (!root.has("normalizer")) return result;
  KVC_ASSIGN_OR_RETURN(const JsonObject component, root.object("normalizer"));
  KVC_ASSIGN_OR_RETURN(const auto parts, flatten_sequence(component, "normalizers"));
  std::size_t growth = 1;
  for (const JsonObject& part : parts) {
    KVC_ASSIGN_OR_RETURN(const std::string type, part.text("type"));
    if (type == "NFC") {
      KVC_RETURN_IF_ERROR(refuse_unknown_keys(part, {"type"}));
      result.steps_.push_back(Nfc{});
    } else if (type == "Prepend") {
      KVC_RETURN_IF_ERROR(refuse_unknown_keys(part, {"type", "prepend"}));
      KVC_ASSIGN_OR_RETURN(std::string prefix, short_text(part, "prepend"));
      result.steps_.push_back(Prepend{std::move(prefix)});
    } else if (type == "Replace") {
      KVC_ASSIGN_OR_RETURN(Replace replace, Replace::read(part));
      growth *= replace.growth();
      if (growth > kMaxGrowth) {
        return part.error(StatusCode::kUnsupported, "content",
                          "one that leaves a text at most " + std::to_string(kMaxGrowth) +
                              " times as long as it was");
      }
      result.steps_.push_back(std::move(replace));
    } else {
      return part.error(StatusCode::kUnsupported, "type", "NFC, Prepend or Replace");
    }
  }
  return result;
}

Result<std::string> Normalizer::apply(std::string_view text) const {
  std::string normalized(text);
  for (const auto& step : steps_) {
    KVC_ASSIGN_OR_RETURN(
        normalized, std::visit([&](const auto& each) { return each.apply(normalized); }, step));
  }
  return normalized;
}

bool Normalizer::keeps_start() const {
  return std::all_of(steps_.begin(), steps_.end(), [](const auto& step) {
    const auto* replace = std::get_if<Replace>(&step);
    return replace == nullptr ||
           (replace->pattern.text() != nullptr && is_one_character(*replace->pattern.text()) &&
            is_one_character(replace->content));
  });
}

}  // namespace kvcache::runner
