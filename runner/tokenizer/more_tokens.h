// Tokens that stand in the files beside tokenizer.json.
#ifndef KVCACHE_RUNNER_TOKENIZER_MORE_TOKENS_H_
#define KVCACHE_RUNNER_TOKENIZER_MORE_TOKENS_H_

#include <string>
#include <vector>

#include "kvcache/status.h"
#include "runner/tokenizer/added_tokens.h"

namespace kvcache::runner {

// What transformers adds to the `listed` tokens of tokenizer.json, in its order: those of
// "added_tokens_decoder" in `directory`/tokenizer_config.json or, where it has no such key, of
// added_tokens.json; then those that tokenizer_config.json or special_tokens_map.json name as bos,
// eos, unk, sep, pad, cls, mask or extra special tokens. A file that is not there holds none. Their
// ids mean nothing: transformers takes them for an order. Errors: kIo, kCorrupt.
Result<std::vector<AddedToken>> read_more_tokens(const std::string& directory,
                                                 const std::vector<AddedToken>& listed);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_MORE_TOKENS_H_
