// What a list of measured cases is printed as, and whether all answers were right.
#ifndef KVCACHE_BENCH_REPORT_H_
#define KVCACHE_BENCH_REPORT_H_

#include <string>
#include <vector>

#include "bench/case.h"
#include "kvcache/status.h"

namespace kvcache::bench {

// {"cases": [{"name", "achieved", "roof", "ratio", "unit", "error", "details": {...}}, ...]} on one
// line; "details" only where there are any. JSON has no infinity: numbers that are not finite
// become 1e300.
std::string to_json(const std::vector<Case>& cases);

// Errors: kInternal, naming the first case whose error passes its tolerance (or is not a number).
Status check_answers(const std::vector<Case>& cases);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_REPORT_H_
