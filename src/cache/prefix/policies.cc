#include "cache/prefix/policies.h"

#include <string>

#include "base/door.h"
#include "base/expect.h"
#include "cache/prefix/adaptive.h"
#include "cache/prefix/arc.h"
#include "cache/prefix/lru.h"
#include "cache/prefix/s3fifo.h"

namespace kvcache {
inline namespace v1 {

EvictionPolicy::~EvictionPolicy() = default;

const char* name_of(Eviction eviction) noexcept {
  switch (eviction) {
    case Eviction::kLru:
      return "lru";
    case Eviction::kS3Fifo:
      return "s3fifo";
    case Eviction::kArc:
      return "arc";
    case Eviction::kAdaptive:
      return "adaptive";
  }
  return "unknown";
}

Result<Eviction> eviction_named(std::string_view name) {
  return internal::at_door([&]() -> Result<Eviction> {
    for (const Eviction each :
         {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc, Eviction::kAdaptive}) {
      if (name == name_of(each)) return each;
    }
    return internal::refusal("eviction", std::string(name.substr(0, 60)),
                             "lru, s3fifo, arc or adaptive");
  });
}

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
