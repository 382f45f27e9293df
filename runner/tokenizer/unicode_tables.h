// The tables behind runner/tokenizer/unicode.h, which tools/unicode_tables.py makes.
#ifndef KVCACHE_RUNNER_TOKENIZER_UNICODE_TABLES_H_
#define KVCACHE_RUNNER_TOKENIZER_UNICODE_TABLES_H_

#include <cstddef>
#include <cstdint>

namespace kvcache::runner {

// Runs of code points of one value, ascending from 0: the first code point << 5 | the value, which
// is a Category, or an index of kScriptNames (0: any other script).
extern const std::uint32_t kCategoryRuns[];
extern const std::size_t kCategoryRunsSize;
extern const std::uint32_t kScriptRuns[];
extern const std::size_t kScriptRunsSize;

// Code points, ascending, that Unicode 16.0 reorders, decomposes or composes, and 9.0 did not know.
extern const std::uint32_t kStrangers[];
extern const std::size_t kStrangersSize;

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_UNICODE_TABLES_H_
