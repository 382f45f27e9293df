// How a model expects to be asked: the form of a dialogue.
#ifndef KVCACHE_RUNNER_TOKENIZER_CHAT_TEMPLATE_H_
#define KVCACHE_RUNNER_TOKENIZER_CHAT_TEMPLATE_H_

#include <optional>
#include <string>
#include <string_view>

#include "kvcache/status.h"

namespace kvcache::runner {

// The file of a model directory that holds a chat template: chat_template.jinja,
// chat_template.json, or tokenizer_config.json with the key "chat_template". Empty when there is
// none; a file that cannot be read counts as none. Throws nothing.
std::string find_chat_template(const std::string& directory);

// A template is a Jinja program, which nothing here runs. Those that the supported families ship
// are known by their SHA-256: SmolLM2, Qwen2.5, Qwen3, and Llama 3.1, 3.2 and 3.3.
class ChatTemplate {
 public:
  // That of a model directory. Errors: kNotFound: it has none; kUnsupported: one that is not known;
  // kCorrupt.
  static Result<ChatTemplate> load(const std::string& directory);

  // The template with this digest (64 hexadecimal digits), if it is known.
  static std::optional<ChatTemplate> known(std::string_view sha256);

  // A dialogue of one question, up to where the answer begins: what the template makes of it with
  // add_generation_prompt. `system` replaces the template's own instruction. Special tokens are
  // written out, so the tokenizer adds none of its own.
  std::string ask(std::string_view question,
                  const std::optional<std::string>& system = std::nullopt) const;

 private:
  struct Form;

  explicit ChatTemplate(const Form& form) : form_(&form) {}

  static const Form kForms[];

  const Form* form_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_CHAT_TEMPLATE_H_
