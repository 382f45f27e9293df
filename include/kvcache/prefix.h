// PrefixCache: what was computed once is found again.
//
//   match -> open -> reserve (with token ids) -> write -> commit -> release
//
// Finds the longest stored beginning of a text among the pages of a PagedCache, to the token. Pages
// that sequences leave behind stay until reserve() needs them.
#ifndef KVCACHE_PREFIX_H_
#define KVCACHE_PREFIX_H_

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kvcache/eviction.h"
#include "kvcache/executor.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// Texts of different namespaces never meet. The 256 bits stand for all that decides what rows a
// token gets: weights, tokenizer, stored form, RoPE, adapter, and a salt of the caller's.
struct PrefixNamespace {
  std::array<std::byte, 32> bits{};
  std::int64_t tenant = 0;  // whose quota its pages count for

  friend auto operator<=>(const PrefixNamespace&, const PrefixNamespace&) = default;
};

// The namespace of such a list of parts: their SHA-256, each with its length, so that lists that
// differ have others. Parts are whatever decides: a digest of the weights, names, forms, a salt.
KVC_API PrefixNamespace namespace_of(std::span<const std::string_view> parts,
                                     std::int64_t tenant = 0) noexcept;
inline PrefixNamespace namespace_of(std::initializer_list<std::string_view> parts,
                                    std::int64_t tenant = 0) noexcept {
  return namespace_of(std::span<const std::string_view>(parts.begin(), parts.size()), tenant);
}

// What stands for all bytes of a file (weights, a tokenizer) among the parts of a namespace: 32
// bytes, the SHA-256 of the XXH3-64 of each MiB. Reads the whole file. Errors: kNotFound, kIo,
// kOutOfMemory.
KVC_API Result<std::string> digest_of_file(const std::string& path);
KVC_API Result<std::string> digest_of(std::span<const std::byte> bytes);  // the same of memory

// Why a match is not longer.
enum class PrefixMiss : std::uint8_t {
  kNone = 0,            // nothing was asked for
  kLastToken = 1,       // the last token is always computed: all others were found
  kCold = 2,            // the next page was never stored
  kEvicted = 3,         // it was, and left
  kExpired = 4,         // its time to live is over
  kOtherNamespace = 5,  // nothing is stored in this namespace, but in others
  kWindow = 6,          // a layer's last window before a longer one is gone
};
KVC_API const char* name_of(PrefixMiss reason) noexcept;

using PrefixClock = std::function<std::int64_t()>;  // milliseconds, never going back; no exception

struct PrefixOptions {
  Eviction eviction = Eviction::kLru;
  EvictionPolicy* policy = nullptr;  // in place of `eviction`; not owned, its memory is its own
  std::int64_t ttl = 0;  // milliseconds that a page is found after it was stored; 0: ever
  std::int64_t event_capacity = 0;  // events that are kept until taken, outside of the budget
  PrefixClock clock;                // none: the system's steady one
};

struct PrefixStats {
  std::int64_t matches = 0;        // that were asked for
  std::int64_t hits = 0;           // of these, with a token found
  std::int64_t tokens_asked = 0;   // in them
  std::int64_t tokens_found = 0;   // of these
  std::int64_t tokens_reused = 0;  // in sequences that were opened
  std::int64_t misses[7] = {};     // by PrefixMiss: why matches were not longer
  std::int64_t pages_stored = 0;   // that became known
  std::int64_t pages_evicted = 0;  // to make room
  std::int64_t pages_removed = 0;  // for another reason
  std::int64_t pages = 0;          // known now,
  std::int64_t pages_unheld = 0;   // of these, that no sequence holds
  std::int64_t bytes = 0;          // of known pages: rows, ids and their share of the tables
  std::int64_t namespaces = 0;     // with pages or sequences
};

struct PrefixEvent {
  enum class Kind : std::uint8_t { kStored = 0, kRemoved = 1, kLost = 2 };
  Kind kind = Kind::kStored;
  std::int64_t number = 0;    // 1, 2, ...; of kLost: the last that was lost
  std::int64_t lost = 0;      // of kLost: how many
  std::uint64_t key = 0;      // of the page's tokens and all before them
  std::uint64_t parent = 0;   // that of the page before; of a first page that of its namespace
  std::int64_t position = 0;  // page number in its text
};

struct PrefixExplanation {
  std::int64_t length = 0;  // that match() would find
  std::int64_t stored = 0;  // tokens that are stored, whether every layer can serve them or not
  PrefixMiss reason = PrefixMiss::kNone;
  std::int64_t layer = -1;  // the first of the group that was the limit; -1: none was
  std::string text;         // the same in words
};

