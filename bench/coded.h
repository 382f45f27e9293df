// What a decode step costs over rows that are stored coded, beside plain ones of 16 bits.
#ifndef KVCACHE_BENCH_CODED_H_
#define KVCACHE_BENCH_CODED_H_

#include <cstdint>
#include <vector>

#include "bench/attention.h"
#include "bench/case.h"
#include "kvcache/status.h"

namespace kvcache::bench {

struct CodedShape {
  std::int64_t kv_len = 16384;
  std::int64_t queries = 1;  // the last tokens: causal
  std::int64_t heads = 32, kv_heads = 8, head_dim = 128;
  std::int64_t page_size = 64;
  std::int32_t threads = 0;  // 0: as many as the default executor has
  const char* backend = nullptr;
};

// A case for bf16 and for each form whose rows may have `head_dim` elements. In every turn each
// form attends with its queries over another layer of a paged cache, and memory is read in between;
// `achieved` is GB/s of the rows with their scales, beside reading memory; "append us" is what a
// token takes a layer, from reserve to commit, rows given in f32. The error is the relative root
// mean square beside the reference over the same codes, of a few queries. Errors: kInvalidArgument,
// kUnavailable, kOutOfMemory.
Result<std::vector<Case>> run_coded(const CodedShape& shape, const AttentionRun& run);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_CODED_H_
