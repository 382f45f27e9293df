#include "runner/eval/distribution.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace kvcache::runner {

LogitSums sums_of(std::span<const float> logits) noexcept {
  const auto top = std::max_element(logits.begin(), logits.end());
  const float most = *top;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  return {static_cast<double>(most) + std::log(sum),
          static_cast<std::int32_t>(top - logits.begin())};
}

double divergence(std::span<const float> p, const LogitSums& of_p, std::span<const float> q,
                  const LogitSums& of_q) noexcept {
  double sum = 0;
  double mass = 0;  // of p as it is summed here
  const auto log_sum = static_cast<float>(of_p.log_sum);
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double weight = std::exp(p[i] - log_sum);
    sum += weight * (static_cast<double>(p[i]) - static_cast<double>(q[i]));
    mass += weight;
  }
  return std::max(0.0, sum / mass - of_p.log_sum + of_q.log_sum);
}

}  // namespace kvcache::runner
