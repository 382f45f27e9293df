// One case of attention to measure, what it must move and compute at least, and the lists of cases.
#ifndef KVCACHE_BENCH_ATTENTION_SHAPE_H_
#define KVCACHE_BENCH_ATTENTION_SHAPE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"
#include "kvcache/types.h"

namespace kvcache::bench {

struct AttentionShape {
  std::string name;  // empty: made of the rest
  std::int64_t kv_len = 16384;
  std::int64_t queries = 1;  // of each sequence, the last of its tokens: causal
  std::int64_t heads = 32;
  std::int64_t kv_heads = 8;
  std::int64_t head_dim = 128;
  std::int64_t v_head_dim = 0;  // 0: head_dim
  DType dtype = DType::kBF16;   // of the rows; queries and results are f32
  std::int64_t page_size = 0;   // tokens, pages in random order; 0: contiguous
  Layout layout = Layout::kHND;
  std::int64_t batch = 1;
  bool ragged = false;             // lengths spread over queries .. kv_len, both included
  std::int64_t shared_prefix = 0;  // tokens in pages that all sequences share
  std::int32_t threads = 0;        // 0: as many as the default executor has
  std::string backend;             // empty: the one selected

  std::int64_t v_dim() const { return v_head_dim == 0 ? head_dim : v_head_dim; }
};

// Errors: kInvalidArgument, naming the flag, what was found and what is expected.
Status check_shape(const AttentionShape& shape);

// Lengths of the sequences, in no order. REQUIRES: a checked shape.
std::vector<std::int32_t> lengths_of(const AttentionShape& shape, std::uint64_t seed);

// The least a case can do: K and V rows read once a sequence (a shared prefix once for all), and
// 2 (head_dim + v_head_dim) operations for each visible (query, key) pair and head.
struct AttentionCounts {
  std::int64_t rows = 0;   // K/V token rows
  std::int64_t bytes = 0;  // of these, all KV heads
  double operations = 0;
  double widened = 0;  // elements of 16 bits to make float32, each once
};
AttentionCounts count_attention(const AttentionShape& shape,
                                const std::vector<std::int32_t>& lengths);

// What a machine does in a second.
struct Rates {
  double read = 0;     // bytes
  double compute = 0;  // operations
  double widen = 0;    // elements; infinite where there is nothing to widen
};

// Seconds no kernel can beat: the larger of reading and computing, conversions being part of the
// computing.
struct Bound {
  double read = 0;
  double compute = 0;
  double seconds() const { return read > compute ? read : compute; }
};
Bound bound_of(const AttentionCounts& counts, const Rates& rates);

// The cases of a name: "decode", "prefill", "ladder" (1 to 512 queries) or "all". `base` gives
// threads and backend. Errors: kInvalidArgument.
Result<std::vector<AttentionShape>> attention_cases(std::string_view list,
                                                    const AttentionShape& base);

// "16384 keys, 32/8 x 128, bf16", and what is unusual about it.
std::string describe(const AttentionShape& shape);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_ATTENTION_SHAPE_H_
