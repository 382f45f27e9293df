// What a cache will weigh, before it is built: equal to the byte to what it then reports.
#ifndef KVCACHE_MEMORY_PLAN_H_
#define KVCACHE_MEMORY_PLAN_H_

#include <cstdint>
#include <span>

#include "kvcache/layer_spec.h"
#include "kvcache/status.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

enum class CacheKind : std::uint8_t { kDynamic = 0, kStatic = 1, kPaged = 2 };

struct MemoryPlanRequest {
  std::span<const LayerSpec> layers;
  std::int64_t batch_size = 1;  // rows of a layered cache; sequences of a paged one
  std::int64_t seq_length = 0;  // tokens stored in every layer and row
  std::int64_t max_length = 0;  // kStatic: its capacity
  std::int64_t page_size = 16;  // kPaged, tokens
  std::int64_t num_pages = 0;   // kPaged: the pool; 0: just what seq_length needs
  Layout layout = Layout::kHND;

  // kPaged with windows and chunks: how many tokens a step appends at most, to every sequence at
  // once (0: all of seq_length in one), and CacheConfig::rewind_tokens.
  std::int64_t step_tokens = 0;
  std::int64_t rewind_tokens = 0;

  std::int64_t residual_tokens = 0;  // kPaged, with step_tokens: CacheConfig's
  bool prefixes = false;             // kPaged: CacheConfig::prefixes
};

struct PlannedBytes {
  std::int64_t nbytes = 0;          // rows stored
  std::int64_t reserved_bytes = 0;  // held for them
  std::int64_t num_pages = 0;       // kPaged: the most pages taken at once, over all groups
};

// For a fresh cache of `kind` filled by appends to seq_length; a bound, where the places of steps,
// chunks and pages repeat only after more than a million steps. Errors: kInvalidArgument for sizes
// that no cache could have, or whose bytes exceed 2^62.
KVC_API Result<PlannedBytes> plan_memory(CacheKind kind, const MemoryPlanRequest& request);

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_MEMORY_PLAN_H_
