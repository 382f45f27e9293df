// Choosing the next token from logits.
#ifndef KVCACHE_RUNNER_SAMPLER_SAMPLER_H_
#define KVCACHE_RUNNER_SAMPLER_SAMPLER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/status.h"

namespace kvcache::runner {

// Applied in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p. The
// defaults leave each of them out.
struct SamplerOptions {
  double temperature = 0.0;  // >= 0; 0 is greedy: the highest logit after the penalty
  std::int64_t top_k = 0;    // >= 0; the k most likely tokens; 0: all
  double top_p = 1.0;        // 0 .. 1; the fewest most likely tokens that together have top_p
  double min_p = 0.0;        // 0 .. 1; tokens with at least min_p times the best probability
  double repetition_penalty = 1.0;  // > 0; logits of seen tokens are divided by it, or, when
                                    // negative, multiplied
  std::uint64_t seed = 0;
};

// Equal options and equal calls give equal tokens: the generator is our own (SplitMix64), and where
// logits tie the lowest id comes first. At least one token always remains.
// Thread safety: one thread at a time.
class Sampler {
 public:
  // Errors: kInvalidArgument, naming the option.
  static Result<Sampler> create(const SamplerOptions& options);

  // logits: [vocab_size], natural log, up to a constant; -infinity forbids a token.
  // seen: ids the repetition penalty applies to: prompt and output so far, in any order.
  // Errors: kInvalidArgument: logits empty, NaN, +infinity, or all -infinity; kOutOfRange: a seen
  // id beyond the vocabulary; kOutOfMemory. A failing call draws no random number.
  Result<std::int32_t> sample(std::span<const float> logits,
                              std::span<const std::int32_t> seen = {});

  const SamplerOptions& options() const { return options_; }

 private:
  struct Candidate {
    double score;  // penalised logit, then probability up to a constant factor
    std::int32_t id;
  };

  explicit Sampler(const SamplerOptions& options) : options_(options), state_(options.seed) {}

  Status gather(std::span<const float> logits, std::span<const std::int32_t> seen);
  std::int32_t draw();
  double next_uniform();

  SamplerOptions options_;
  std::uint64_t state_;
  std::vector<Candidate> candidates_;  // scratch, kept between calls
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_SAMPLER_SAMPLER_H_
