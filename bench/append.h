// The cost of appending one token to every layer, at several lengths of the cache.
#ifndef KVCACHE_BENCH_APPEND_H_
#define KVCACHE_BENCH_APPEND_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "bench/case.h"
#include "kvcache/kvcache.h"

namespace kvcache::bench {

struct AppendOptions {
  std::int64_t layers = 4;
  std::int64_t kv_heads = 8;
  std::int64_t head_dim = 128;
  DType dtype = DType::kBF16;
  std::optional<DType> rows;  // of the rows that are written; none: the cache's own
  Layout layout = Layout::kHND;
  std::int64_t page_size = 16;
  std::vector<std::int64_t> lengths = {100, 100000};  // tokens stored before the appends, ascending
  std::int64_t appends = 4096;  // the mean of so many, because page faults come in bursts
  int repeats = 5;              // medians of so many
  bool warm = false;            // the memory was written to before: no first touches
};

// Microseconds a token for the dynamic and the paged cache, each length against a memcpy of the
// same rows into memory that was reserved in one piece and not touched before, or was if `warm`.
// `error` compares the rows read back with those written. `on_progress` may be empty. Errors:
// kInvalidArgument, kOutOfMemory.
Result<std::vector<Case>> run_append(const AppendOptions& options,
                                     const std::function<void(int done, int total)>& on_progress);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_APPEND_H_
