// How a paged cache is laid out in memory and what it weighs: pure arithmetic, shared by the cache
// and by plan_memory, so that the plan equals what the cache reports.
//
// G groups, P tokens a page, n pages in each group, S sequences whose tables hold E ids in all (a
// sequence has one for each of its pages in each group, and one for each block of P of its tokens
// if their ids are known):
//
//   a page of group g   layers_g * P * bytes of a token's rows in every buffer
//   tables of a page    32 G + 4 P + 140: in each group a reference count, a place in the free
//                       list, the rows it holds, the sequences that end in it, the start of its
//                       region and a page id in a sequence's table; a block of P token ids with
//                       count, place and id; and room for the record of a sequence, so that each
//                       page may belong to a sequence of its own
//   tables in all       n * (32 G + 4 P + 140) + max(0, 128 S + 4 E - n * (132 + 4 G))
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
// Charged for a page of one group, and for a block of token ids but for these; an entry in a
// sequence's table included.
inline constexpr std::int64_t kPageTableBytes = 32;
inline constexpr std::int64_t kBlockTableBytes = 12;

// Pages that hold `length` >= 0 tokens.
constexpr std::int64_t pages_for(std::int64_t length, std::int64_t page_size) noexcept {
  return ceil_div(length, page_size);
}

// One buffer of a layer within pages. Strides in bytes.
struct BufferLayout {
  BufferSpec spec;
  std::int64_t page_bytes = 0;  // of one layer
  std::int64_t head_stride = 0, token_stride = 0;
};

// Layers of equal spec, which share page ids.
struct GroupLayout {
  LayerSpec spec;
  std::vector<std::int64_t> layers;  // indices in the cache
  BufferLayout buffers[LayerSpec::kMaxBuffers];
  std::int64_t page_bytes = 0;  // a page in all buffers of all layers

  std::int64_t num_layers() const noexcept { return static_cast<std::int64_t>(layers.size()); }
  std::span<const BufferLayout> used() const noexcept {
    return {buffers, static_cast<std::size_t>(spec.num_buffers)};
  }
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
  std::vector<GroupLayout> groups;
  std::vector<LayerPlace> places;  // [num_layers]

  std::int64_t num_groups() const noexcept { return static_cast<std::int64_t>(groups.size()); }
  std::int64_t num_layers() const noexcept { return static_cast<std::int64_t>(places.size()); }

  // Bytes of one page in every group.
  std::int64_t page_bytes() const noexcept;
  // Bytes of one token's rows in all layers.
  std::int64_t row_bytes() const noexcept;
  std::int64_t page_table_bytes() const noexcept {
    return kPageTableBytes * num_groups() + 4 * page_size + kBlockTableBytes + kSequenceBytes;
  }
  // What sequences and the ids in their tables need beyond what `num_pages` in each group bring.
  std::int64_t sharing_bytes(std::int64_t num_pages, std::int64_t sequences,
                             std::int64_t entries) const noexcept;
  // All tables of a pool of `num_pages` in each group.
  std::int64_t table_bytes(std::int64_t num_pages, std::int64_t sequences,
                           std::int64_t entries) const noexcept {
    return num_pages * page_table_bytes() + sharing_bytes(num_pages, sequences, entries);
  }

  // Pages in each group whose bytes and tables stay within `budget_bytes`; 0 if not even one does.
  std::int64_t pages_in_budget(std::int64_t budget_bytes) const noexcept;

  // Whether `num_pages` can be had: slots (page * page_size + offset) fit int32, bytes kMaxBytes.
  // Errors: kInvalidArgument.
  Status check_num_pages(std::int64_t num_pages) const;
};

// Errors: kInvalidArgument for no layers or sizes that no cache could have, kUnsupported for
// buffers and lives that are not built. May throw bad_alloc.
Result<PagedLayout> make_paged_layout(std::span<const LayerSpec> layers, std::int64_t page_size,
                                      Layout layout);

// plan_memory for CacheKind::kPaged: request.batch_size sequences of request.seq_length tokens,
// none shared. num_pages 0 plans a pool of just the pages needed, at least 1.
Result<PlannedBytes> plan_paged(const MemoryPlanRequest& request);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_LAYOUT_H_
