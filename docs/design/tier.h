// A design: nothing of it is built.
//
// Tier: where rows go when they leave memory, and where they are found again.
#ifndef KVCACHE_TIER_H_
#define KVCACHE_TIER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/status.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// Names a record: 256 bits over the fingerprint of the model and format, the salt, and all tokens
// from the start of the text to the end of the record.
using TierKey = std::array<std::byte, 32>;

struct TierStats {
  std::int64_t records = 0;
  std::int64_t bytes = 0;  // held now, never above capacity_bytes
  std::int64_t capacity_bytes = 0;
  std::int64_t hits = 0;
  std::int64_t misses = 0;
  std::int64_t refused = 0;  // records that failed their checksum or token comparison
};

// Stores records of bytes under keys; knows nothing of heads, layers or attention. A record is
// found whole and unchanged or not at all: implementations keep a checksum and compare it on
// every read. Losing records is allowed, returning wrong ones is not.
//
// Thread safety: all calls may run together.
class KVC_API Tier {
 public:
  virtual ~Tier();

  // Errors: kNeverFits for a record larger than the tier, kIo, kUnavailable. A key already there
  // keeps its record.
  virtual Status put(const TierKey& key, std::span<const std::byte> record) = 0;

  // Errors: kNotFound; kCorrupt for a record that fails its checksum (it is then gone).
  virtual Result<std::vector<std::byte>> get(const TierKey& key) = 0;

  virtual bool contains(const TierKey& key) const noexcept = 0;
  virtual Status erase(const TierKey& key) = 0;
  virtual TierStats stats() const noexcept = 0;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_TIER_H_
