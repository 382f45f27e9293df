// SHA-256 (FIPS 180-4), by which files are recognised.
#ifndef KVCACHE_RUNNER_TOKENIZER_SHA256_H_
#define KVCACHE_RUNNER_TOKENIZER_SHA256_H_

#include <string>
#include <string_view>

namespace kvcache::runner {

// The digest of `bytes`, 64 hexadecimal digits.
std::string sha256(std::string_view bytes);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_SHA256_H_
