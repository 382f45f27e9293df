// How a paged cache is laid out in memory and what it weighs: pure arithmetic, shared by the cache
// and by plan_memory, so that the plan equals what the cache reports.
//
// G groups, P tokens a page, n pages in each group, S sequences whose tables hold E page ids in all
// (every sequence has one for each of its pages in each group):
//
//   a page of group g   layers_g * P * num_kv_heads * (k_head_dim * size(K) + v_head_dim * size(V))
//   tables of a page    12 G + 4 P + 128: in each group a reference count, a place in the free list
//                       and a page id in a sequence's table; the ids of its P tokens; and room for
//                       the record of a sequence, so that each page may belong to a sequence of its
//                       own
//   tables in all       n * (12 G + 4 P + 128) + max(0, 128 S + 4 E - n * (128 + 4 G))
//                       the second term: sharing needs room only beyond what all pages bring
//
//   reserved_bytes = bytes of the pages touched so far + tables in all
#ifndef KVCACHE_SRC_CACHE_PAGED_LAYOUT_H_
#define KVCACHE_SRC_CACHE_PAGED_LAYOUT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/checked_math.h"
#include "kvcache/layer_spec.h"
#include "kvcache/memory_plan.h"
#include "kvcache/status.h"
#include "kvcache/types.h"

namespace kvcache::internal {

// Charged for the record of one sequence: id, lengths, its entry in the index, its tables' heads.
inline constexpr std::int64_t kSequenceBytes = 128;
inline constexpr std::int64_t kTableEntryBytes = 4;

// Pages that hold `length` >= 0 tokens.
constexpr std::int64_t pages_for(std::int64_t length, std::int64_t page_size) noexcept {
  return ceil_div(length, page_size);
}

// K or V of one layer within its buffer of pages. Strides count elements.
struct PageStrides {
  std::int64_t page = 0, head = 0, token = 0;
};

// Layers of equal spec, which share page ids.
struct PagedGroup {
  LayerSpec spec;
  std::vector<std::int64_t> layers;  // indices in the cache
  PageStrides k_strides, v_strides;
  std::int64_t k_page_bytes = 0;  // a page's K in one layer
  std::int64_t v_page_bytes = 0;
  std::int64_t page_bytes = 0;  // a page's K and V in all layers of the group

  std::int64_t num_layers() const noexcept { return static_cast<std::int64_t>(layers.size()); }
  // Bytes of one token's rows in all layers of the group.
  std::int64_t row_bytes() const noexcept { return bytes_per_token(spec) * num_layers(); }
};

struct LayerPlace {
  std::int32_t group = 0;
  std::int32_t index = 0;  // among the layers of the group
};

struct PagedLayout {
  Layout layout = Layout::kHND;
  std::int64_t page_size = 0;
  std::vector<PagedGroup> groups;
  std::vector<LayerPlace> places;  // [num_layers]

  std::int64_t num_groups() const noexcept { return static_cast<std::int64_t>(groups.size()); }
  std::int64_t num_layers() const noexcept { return static_cast<std::int64_t>(places.size()); }

  // Bytes of one page in every group.
  std::int64_t page_bytes() const noexcept;
  // Bytes of one token's rows in all layers.
  std::int64_t row_bytes() const noexcept;
  std::int64_t page_table_bytes() const noexcept {
    return 12 * num_groups() + 4 * page_size + kSequenceBytes;
  }
  // All tables of a pool of `num_pages` in each group; `entries` counts page ids over all sequences
  // and groups.
  std::int64_t table_bytes(std::int64_t num_pages, std::int64_t sequences,
                           std::int64_t entries) const noexcept;

  // Pages in each group whose bytes and tables stay within `budget_bytes`; 0 if not even one does.
  std::int64_t pages_in_budget(std::int64_t budget_bytes) const noexcept;

  // Whether `num_pages` can be had: slots (page * page_size + offset) fit int32, bytes kMaxBytes.
  // Errors: kInvalidArgument.
  Status check_num_pages(std::int64_t num_pages) const;
};

// Errors: kInvalidArgument for no layers or sizes that no cache could have. May throw bad_alloc.
Result<PagedLayout> make_paged_layout(std::span<const LayerSpec> layers, std::int64_t page_size,
                                      Layout layout);

// plan_memory for CacheKind::kPaged: request.batch_size sequences of request.seq_length tokens,
// none shared. num_pages 0 plans a pool of just the pages needed, at least 1.
Result<PlannedBytes> plan_paged(const MemoryPlanRequest& request);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_LAYOUT_H_
