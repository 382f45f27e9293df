// PrefixStore: pages that outlive the texts they were computed for, and the index that finds them.
#ifndef KVCACHE_RUNNER_MODEL_PREFIX_STORE_H_
#define KVCACHE_RUNNER_MODEL_PREFIX_STORE_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "runner/model/history.h"

namespace kvcache::runner {

// What a prefix cache takes where nobody says: 1 GiB.
inline constexpr std::int64_t kPrefixBytes = std::int64_t{1} << 30;

struct PrefixStoreOptions {
  std::int64_t num_pages = 0;     // at the most; or, where it is 0,
  std::int64_t budget_bytes = 0;  // as many as these allow, which then bound all that it takes
  Eviction eviction = Eviction::kLru;
  PrefixNamespace space = {};  // of all that decides what rows a token gets, where there are files
};

// Rows of one model in one stored form, so that all texts of a tenant share a namespace: weights,
// tokenizer and form are those of who made it. Histories over it may run in several threads: each
// call of theirs holds the mutex, attention does not.
class PrefixStore : public std::enable_shared_from_this<PrefixStore> {
 public:
  // Of `rows`, rows, dtype, layout, page_size and memory. Errors: those of KvDtype::layers and
  // PagedCache::create, where the budget is called prefix_cache.
  static Result<std::shared_ptr<PrefixStore>> create(const ModelConfig& config,
                                                     const HistoryOptions& rows,
                                                     const PrefixStoreOptions& options);

  // Room for the pages of texts under way: what is spoken for never exceeds the pool, whatever else
  // lies there, because pages that nobody holds give way. Given back when it is dropped.
  class Lease {
   public:
    Lease(Lease&& other) noexcept
        : store_(std::move(other.store_)), pages_(std::exchange(other.pages_, 0)) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease();

    PrefixStore& store() const { return *store_; }

   private:
    friend class PrefixStore;
    Lease(std::shared_ptr<PrefixStore> store, std::int64_t pages)
        : store_(std::move(store)), pages_(pages) {}

    std::shared_ptr<PrefixStore> store_;
    std::int64_t pages_;
  };
  // None where others have spoken for them.
  std::optional<Lease> lease(std::int64_t pages);

  std::int64_t num_pages() const { return num_pages_; }  // that leases may have together
  std::int64_t page_size() const { return cache_->page_size(); }
  std::int64_t row_bytes() const { return row_bytes_; }  // of one token in all layers
  std::int64_t budget_bytes() const { return budget_bytes_; }

  PrefixStats stats() const;
  std::int64_t reserved_bytes() const;
  std::int64_t leases_refused() const;

  // All that is known in a file: see PrefixCache::save and load, also kInvalidArgument for a file
  // that has texts, and none of this namespace: they would never be found here. / One text: its
  // longest stored beginning, which counts as a match, in a file (CacheFile), and back, to be found
  // here. Both return its tokens. Errors: those of CacheFile; kNotFound, and no file, where fewer
  // than `least` tokens are known.
  Result<std::int64_t> save(const std::string& path) const;
  Result<std::int64_t> load(const std::string& path);
  Result<std::int64_t> save_text(const std::string& path, std::span<const std::int32_t> text,
                                 std::int64_t least);
  Result<std::int64_t> load_text(const std::string& path);

  // Evicts of what nobody holds until it takes no more than `bytes`.
  void trim(std::int64_t bytes);

  // The priority of all pages that are known of a text, its last token included; returns the tokens
  // in them. It counts as a match. Errors: kInvalidArgument; those of match().
  Result<std::int64_t> set_priority(std::span<const std::int32_t> text, std::int64_t priority,
                                    std::int64_t tenant = 0);

  // Errors: kInternal. For tests.
  Status check_invariants() const;

  // What histories work on. REQUIRES: the mutex is held.
  std::mutex& mutex() const { return mutex_; }
  const std::shared_ptr<PagedCache>& cache() const { return cache_; }
  PrefixCache& prefixes() { return prefixes_; }
  PrefixNamespace space(std::int64_t tenant) const { return {space_.bits, tenant}; }

 private:
  PrefixStore(std::shared_ptr<PagedCache> cache, PrefixCache prefixes, std::int64_t row_bytes,
              const PrefixStoreOptions& options);

  mutable std::mutex mutex_;  // of all below
  std::shared_ptr<PagedCache> cache_;
  PrefixCache prefixes_;
  const std::int64_t num_pages_, row_bytes_, budget_bytes_;
  const PrefixNamespace space_;
  std::int64_t leased_ = 0;
  std::int64_t leases_refused_ = 0;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_PREFIX_STORE_H_
