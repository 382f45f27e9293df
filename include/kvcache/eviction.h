// EvictionPolicy: which of the pages that nobody holds leaves first.
#ifndef KVCACHE_EVICTION_H_
#define KVCACHE_EVICTION_H_

#include <cstdint>
#include <string_view>

#include "kvcache/status.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// The policies that are built in.
enum class Eviction : std::uint8_t {
  kLru = 0,       // the least recently used
  kS3Fifo = 1,    // a small queue that what is used once passes through, and a main one
  kArc = 2,       // used once and used again share the room as what was evicted shows
  kAdaptive = 3,  // by the chance to be used again, which entries that are gone still teach
};

// "lru", "s3fifo", "arc", "adaptive"; and the policy of that name. Errors: kInvalidArgument.
KVC_API const char* name_of(Eviction eviction) noexcept;
KVC_API Result<Eviction> eviction_named(std::string_view name);

// An entry is a page of tokens of a PrefixCache, with its rows in all layers: a number that is used
// again once its entry was removed. Its `key` is a hash of its tokens and of all before them: equal
// texts have equal keys, also after an entry was removed and came back. A policy sees entries
// alone, never rows, and never decides whether one is found.
//
// Thread safety: calls are serialised by the PrefixCache. None of them may fail.
class KVC_API EvictionPolicy {
 public:
  virtual ~EvictionPolicy();

  // What a PrefixCache says before anything else: entries are 0 .. num_entries - 1.
  virtual void begin(std::int32_t num_entries) noexcept = 0;

  // A new entry, at page number `position` of its text, behind the entry `parent`; -1: the first.
  virtual void inserted(std::int32_t entry, std::int32_t parent, std::uint64_t key,
                        std::int64_t position) noexcept = 0;

  // A match found the entry. Those of one match come from the last page to the first.
  virtual void used(std::int32_t entry) noexcept = 0;

  // The last sequence that held the entry is gone. Likewise from the last page to the first.
  virtual void released(std::int32_t entry) noexcept = 0;

  // The entry is gone: `evicted` to make room, else for another reason.
  virtual void removed(std::int32_t entry, bool evicted) noexcept = 0;

  // The entry that leaves next, not yet removed; -1 where there is none.
  virtual std::int32_t victim() noexcept = 0;

  // What victim() named must stay for now (it is held, or there are entries behind it): it is no
  // victim until it is put back.
  virtual void set_aside(std::int32_t entry) noexcept = 0;
  virtual void put_back(std::int32_t entry) noexcept = 0;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_EVICTION_H_
