// What is behind a PagedCache, for those who join others to it.
#ifndef KVCACHE_SRC_API_PAGED_CACHE_IMPL_H_
#define KVCACHE_SRC_API_PAGED_CACHE_IMPL_H_

#include <memory>

#include "base/expect.h"
#include "cache/paged/rows.h"
#include "cache/paged/store.h"
#include "cache/prefix/index.h"
#include "kvcache/paged_cache.h"

namespace kvcache {
inline namespace v1 {

struct PagedCache::Impl {
  std::unique_ptr<internal::PrefixIndex> index;  // none without a PrefixCache
  // None once the cache is gone: open steps and handles may live longer.
  std::unique_ptr<internal::PagedStore> store;

  ~Impl() { close(); }
  void close() noexcept {
    if (index != nullptr) index->close();
    index.reset();
    store.reset();
  }

  Status check_layer(std::int64_t layer) const {
    return internal::expect_index("layer", layer, store->layout().num_layers());
  }
  // REQUIRES: the layer was checked.
  std::int64_t rows_held(std::int64_t layer, const internal::PagedSequence& seq) const noexcept {
    return internal::rows_held(*store, seq, layer);
  }
};

struct PagedCache::Step::Impl {
  std::shared_ptr<PagedCache::Impl> owner;
  std::unique_ptr<internal::PagedStep> step;  // none once it has ended

  ~Impl() {
    if (step != nullptr && owner->store != nullptr) owner->store->rollback(*step);
  }

  // The open step of a cache. Errors: kNotFound.
  static Result<internal::PagedStep*> of(const Step& step, const PagedCache::Impl* cache) {
    if (step.impl_ == nullptr || step.impl_->step == nullptr) {
      return internal::refusal(StatusCode::kNotFound, "step", "one that has ended", "an open one");
    }
    if (step.impl_->owner.get() != cache) {
      return internal::refusal(StatusCode::kNotFound, "step", "one of another cache",
                               "one of this cache");
    }
    return step.impl_->step.get();
  }
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_SRC_API_PAGED_CACHE_IMPL_H_
