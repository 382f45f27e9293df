// The handle of a PagedCache, which its batches share.
#ifndef KVCACHE_SRC_C_PAGED_H_
#define KVCACHE_SRC_C_PAGED_H_

#include <memory>

#include "kvcache/paged_cache.h"
#include "kvcache_c.h"

struct kvc_paged {
  std::shared_ptr<kvcache::PagedCache> cache;
};

#endif  // KVCACHE_SRC_C_PAGED_H_
