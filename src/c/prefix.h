// The handle of a PrefixCache, and namespaces of the caller's.
#ifndef KVCACHE_SRC_C_PREFIX_H_
#define KVCACHE_SRC_C_PREFIX_H_

#include <memory>

#include "kvcache/paged_cache.h"
#include "kvcache/prefix.h"
#include "kvcache/status.h"
#include "kvcache_c.h"

// The pages outlive what names them.
struct kvc_prefix {
  std::shared_ptr<kvcache::PagedCache> cache;
  kvcache::PrefixCache prefixes;
};

namespace kvcache::internal {

// Null: zeros.
Result<PrefixNamespace> space_of(const kvc_prefix_namespace* space);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_C_PREFIX_H_
