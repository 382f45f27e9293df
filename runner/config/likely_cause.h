// What a file or a directory of the wrong kind most likely is, in words for an error.
#ifndef KVCACHE_RUNNER_CONFIG_LIKELY_CAUSE_H_
#define KVCACHE_RUNNER_CONFIG_LIKELY_CAUSE_H_

#include <string>
#include <string_view>

namespace kvcache::runner {

// What a file is by its first bytes (at least 256 of them, or all): "a git-LFS pointer (git lfs
// pull fetches the file)", an HTML page, a GGUF file, a PyTorch checkpoint, ... Empty: none of
// these.
std::string kind_of_content(std::string_view bytes);

// What stands where `directory`/`wanted` was expected and is not: a single file instead of a
// directory, weights of another format, a model one or more levels below. Empty: nothing known.
// Throws nothing.
std::string kind_of_directory(const std::string& directory, std::string_view wanted) noexcept;

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_CONFIG_LIKELY_CAUSE_H_
