// What a benchmark says: a figure, the roof beside it, and the check of the answer.
#ifndef KVCACHE_BENCH_CASE_H_
#define KVCACHE_BENCH_CASE_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvcache::bench {

struct Case {
  std::string name;
  double achieved = 0;
  double roof = 0;   // what the machine could do, measured in the same run; in the same unit
  double ratio = 0;  // achieved against the roof, 1 is the roof
  std::string unit;
  double error = 0;         // largest difference of the answer from the expected one
  double tolerance = 1e-5;  // a larger error is a wrong answer
  std::vector<std::pair<std::string, double>> details;  // what else was measured, named with units
};

struct Spread {
  double median = 0, least = 0, most = 0;
};

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// REQUIRES: not empty.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// REQUIRES: not empty.
inline Spread spread_of(const std::vector<double>& values) {
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return {median(values), *least, *most};
}

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_CASE_H_
