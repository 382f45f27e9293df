#include "cache/prefix/policies.h"

#include "cache/prefix/adaptive.h"
#include "cache/prefix/arc.h"
#include "cache/prefix/lru.h"
#include "cache/prefix/s3fifo.h"

namespace kvcache {
inline namespace v1 {

EvictionPolicy::~EvictionPolicy() = default;

}  // namespace v1

namespace internal {

std::unique_ptr<SlotPolicy> make_policy(Eviction eviction, std::byte* memory) {
  switch (eviction) {
    case Eviction::kLru:
      break;
    case Eviction::kS3Fifo:
      return std::make_unique<S3FifoPolicy>(memory);
    case Eviction::kArc:
      return std::make_unique<ArcPolicy>(memory);
    case Eviction::kAdaptive:
      return std::make_unique<AdaptivePolicy>(memory);
  }
  return std::make_unique<LruPolicy>(memory);
}

}  // namespace internal
}  // namespace kvcache
