// The cost of finding and storing prompts in an index of many pages.
#ifndef KVCACHE_BENCH_PREFIX_H_
#define KVCACHE_BENCH_PREFIX_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "bench/case.h"
#include "kvcache/kvcache.h"

namespace kvcache::bench {

struct PrefixBenchOptions {
  std::int64_t pages = 10'000'000;  // in the index, which is full
  std::int64_t page_size = 16;
  std::int64_t prompt = 32768;  // tokens
  Eviction eviction = Eviction::kLru;
  int repeats = 9;  // medians of so many
};

// Nanoseconds a token for match + open + reserve + commit + release of a prompt that is not there
// (as many pages are evicted) and of one that is, but for the writing of rows; of a fork of it by
// page; and microseconds for a reorder of eight. The roof is what is wanted: 75 ns a token, 1 us +
// 2 ns a page, 40 us. `error` counts tokens found that should not be, or the other way round.
// `on_progress` may be empty. Errors: kInvalidArgument, kOutOfMemory.
Result<std::vector<Case>> run_prefix(const PrefixBenchOptions& options,
                                     const std::function<void(int done, int total)>& on_progress);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_PREFIX_H_
