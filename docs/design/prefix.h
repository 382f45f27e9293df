// A design: nothing of it is built.
//
// PrefixCache: finds the longest known beginning of a text among the pages of a PagedCache.
#ifndef KVCACHE_PREFIX_H_
#define KVCACHE_PREFIX_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// Decides what leaves first. Called with the index's own entries, never with rows.
// Thread safety: calls are serialised by the PrefixCache.
class KVC_API EvictionPolicy {
 public:
  virtual ~EvictionPolicy();
  virtual void inserted(std::int64_t entry, std::int64_t tokens) = 0;
  virtual void used(std::int64_t entry) = 0;
  virtual void erased(std::int64_t entry) = 0;
  // An entry that may go, or -1. Pinned entries and those with children are never erased.
  virtual std::int64_t victim() = 0;
};

struct PrefixOptions {
  // 256 bits over weights, tokenizer, dtype, codec, RoPE, adapters and format: only texts under
  // the same fingerprint are ever compared.
  std::array<std::byte, 32> fingerprint{};
  EvictionPolicy* policy = nullptr;  // not owned; null: least recently used
};

// A match: a sequence that shares the pages of the known beginning.
struct PrefixMatch {
  SequenceId seq;           // a fork of `length` tokens, the caller's to append to and release
  std::int64_t length = 0;  // tokens matched, whole pages; 0: an empty sequence
  std::string miss_reason;  // why the match is not longer: "no such page", "evicted", "salt", ...
};

// Tokens are compared on every hit; a hash alone never decides.
// REQUIRES: outlives no PagedCache it was created over.
// Thread safety: calls are serialised by the caller, together with those of the PagedCache.
class KVC_API PrefixCache final {
 public:
  static Result<PrefixCache> create(PagedCache& cache, const PrefixOptions& options);
  PrefixCache(PrefixCache&&) noexcept;
  PrefixCache& operator=(PrefixCache&&) noexcept;
  ~PrefixCache();

  // The longest known beginning of `tokens` under `salt` (tenants that must not share differ in
  // salt), as a new sequence.
  Result<PrefixMatch> match_prefix(std::span<const std::int32_t> tokens,
                                   std::span<const std::byte> salt = {});

  // Remembers the whole pages of a sequence, by the token ids its appends carried.
  // Errors: kInvalidArgument for a sequence without token ids.
  Status insert(SequenceId seq, std::span<const std::byte> salt = {});

  // Pinned beginnings are never evicted.
  Status pin(std::span<const std::int32_t> tokens, std::span<const std::byte> salt = {});
  Status unpin(std::span<const std::int32_t> tokens, std::span<const std::byte> salt = {});

  // Releases at least `pages` pages if it can; returns how many it released.
  Result<std::int64_t> evict(std::int64_t pages);

 private:
  struct Impl;
  explicit PrefixCache(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_PREFIX_H_