// A stored beginning. Its pages stay as long as the handle lives; drop it when it is opened.
// REQUIRES: it does not outlive the cache in use (dropping it later is safe). Thread safety: a
// handle belongs to its cache: it is dropped like a changing call.
class KVC_API PrefixHandle final {
 public:
  PrefixHandle(PrefixHandle&&) noexcept;
  PrefixHandle& operator=(PrefixHandle&&) noexcept;
  ~PrefixHandle();

  std::int64_t length() const noexcept;  // tokens found
  PrefixMiss reason() const noexcept;    // why not more

 private:
  friend class PrefixCache;
  struct Impl;
  explicit PrefixHandle(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

// Every failing call leaves cache and index as if it had not been made. A page is known by the page
// before it and its token ids, which every match compares: what is found is right or not found.
//
// A sequence opened here has the namespace of its handle: its pages become findable at commit, as
// far as all its appends brought ids, and the last, incomplete one when it is released. Nobody
// writes to a page that is known: who appends behind some of its rows copies these first (counted
// in PagedStats). Where two sequences compute the same page, the first one is known.
//
// Unheld pages leave when a reserve() needs them: first those of tenants above their quota, then by
// priority, then by the policy; the end of a text before its beginning. Pages of windows leave by
// themselves, the least recently held first.
//
// Thread safety: calls are serialised by the caller, together with those of the PagedCache; const
// calls may run together.
class KVC_API PrefixCache final {
 public:
  // Over a cache with CacheConfig::prefixes, one at a time. Sequences that are open stay unknown.
  // Errors: kInvalidArgument, kOutOfMemory.
  static Result<PrefixCache> create(PagedCache& cache, const PrefixOptions& options = {});
  PrefixCache(PrefixCache&&) noexcept;
  PrefixCache& operator=(PrefixCache&&) noexcept;
  // All unheld pages are free again. Handles and pins are gone, sequences stay.
  ~PrefixCache();

  // The longest stored beginning of `tokens` (ids) that every layer can serve, at most all but the
  // last token. Nothing found is a handle of length 0. Errors: kRetryLater where the handle would
  // pass the budget, kOutOfMemory.
  Result<PrefixHandle> match(std::span<const std::int32_t> tokens,
                             const PrefixNamespace& space = {});

  // A sequence of the handle's tokens that shares its pages. Errors: those of PagedCache::open.
  Result<SequenceId> open(const PrefixHandle& handle);

  // What match() would find and why no more; nothing is held, used or counted.
  Result<PrefixExplanation> explain(std::span<const std::int32_t> tokens,
                                    const PrefixNamespace& space = {}) const;

  // Keeps the handle's pages also without it, until as many unpins of the same beginning. Errors:
  // those of open; kNotFound for one that is not pinned.
  Status pin(const PrefixHandle& handle);
  Status unpin(const PrefixHandle& handle);

  // Of all pages of the handle. Lower priorities leave first (0 .. 100; 50 is usual, and leaves by
  // the policy; the others the least recently used first). A ttl counts from now; 0: for ever.
  // What lies behind the handle keeps its own priority, be it a page of the text's last token, and
  // leaves before it: a match of the text and any id more has all pages of the text.
  Status set_priority(const PrefixHandle& handle, std::int64_t priority);
  Status set_ttl(const PrefixHandle& handle, std::int64_t milliseconds);

  // Bytes of pages (see PrefixStats::bytes) that others leave a tenant: what it has beyond leaves
  // before all else. -1: no quota, as at first. Takes time in proportion to all pages.
  Status set_quota(std::int64_t tenant, std::int64_t bytes);
  std::int64_t tenant_bytes(std::int64_t tenant) const noexcept;  // of one with a quota; else 0

  // Pages that are free now: at most `pages` unheld ones, or those past their time to live, which
  // takes time in proportion to all pages. Returns how many.
  std::int64_t evict(std::int64_t pages) noexcept;
  std::int64_t remove_expired() noexcept;

  // Writes what can be found to `path`, as CacheFile::save does: what was used last first, every
  // page behind those before it, as long as their rows fit `most_bytes` (0: all). Returns how many
  // pages. / What such a file has can be found again, in its namespaces, as far as there is room
  // without evicting; returns how many pages came. Priorities come along, times to live begin anew.
  // `only`: texts of other namespaces stay where they are, unread. Errors: those of CacheFile, and
  // kInvalidArgument for another page_size.
  Result<std::int64_t> save(const std::string& path, std::int64_t most_bytes = 0) const;
  Result<std::int64_t> load(const std::string& path, const ExecContext& context = {});
  Result<std::int64_t> load(const std::string& path, const PrefixNamespace& only,
                            const ExecContext& context = {});

  PrefixStats stats() const noexcept;
  // Moves the oldest events to `out`; returns how many. Numbers are without gaps but for kLost.
  std::int64_t take_events(std::span<PrefixEvent> out) noexcept;

  Status check_invariants() const;  // of the index; see PagedCache's own. For tests.

 private:
  struct Impl;
  explicit PrefixCache(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_PREFIX_H_
