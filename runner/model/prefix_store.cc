#include "runner/model/prefix_store.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/cache_file.h"
#include "runner/model/paged_history.h"

namespace kvcache::runner {

PrefixStore::PrefixStore(std::shared_ptr<PagedCache> cache, PrefixCache prefixes,
                         std::int64_t row_bytes, const PrefixStoreOptions& options)
    : cache_(std::move(cache)),
      prefixes_(std::move(prefixes)),
      // Layers of a model all live alike: one group. Of a budget the bytes of one page are left to
      // what is no page: sequences, and the name of the namespace.
      num_pages_(cache_->stats().pages_total / cache_->num_groups() -
                 (options.budget_bytes > 0 ? 1 : 0)),
      row_bytes_(row_bytes),
      budget_bytes_(options.budget_bytes),
      space_(options.space) {}

Result<std::shared_ptr<PrefixStore>> PrefixStore::create(const ModelConfig& config,
                                                         const HistoryOptions& rows,
                                                         const PrefixStoreOptions& options) {
  KVC_ASSIGN_OR_RETURN(CacheConfig pages, paged_config(config, rows, options.num_pages));
  pages.budget_bytes = options.budget_bytes;
  pages.prefixes = true;
  Result<PagedCache> made = PagedCache::create(pages);
  if (!made.ok()) {
    std::string message = made.status().message();
    constexpr std::string_view kBudget = "budget_bytes";
    if (message.starts_with(kBudget)) message.replace(0, kBudget.size(), "prefix_cache");
    return Status(made.status().code(), message);
  }
  auto cache = std::make_shared<PagedCache>(std::move(*made));
  PrefixOptions kept;
  kept.eviction = options.eviction;
  KVC_ASSIGN_OR_RETURN(PrefixCache prefixes, PrefixCache::create(*cache, kept));
  return std::shared_ptr<PrefixStore>(new PrefixStore(std::move(cache), std::move(prefixes),
                                                      bytes_per_token(pages.layers), options));
}

std::optional<PrefixStore::Lease> PrefixStore::lease(std::int64_t pages) {
  auto self = shared_from_this();
  const std::lock_guard lock(mutex_);
  if (pages > num_pages_ - leased_) {
    ++leases_refused_;
    return std::nullopt;
  }
  leased_ += pages;
  return Lease(std::move(self), pages);
}

PrefixStore::Lease::~Lease() {
  if (store_ == nullptr) return;
  const std::lock_guard lock(store_->mutex_);
  store_->leased_ -= pages_;
}

PrefixStats PrefixStore::stats() const {
  const std::lock_guard lock(mutex_);
  return prefixes_.stats();
}

std::int64_t PrefixStore::reserved_bytes() const {
  const std::lock_guard lock(mutex_);
  return cache_->reserved_bytes();
}

std::int64_t PrefixStore::leases_refused() const {
  const std::lock_guard lock(mutex_);
  return leases_refused_;
}

Result<std::int64_t> PrefixStore::save(const std::string& path) const {
  const std::lock_guard lock(mutex_);
  return prefixes_.save(path);
}

Result<std::int64_t> PrefixStore::load(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const CacheFile file, CacheFile::open(path));
  const std::vector<PrefixNamespace>& spaces = file.info().spaces;
  const auto is_ours = [&](const PrefixNamespace& space) { return space.bits == space_.bits; };
  const std::int64_t ours = std::count_if(spaces.begin(), spaces.end(), is_ours);
  if (!spaces.empty() && ours == 0) {
    return Status(StatusCode::kInvalidArgument,
                  "namespaces: found texts of " + std::to_string(spaces.size()) +
                      ", none of this model, expected its own (weights, tokenizer, version)");
  }
  const std::lock_guard lock(mutex_);
  if (ours == std::ssize(spaces)) return prefixes_.load(path);  // also what is no file of texts
  std::int64_t pages = 0;
  for (const PrefixNamespace& space : spaces) {  // each tenant's beside those of other models
    if (!is_ours(space)) continue;
    KVC_ASSIGN_OR_RETURN(const std::int64_t more, prefixes_.load(path, space));
    pages += more;
  }
  return pages;
}

Result<std::int64_t> PrefixStore::save_text(const std::string& path,
                                            std::span<const std::int32_t> text,
                                            std::int64_t least) {
  std::vector<std::int32_t> asked(text.begin(), text.end());
  asked.push_back(0);  // a match leaves the last one out
  const std::lock_guard lock(mutex_);
  KVC_ASSIGN_OR_RETURN(const PrefixHandle handle, prefixes_.match(asked, space_));
  if (handle.length() < least) {
    return Status(StatusCode::kNotFound, "text: found rows of " + std::to_string(handle.length()) +
                                             " tokens, expected at least " + std::to_string(least));
  }
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, prefixes_.open(handle));
  const Status status = CacheFile::save(*cache_, seq, path, space_);
  KVC_RETURN_IF_ERROR(cache_->release(seq));
  KVC_RETURN_IF_ERROR(status);
  return handle.length();
}

Result<std::int64_t> PrefixStore::load_text(const std::string& path) {
  const std::lock_guard lock(mutex_);
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, CacheFile::load(*cache_, path, space_));
  const Result<std::int64_t> length = cache_->seq_length(seq);
  KVC_RETURN_IF_ERROR(cache_->release(seq));
  return length;
}

void PrefixStore::trim(std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const PrefixStats stats = prefixes_.stats();
  if (stats.pages == 0) return;
  const std::int64_t kept = bytes / (stats.bytes / stats.pages);
  if (stats.pages_unheld > kept) prefixes_.evict(stats.pages_unheld - kept);
}

Result<std::int64_t> PrefixStore::set_priority(std::span<const std::int32_t> text,
                                               std::int64_t priority, std::int64_t tenant) {
  std::vector<std::int32_t> asked(text.begin(), text.end());
  asked.push_back(0);  // a match leaves the last one out
  const std::lock_guard lock(mutex_);
  KVC_ASSIGN_OR_RETURN(const PrefixHandle handle, prefixes_.match(asked, space(tenant)));
  KVC_RETURN_IF_ERROR(prefixes_.set_priority(handle, priority));
  return handle.length();
}

Status PrefixStore::check_invariants() const {
  const std::lock_guard lock(mutex_);
  KVC_RETURN_IF_ERROR(prefixes_.check_invariants());
  return cache_->check_invariants();
}

}  // namespace kvcache::runner
