// Beam search: the likeliest texts, several at a time, as Hugging Face transformers searches with
// do_sample = False and early_stopping = False.
#ifndef KVCACHE_RUNNER_GENERATE_BEAM_SEARCH_H_
#define KVCACHE_RUNNER_GENERATE_BEAM_SEARCH_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "runner/generate/options.h"

namespace kvcache::runner {

struct BeamOptions {
  std::int64_t num_beams = 4;  // >= 1
  double length_penalty = 1.0;
  std::int64_t max_tokens = 128;  // >= 1
  std::vector<std::int32_t> eos_token_ids;
};

// The bookkeeping of a search, without a model. A beam is a text that goes on; its score is the sum
// of the log-probabilities of its new tokens. Each step
//   - takes the (1 + max(1, E)) * num_beams likeliest ways to go on, E end tokens: enough for
//     num_beams that do not end;
//   - of those that end here, by an end token or at max_tokens, the ones among the first num_beams
//     become hypotheses with score / length ^ length_penalty (the end token counts in the length),
//     and the best num_beams hypotheses so far are kept;
//   - the best num_beams of the others are the new beams.
// It is over when num_beams hypotheses are there and the best beam, divided by its length so far to
// the same power, beats none of them; or at max_tokens. In the first step all beams are the prompt,
// and the first alone counts. (transformers 5.23, generation/utils.py, _beam_search.)
class BeamSearch {
 public:
  explicit BeamSearch(BeamOptions options);

  // logits: [num_beams, vocab_size] of the beams' last tokens, natural log up to a constant a row.
  // REQUIRES: !over(). Errors: kInvalidArgument for another number of logits, for one that is not a
  // number, or a vocabulary too small for the beams; nothing changes then.
  Status step(std::span<const float> logits);

  bool over() const { return over_; }

  // Of the last step: beam i goes on from what beam beam_idx()[i] was, with tokens()[i].
  std::span<const std::int64_t> beam_idx() const { return beam_idx_; }
  std::span<const std::int32_t> tokens() const { return tokens_; }

  // New tokens of beam i.
  std::span<const std::int32_t> beam(std::int64_t i) const {
    return beams_[static_cast<std::size_t>(i)].tokens;
  }

  // Best first; num_beams of them once it is over.
  std::span<const Hypothesis> hypotheses() const { return hypotheses_; }

 private:
  struct Candidate {
    double score;
    std::int64_t beam;
    std::int32_t token;
  };
  struct Beam {
    std::vector<std::int32_t> tokens;
    double score = 0;
  };

  std::vector<Candidate> best_candidates(std::span<const float> logits, std::int64_t count) const;
  bool ends(std::int32_t token) const;
  void finish(const Candidate& candidate);

  BeamOptions options_;
  std::vector<Beam> beams_;
  std::vector<Hypothesis> hypotheses_;
  std::vector<std::int64_t> beam_idx_;
  std::vector<std::int32_t> tokens_;
  std::int64_t length_ = 0;  // new tokens of each beam
  bool over_ = false;
};

// generate() for options.num_beams > 1: one prefill, its rows repeated, then a step for all beams
// together. Layered caches copy rows to reorder beams; pages move references. The text of the
// result is not decoded here. REQUIRES: the prompt and the options were checked.
Result<GenerateResult> generate_beams(
    const Model& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
    const std::function<void(std::int64_t done, std::int64_t total)>& on_prefill = {});

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_BEAM_SEARCH_H_
