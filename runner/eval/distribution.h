// Distributions of the next token, compared: the sums of one row of logits.
#ifndef KVCACHE_RUNNER_EVAL_DISTRIBUTION_H_
#define KVCACHE_RUNNER_EVAL_DISTRIBUTION_H_

#include <cstdint>
#include <span>

namespace kvcache::runner {

// Logits of one token's successor, as a distribution.
struct LogitSums {
  double log_sum = 0;  // ln of the sum of exp(logit)
  std::int32_t top = 0;
};

LogitSums sums_of(std::span<const float> logits) noexcept;

// KL(p || q) in nats, of two distributions over the same tokens: the sum of p ln(p / q). At least
// 0.
double divergence(std::span<const float> p, const LogitSums& of_p, std::span<const float> q,
                  const LogitSums& of_q) noexcept;

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_EVAL_DISTRIBUTION_H_
