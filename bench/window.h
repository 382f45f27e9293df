// What a decode step costs in a layer that drops rows: the same at any length.
#ifndef KVCACHE_BENCH_WINDOW_H_
#define KVCACHE_BENCH_WINDOW_H_

#include <cstdint>
#include <vector>

#include "bench/attention.h"
#include "bench/case.h"
#include "kvcache/status.h"

namespace kvcache::bench {

struct WindowShape {
  std::int64_t window = 4096;
  std::int64_t near = 8192, far = 100000;  // tokens
  std::int64_t heads = 32, kv_heads = 8, head_dim = 128;
  std::int64_t page_size = 16;
  std::int32_t threads = 0;  // 0: as many as the default executor has
  const char* backend = nullptr;
};

// Three cases that take turns: one new token in a layer with a window, at `near` and at `far`, and
// in a layer that keeps all rows, at `far`; each turn a few tokens later, because what a window
// costs depends on where in a cut of keys it begins. A turn is tables, plan and run, over rows of
// bf16 that the caches near the cores do not hold; `achieved` is GB/s of the rows that the query
// sees, beside reading memory. Of the answers those of the windows are compared with full rows
// under the same window, which must have the same bits, and with the reference. Errors:
// kInvalidArgument, kUnavailable, kOutOfMemory.
Result<std::vector<Case>> run_window(const WindowShape& shape, const AttentionRun& run);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_WINDOW_H_
