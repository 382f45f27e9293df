// Whether a model expects its prompts in a dialogue's form.
#ifndef KVCACHE_RUNNER_TOKENIZER_CHAT_TEMPLATE_H_
#define KVCACHE_RUNNER_TOKENIZER_CHAT_TEMPLATE_H_

#include <string>

namespace kvcache::runner {

// The file of a model directory that holds a chat template: chat_template.jinja,
// chat_template.json, or tokenizer_config.json with the key "chat_template". Empty when there is
// none; a file that cannot be read counts as none, as nothing here applies a template. Throws
// nothing.
std::string find_chat_template(const std::string& directory);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_CHAT_TEMPLATE_H_
