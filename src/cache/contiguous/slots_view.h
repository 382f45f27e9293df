// The KvView over the slots of a batch.
//
// Every slot's rows lie in a mapping of their own, and the distance of two mappings is a whole
// number of pages of the system. So slots whose rows are laid out alike (equal strides, V equally
// far behind K) share a part: its base is the slot that lies lowest, its page stride one page of
// the system, and its block table holds one entry a slot, the number of pages up to that slot's
// rows. Slots laid out otherwise (a static cache beside a dynamic one, a row that outgrew its
// reservation) go to another part, where all the others have length 0. Usually there is one part.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_SLOTS_VIEW_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_SLOTS_VIEW_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cache/contiguous/geometry.h"
#include "cache/contiguous/layer.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"

namespace kvcache::internal {

class BatchingView {
 public:
  // For slots of one layer, null where idle; `shape` is that of the layer, batch 1. Allocates only
  // where there are more parts than ever before. Errors: kOutOfRange for lengths and positions past
  // int32. May throw bad_alloc.
  Status build(std::span<const ContiguousLayer* const> slots, const LayerShape& shape);

  // Valid until build() or a change of a slot.
  const KvView& view() const noexcept { return view_; }

 private:
  // A slot's rows, and the part they belong to.
  struct Place {
    KvPart rows;
    std::int64_t part = -1;  // -1: none, idle or empty
  };
  // Slots that share a part: those with the lowest and the highest address.
  struct Group {
    KvPart low, high;
  };

  std::int64_t find_part(const KvPart& rows);

  std::vector<Place> places_;                                    // [num_slots]
  std::vector<Group> groups_;                                    // [num_parts]
  std::vector<KvPart> parts_;                                    // [num_parts]
  std::vector<std::int32_t> lengths_, first_positions_, pages_;  // [num_parts, num_slots]
  KvView view_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_SLOTS_VIEW_H_
