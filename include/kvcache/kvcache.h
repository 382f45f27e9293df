// The whole public API.
#ifndef KVCACHE_KVCACHE_H_
#define KVCACHE_KVCACHE_H_

#include "kvcache/attention.h"
#include "kvcache/backend.h"
#include "kvcache/batching_cache.h"
#include "kvcache/cache.h"
#include "kvcache/cache_file.h"
#include "kvcache/dynamic_cache.h"
#include "kvcache/eviction.h"
#include "kvcache/executor.h"
#include "kvcache/full_cache.h"
#include "kvcache/functional.h"
#include "kvcache/kv_view.h"
#include "kvcache/layer_handle.h"
#include "kvcache/layer_spec.h"
#include "kvcache/mask.h"
#include "kvcache/memory.h"
#include "kvcache/memory_plan.h"
#include "kvcache/paged_batch.h"
#include "kvcache/paged_cache.h"
#include "kvcache/prefix.h"
#include "kvcache/row_format.h"
#include "kvcache/static_cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

#endif  // KVCACHE_KVCACHE_H_
