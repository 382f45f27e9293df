// Rows of keys and values in a ring of buffers larger than every cache, so that what is read next
// was not read for long.
#ifndef KVCACHE_BENCH_KV_RING_H_
#define KVCACHE_BENCH_KV_RING_H_

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "bench/attention_shape.h"
#include "bench/roofs.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"

namespace kvcache::bench {

class KvRing {
 public:
  // As many entries as fill 8 times the last level of cache, at least one, within `most_bytes`
  // where one entry fits. Rows are random. REQUIRES: a checked shape, its lengths.
  // Errors: kOutOfMemory.
  static Result<KvRing> create(const AttentionShape& shape, std::vector<std::int32_t> lengths,
                               std::uint64_t seed, std::int64_t most_bytes = std::int64_t{1} << 30);

  std::int64_t num_entries() const { return num_entries_; }

  // Valid until the ring is destroyed. Entries are counted modulo num_entries().
  KvView view(std::int64_t entry) const;
  // All memory of an entry, K and V.
  std::span<const std::byte> memory(std::int64_t entry) const;

  // The same lengths, but every page is one of a few that fit half the second level of cache.
  KvView cached_view() const;

 private:
  explicit KvRing(Pages pages) : pages_(std::move(pages)) {}
  KvView view_of(const KvPart& part) const;

  AttentionShape shape_;
  std::vector<std::int32_t> lengths_;
  Pages pages_;
  std::int64_t num_entries_ = 0;
  std::int64_t entry_bytes_ = 0;
  std::vector<std::int32_t> table_;         // [batch, pages]; empty: contiguous
  std::vector<std::int32_t> cached_table_;  // [batch, pages]
  std::vector<KvPart> parts_;               // [num_entries], and the cached one
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_KV_RING_H_
