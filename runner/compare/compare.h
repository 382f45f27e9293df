// The same prompt through no cache and through every kind of cache, with what each run cost.
#ifndef KVCACHE_RUNNER_COMPARE_COMPARE_H_
#define KVCACHE_RUNNER_COMPARE_COMPARE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runner/generate/generate.h"

namespace kvcache::runner {

// A request of the running batch, compared with its run alone.
struct ComparedRequest {
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
  bool same_tokens = true;
};

// One run. The first is without a cache, and the others are compared with it; the running batch,
// the last, has several requests, each compared with its run alone through a dynamic or paged
// cache.
struct CompareRun {
  HistoryKind cache = HistoryKind::kNone;
  bool same_tokens = true;         // as the run it is compared with; of a batch, every request
  float max_logit_difference = 0;  // of the last step, likewise
  // Of a batch: counts, seconds and bytes are sums over its requests; decode_seconds is of the
  // steps they share; there is no text and no trace.
  GenerateResult generated;
  std::vector<ComparedRequest> requests;  // of a batch

  double prefill_ms() const { return generated.prefill_seconds * 1e3; }
  // 0 for a run of one token.
  double decode_tokens_per_s() const {
    return generated.decode_seconds > 0
               ? static_cast<double>(generated.decode_steps) / generated.decode_seconds
               : 0;
  }
};

// `turn` counts from 0.
struct CompareCallbacks {
  std::function<void(HistoryKind, std::int64_t turn)> on_run;  // a run begins
  std::function<void(HistoryKind, std::string_view)> on_text;  // in the first turn
  // Tokens; of a batch, requests.
  std::function<void(HistoryKind, std::int64_t done, std::int64_t total)> on_progress;
};

// Runs none, dynamic, static, paged and functional, in this order (none and paged alone where only
// pages can hold the rows: KvDtype::needs_pages), and then a running batch of
// three prompts of different length: the prompt, and the prompt with the first third and the first
// two thirds of its continuation. `options.cache` is not looked at, and the end-of-text token does
// not end a run, so that all have max_tokens tokens or end at the context.
//
// All of it is done `turns` times, and seconds are the least of them, token by token (of a batch:
// of its steps in all): what else the machine does only adds time. Runs whose tokens differ from
// one turn to the next are not the same_tokens.
// REQUIRES: turns >= 1. Errors: those of generate().
Result<std::vector<CompareRun>> compare(const Model& model, const Tokenizer& tokenizer,
                                        std::span<const std::int32_t> prompt,
                                        GenerateOptions options, std::int64_t turns = 1,
                                        const CompareCallbacks& callbacks = {});

// K/V rows a layer computes for a prompt of p tokens and m new ones: the sum of n for
// n = p .. p+m-1 without a cache, p+m-1 with one. What a run counted must equal it.
std::int64_t expected_rows_computed(HistoryKind cache, std::int64_t prompt_tokens,
                                    std::int64_t new_tokens);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_COMPARE_COMPARE_H_
