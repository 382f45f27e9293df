#include "runner/compare/compare.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runner/engine/engine.h"

namespace kvcache::runner {

std::int64_t expected_rows_computed(HistoryKind cache, std::int64_t prompt_tokens,
                                    std::int64_t new_tokens) {
  const std::int64_t last = prompt_tokens + new_tokens - 1;
  if (cache != HistoryKind::kNone) return last;
  return (prompt_tokens + last) * new_tokens / 2;
}

namespace {

// Compares what a run gave with what it should have given.
bool same(const GenerateResult& result, const GenerateResult& expected, float* difference) {
  const std::size_t logits = std::min(result.last_logits.size(), expected.last_logits.size());
  for (std::size_t i = 0; i < logits; ++i) {
    *difference = std::max(*difference, std::fabs(result.last_logits[i] - expected.last_logits[i]));
  }
  return result.tokens == expected.tokens;
}

// The prompt, and the prompt with the first third and the first two thirds of `continuation`.
std::vector<std::vector<std::int32_t>> batch_prompts(std::span<const std::int32_t> prompt,
                                                     std::span<const std::int32_t> continuation,
                                                     std::int64_t context) {
  std::vector<std::vector<std::int32_t>> prompts;
  const std::size_t third = (continuation.size() + 2) / 3;
  const std::size_t room = static_cast<std::size_t>(context) - prompt.size();
  for (const std::size_t more : {std::size_t{0}, third, 2 * third}) {
    const std::size_t taken = std::min({more, continuation.size(), room});
    prompts.emplace_back(prompt.begin(), prompt.end());
    prompts.back().insert(prompts.back().end(), continuation.begin(),
                          continuation.begin() + static_cast<std::ptrdiff_t>(taken));
  }
  return prompts;
}

// The cache of a request alone.
HistoryKind alone_in(const GenerateOptions& options) {
  return options.kv_dtype.needs_pages() ? HistoryKind::kPaged : HistoryKind::kDynamic;
}

Result<CompareRun> compare_batch(const Model& model, const Tokenizer& tokenizer,
                                 const std::vector<std::vector<std::int32_t>>& prompts,
                                 GenerateOptions options, const CompareCallbacks& callbacks) {
  const auto count = static_cast<std::int64_t>(prompts.size());
  EngineOptions together;
  together.max_active = count;
  together.cached_bytes = 0;  // all of it is to be computed
  KVC_ASSIGN_OR_RETURN(Engine batch, Engine::create(model, tokenizer, options, together));
  for (const auto& prompt : prompts) KVC_RETURN_IF_ERROR(batch.add(prompt).status());
  EngineCallbacks progress;
  std::int64_t ended = 0;
  progress.on_end = [&](std::int64_t, const GenerateResult&) {
    if (callbacks.on_progress) callbacks.on_progress(HistoryKind::kBatching, ++ended, count);
  };
  while (!batch.done()) KVC_RETURN_IF_ERROR(batch.step(progress));

  CompareRun run;
  run.cache = HistoryKind::kBatching;
  options.cache = alone_in(options);
  GenerateResult& sum = run.generated;
  for (std::int64_t i = 0; i < count; ++i) {
    const GenerateResult& result = batch.result(i);
    KVC_RETURN_IF_ERROR(result.status);
    const auto& prompt = prompts[static_cast<std::size_t>(i)];
    KVC_ASSIGN_OR_RETURN(const GenerateResult alone, generate(model, tokenizer, prompt, options));
    ComparedRequest request;
    request.prompt_tokens = result.prompt_tokens;
    request.new_tokens = static_cast<std::int64_t>(result.tokens.size());
    request.same_tokens = same(result, alone, &run.max_logit_difference);
    run.same_tokens = run.same_tokens && request.same_tokens;
    run.requests.push_back(request);
    sum.prompt_tokens += result.prompt_tokens;
    sum.prefill_seconds += result.prefill_seconds;
    sum.decode_steps += result.decode_steps;
    sum.usage.nbytes += result.usage.nbytes;
    sum.usage.reserved_bytes += result.usage.reserved_bytes;
  }
  sum.decode_seconds = batch.decode_seconds();
  sum.counters = batch.counters();
  return run;
}

// One turn of them all.
Result<std::vector<CompareRun>> compare_once(const Model& model, const Tokenizer& tokenizer,
                                             std::span<const std::int32_t> prompt,
                                             GenerateOptions options, std::int64_t turn,
                                             const CompareCallbacks& callbacks) {
  std::vector<CompareRun> runs;
  for (const HistoryKind cache : {HistoryKind::kNone, HistoryKind::kDynamic, HistoryKind::kStatic,
                                  HistoryKind::kPaged, HistoryKind::kFunctional}) {
    const bool in_pages = cache == HistoryKind::kNone || cache == HistoryKind::kPaged;
    if (options.kv_dtype.needs_pages() && !in_pages) continue;
    if (callbacks.on_run) callbacks.on_run(cache, turn);
    options.cache = cache;
    GenerateCallbacks progress;
    std::int64_t done = 0;
    progress.on_text = [&](std::string_view text) {
      if (callbacks.on_text && turn == 0) callbacks.on_text(cache, text);
    };
    progress.on_token = [&](const TokenTrace&) {
      if (callbacks.on_progress) callbacks.on_progress(cache, ++done, options.max_tokens);
    };
    CompareRun run;
    run.cache = cache;
    KVC_ASSIGN_OR_RETURN(run.generated, generate(model, tokenizer, prompt, options, progress));
    if (!runs.empty()) {
      run.same_tokens = same(run.generated, runs.front().generated, &run.max_logit_difference);
    }
    runs.push_back(std::move(run));
  }
  if (callbacks.on_run) callbacks.on_run(HistoryKind::kBatching, turn);
  const auto prompts =
      batch_prompts(prompt, runs.front().generated.tokens, model.config().max_position_embeddings);
  KVC_ASSIGN_OR_RETURN(CompareRun batch,
                       compare_batch(model, tokenizer, prompts, options, callbacks));
  runs.push_back(std::move(batch));
  return runs;
}

// Takes the shorter times of a later turn into `run`.
void take_least(const CompareRun& later, CompareRun* run) {
  GenerateResult& least = run->generated;
  run->same_tokens =
      run->same_tokens && later.same_tokens && later.generated.tokens == least.tokens;
  run->max_logit_difference = std::max(run->max_logit_difference, later.max_logit_difference);
  least.prefill_seconds = std::min(least.prefill_seconds, later.generated.prefill_seconds);
  if (least.trace.empty()) {  // a batch
    least.decode_seconds = std::min(least.decode_seconds, later.generated.decode_seconds);
    return;
  }
  least.decode_seconds = 0;
  const std::size_t tokens = std::min(least.trace.size(), later.generated.trace.size());
  for (std::size_t i = 0; i < tokens; ++i) {
    TokenTrace& token = least.trace[i];
    token.seconds = std::min(token.seconds, later.generated.trace[i].seconds);
    if (i > 0) least.decode_seconds += token.seconds;  // the first is of the prefill
  }
}

}  // namespace

Result<std::vector<CompareRun>> compare(const Model& model, const Tokenizer& tokenizer,
                                        std::span<const std::int32_t> prompt,
                                        GenerateOptions options, std::int64_t turns,
                                        const CompareCallbacks& callbacks) {
  options.stop_at_eos = false;
  // 16-bit and coded rows magnify the order of sums: one path for any number of queries, with and
  // without.
  KVC_ASSIGN_OR_RETURN(const auto layers,
                       options.kv_dtype.layers(model.config(), model.default_kv_dtype()));
  if (one_dtype(layers) != DType::kF32) options.attention.reproducible = true;
  std::vector<CompareRun> runs;
  for (std::int64_t turn = 0; turn < turns; ++turn) {
    KVC_ASSIGN_OR_RETURN(std::vector<CompareRun> once,
                         compare_once(model, tokenizer, prompt, options, turn, callbacks));
    if (turn == 0) {
      runs = std::move(once);
    } else {
      for (std::size_t i = 0; i < runs.size(); ++i) take_least(once[i], &runs[i]);
    }
  }
  return runs;
}

}  // namespace kvcache::runner
