#include "runner/sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <string>

namespace kvcache::runner {
namespace {

Status bad_option(const char* name, double found, const char* expected) {
  std::string shown = std::to_string(found);
  return Status(StatusCode::kInvalidArgument,
                std::string(name) + ": found " + shown + ", expected " + expected);
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

Result<Sampler> Sampler::create(const SamplerOptions& options) {
  // Written so that NaN fails too.
  if (!(options.temperature >= 0.0 && options.temperature < kInfinity)) {
    return bad_option("temperature", options.temperature, "a finite number of at least 0");
  }
  if (options.top_k < 0) {
    return Status(StatusCode::kInvalidArgument,
                  "top_k: found " + std::to_string(options.top_k) + ", expected 0 (all) or more");
  }
  if (!(options.top_p >= 0.0 && options.top_p <= 1.0)) {
    return bad_option("top_p", options.top_p, "0 .. 1");
  }
  if (!(options.min_p >= 0.0 && options.min_p <= 1.0)) {
    return bad_option("min_p", options.min_p, "0 .. 1");
  }
  if (!(options.repetition_penalty > 0.0 && options.repetition_penalty < kInfinity)) {
    return bad_option("repetition_penalty", options.repetition_penalty, "a finite number above 0");
  }
  return Sampler(options);
}

Result<std::int32_t> Sampler::sample(std::span<const float> logits,
                                     std::span<const std::int32_t> seen) {
  try {
    KVC_RETURN_IF_ERROR(gather(logits, seen));
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kOutOfMemory,
                  "logits: found no memory for " + std::to_string(logits.size()) + " candidates");
  }
  return draw();
}

// Checks the input and fills candidates_ with penalised logits, in the order of ids, without the
// forbidden tokens.
Status Sampler::gather(std::span<const float> logits, std::span<const std::int32_t> seen) {
  if (logits.empty() || logits.size() > static_cast<std::size_t>(INT32_MAX)) {
    return Status(StatusCode::kInvalidArgument,
                  "logits: found " + std::to_string(logits.size()) + ", expected 1 .. 2147483647");
  }
  candidates_.resize(logits.size());
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const float logit = logits[id];
    if (!(logit < static_cast<float>(kInfinity))) {
      return Status(StatusCode::kInvalidArgument, "logits[" + std::to_string(id) + "]: found " +
                                                      (std::isnan(logit) ? "NaN" : "infinity") +
                                                      ", expected a finite number");
    }
    candidates_[id] = {logit, static_cast<std::int32_t>(id)};
  }
  for (const std::int32_t id : seen) {
    if (id < 0 || static_cast<std::size_t>(id) >= logits.size()) {
      return Status(StatusCode::kOutOfRange, "seen: found token " + std::to_string(id) +
                                                 ", expected 0 .. " +
                                                 std::to_string(logits.size() - 1));
    }
    // From the logit itself, so that a token seen twice is penalised once.
    const auto index = static_cast<std::size_t>(id);
    const double logit = logits[index];
    candidates_[index].score =
        logit < 0 ? logit * options_.repetition_penalty : logit / options_.repetition_penalty;
  }
  std::erase_if(candidates_, [](const Candidate& c) { return c.score == -kInfinity; });
  if (candidates_.empty()) {
    return Status(StatusCode::kInvalidArgument,
                  "logits: found -infinity for every token, expected one that is allowed");
  }
  return Status();
}

std::int32_t Sampler::draw() {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.id < b.id;
  };
  // Candidates are in the order of ids here, and max_element keeps the first of equals.
  const Candidate best =
      *std::max_element(candidates_.begin(), candidates_.end(),
                        [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
  if (options_.temperature == 0.0) return best.id;

  if (options_.top_k > 0 && options_.top_k < static_cast<std::int64_t>(candidates_.size())) {
    const auto end = candidates_.begin() + options_.top_k;
    std::nth_element(candidates_.begin(), end - 1, candidates_.end(), before);
    candidates_.erase(end, candidates_.end());
  }
  // In the order of likelihood where that matters or costs little, else as they are: both are the
  // same on every platform, which nth_element alone is not.
  if (options_.top_k > 0) std::sort(candidates_.begin(), candidates_.end(), before);
  double total = 0.0;
  for (Candidate& candidate : candidates_) {
    candidate.score = std::exp((candidate.score - best.score) / options_.temperature);
    total += candidate.score;
  }
  if (options_.top_p < 1.0) {
    // A heap gives up the most likely one after another; the tail is never sorted.
    const auto after = [&before](const Candidate& a, const Candidate& b) { return before(b, a); };
    std::make_heap(candidates_.begin(), candidates_.end(), after);
    auto end = candidates_.end();
    double sum = 0.0;
    do {
      std::pop_heap(candidates_.begin(), end, after);
      sum += (--end)->score;
    } while (sum < options_.top_p * total && end != candidates_.begin());
    candidates_.erase(candidates_.begin(), end);
    std::reverse(candidates_.begin(), candidates_.end());
    total = sum;
  }
  if (options_.min_p > 0.0) {
    // The best has the score exp(0) = 1.
    std::erase_if(candidates_, [this](const Candidate& c) { return c.score < options_.min_p; });
    total = 0.0;
    for (const Candidate& candidate : candidates_) total += candidate.score;
  }
  const double target = next_uniform() * total;
  double sum = 0.0;
  for (const Candidate& candidate : candidates_) {
    sum += candidate.score;
    if (target < sum) return candidate.id;
  }
  return best.id;  // rounding left the target at the very end
}

// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014); the upper
// 53 bits as a multiple of 2^-53 in [0, 1).
double Sampler::next_uniform() {
  state_ += 0x9E3779B97F4A7C15U;
  std::uint64_t bits = state_;
  bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9U;
  bits = (bits ^ bits >> 27) * 0x94D049BB133111EBU;
  bits ^= bits >> 31;
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace kvcache::runner
