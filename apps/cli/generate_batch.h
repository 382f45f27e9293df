// `generate` for several prompts: one running batch.
#ifndef KVCACHE_APPS_CLI_GENERATE_BATCH_H_
#define KVCACHE_APPS_CLI_GENERATE_BATCH_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "apps/cli/options.h"
#include "runner/engine/engine.h"
#include "runner/generate/generate.h"

namespace kvcache::cli {

// The lines of a file of prompts, without their ends and without empty ones.
std::vector<std::string> lines_with_text(std::string_view text);

// Continues all prompts, as tokens, together. Every line of
// text is printed whole, behind the number of its prompt from 1 ("[2] ..."); with `json` one array,
// an object a prompt in their order. A prompt that fails ends alone: the others are printed, then
// the error is returned.
Status generate_batch(const runner::LoadedModel& loaded,
                      const std::vector<std::vector<std::int32_t>>& prompts,
                      const runner::GenerateOptions& options, const runner::EngineOptions& together,
                      bool json);

}  // namespace kvcache::cli

#endif  // KVCACHE_APPS_CLI_GENERATE_BATCH_H_
