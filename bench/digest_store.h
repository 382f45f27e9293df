// Sequences with known rows in every kind of cache, for digests of what attention makes of them.
#ifndef KVCACHE_BENCH_DIGEST_STORE_H_
#define KVCACHE_BENCH_DIGEST_STORE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvcache/attention.h"
#include "kvcache/executor.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"

namespace kvcache::bench {

// Sequences by their rows: the first `shared` rows of each are those of sequence 0.
struct DigestRows {
  std::int32_t kv_heads = 2;
  std::int32_t k_dim = 64;
  std::int32_t v_dim = 64;
  std::vector<std::int32_t> lengths;
  std::vector<std::int32_t> shared;
};

enum class DigestStream : std::uint8_t { kKey, kValue, kQuery, kMask };

// A multiple of 2^-14 in -2 .. 2, from integers alone: the same float on every machine.
float digest_value(DigestStream stream, std::int64_t seq, std::int64_t row, std::int64_t head,
                   std::int64_t element) noexcept;

// FNV-1a over the bytes, continued from `seed`.
inline constexpr std::uint64_t kDigestSeed = 0xcbf29ce484222325u;
std::uint64_t digest_bytes(const void* data, std::int64_t bytes,
                           std::uint64_t seed = kDigestSeed) noexcept;

// One attention call over all sequences; `options` without a mask, which is one for each.
struct DigestCall {
  std::vector<std::int32_t> qo_indptr;  // [num_seqs + 1]
  TensorView q;                         // [total_q, heads, k_dim]
  MutableTensorView out;                // [total_q, heads, v_dim]
  MutableTensorView lse;                // [total_q, heads], or undefined
  TensorView mask;                      // [num_seqs, 1, L, S_max], or undefined
  AttentionOptions options;
};

class DigestStore {
 public:
  virtual ~DigestStore() = default;

  // "pages of 16, nhd".
  virtual std::string name() const = 0;
  // Whether the call can be made: a running batch takes as many queries of every sequence.
  virtual bool takes(const DigestCall&) const { return true; }
  virtual Status attend(const DigestCall& call, const ExecContext& context) = 0;
  // Of all stored rows in their order, whatever the storage; a running batch shows none.
  virtual bool shows_rows() const { return true; }
  virtual Result<std::uint64_t> rows() const = 0;
};

// All of them over the same rows in `dtype`: contiguous, a running batch, pages of 1, 16 and 128,
// and pages that sequences share, each head-first and sequence-first.
// Errors: what the caches report.
Result<std::vector<std::unique_ptr<DigestStore>>> digest_stores(const DigestRows& rows,
                                                                DType dtype);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_DIGEST_STORE_H_
