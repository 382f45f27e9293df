// A model of random weights end to end: tokens a second of a prompt, and of decoding at some depth.
#ifndef KVCACHE_BENCH_DECODE_MODEL_H_
#define KVCACHE_BENCH_DECODE_MODEL_H_

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "bench/case.h"
#include "bench/meter.h"
#include "kvcache/status.h"
#include "kvcache/types.h"
#include "runner/config/model_config.h"
#include "runner/model/history.h"
#include "runner/ops/linear.h"

namespace kvcache::bench {

// The shape of a model people run: "qwen2-0.5b" (Qwen2.5-0.5B) or "llama-1b" (Llama-3.2-1B), as
// their config.json say. Errors: kInvalidArgument.
Result<runner::ModelConfig> model_shape(std::string_view name);

struct DecodeModelOptions {
  runner::ModelConfig config;
  runner::WeightType weights = runner::WeightType::kBF16;
  runner::Activations activations = runner::Activations::kInt16;  // of int8
  runner::KvDtype kv_dtype = DType::kF16;
  runner::HistoryKind cache = runner::HistoryKind::kDynamic;
  std::vector<std::int64_t> depths = {0, 4096, 16384};  // tokens stored before decoding
  std::int64_t prompt = 512;                            // tokens
  std::int64_t tokens = 16;                             // decoded a repeat
  int repeats = 5;                                      // medians of so many
  std::int32_t threads = 0;                             // 0: those of the default executor
  Clock clock = Clock::kWall;
  std::int64_t roof_bytes = 0;  // that the read roof reads; 0: 8 times the last level of cache
  std::uint64_t seed = 0;
};

// What one decoded token must read at least: every matrix once, the embedding only where it is the
// head, and `depth` rows of `row_bytes`. Bytes.
std::int64_t decode_bytes(const runner::ModelConfig& config, runner::WeightType weights,
                          std::int64_t row_bytes, std::int64_t depth);

// Operations of a prompt of `tokens` tokens at depth 0: 2 for each element of a matrix and token,
// the head for the last token alone, and attention.
double prompt_operations(const runner::ModelConfig& config, std::int64_t tokens);

// Tokens a second of the prompt, beside operations over the compute roof (multiply-adds; of bf16
// and int8 the dot instruction where there is one, halved for inputs of 16 bits), and of decoding
// at each depth, beside decode_bytes() over the read roof; roofs and cases take turns. The details
// say what a token (of a prompt: all of it) is made of: milliseconds in linear layers, in storing
// and attending, and all that stands between; parallel regions; and what share of the read roof the
// linear layers reach alone. Stored rows before decoding are random. `error` is the relative root
// mean square of the logits of a short text decoded token by token against one pass without a
// cache. Errors: kInvalidArgument, kOutOfMemory, what the model reports.
Result<std::vector<Case>> run_decode_model(const DecodeModelOptions& options,
                                           const std::function<void(int, int)>& on_progress);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_DECODE_MODEL_H_
