// What the parts of a tokenizer.json have in common: an object with a "type" and options.
#ifndef KVCACHE_RUNNER_TOKENIZER_COMPONENT_H_
#define KVCACHE_RUNNER_TOKENIZER_COMPONENT_H_

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"

namespace kvcache::runner {

// Refuses a key of `component` that is not in `known`: an option nobody has heard of may change
// every id. Errors: kUnsupported.
Status refuse_unknown_keys(const JsonObject& component,
                           std::initializer_list<std::string_view> known);

// The parts a Sequence lists under `list_key`, those of Sequences within it in their place; the
// component itself when it is no Sequence.
Result<std::vector<JsonObject>> flatten_sequence(const JsonObject& component,
                                                 std::string_view list_key);

// A text option of a component: what it searches for, or puts in. Errors: kCorrupt: absent or not
// a text; kUnsupported: longer than 4096 bytes.
Result<std::string> short_text(const JsonObject& component, std::string_view key);

// A text option of exactly one character. Errors: kCorrupt.
Result<std::string> one_character(const JsonObject& component, std::string_view key);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_COMPONENT_H_
