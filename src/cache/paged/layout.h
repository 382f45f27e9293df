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
//   index of prefixes   164 + 16 G beside these, if there is one
//   tables in all       t * (32 G + 4 P + 140) + max(0, 128 S + 4 E - t * (132 + 4 G)), and with an
//                       index t * (164 + 16 G) more, where t is the most pages ever touched in one
//                       group; the second term: sharing needs room only beyond what these pages
//                       bring
//
//   reserved_bytes = bytes of the pages that have memory + tables in all
#ifndef KVCACHE_SRC_CACHE_PAGED_LAYOUT_H_
#define KVCACHE_SRC_CACHE_PAGED_LAYOUT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/checked_math.h"
#include "cache/paged/life.h"
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
inline constexpr std::int64_t kTokenBytes = 4;

// Charged for a page in the index of prefixes: what is known of it and what a policy remembers; and
// in each group its page, whose page that is, and its place among those that leave.
inline constexpr std::int64_t kPrefixNodeBytes = 164;
inline constexpr std::int64_t kPrefixPageBytes = 16;
inline constexpr std::int64_t kPrefixAlignment = 64;

// Pages that hold `length` >= 0 tokens.
constexpr std::int64_t pages_for(std::int64_t length, std::int64_t page_size) noexcept {
  return ceil_div(length, page_size);
}

// One buffer of a layer within pages. Strides in bytes. The scales and zeros of coded rows have
// pages of their own: those of a group of elements of a head lie side by side, zeros behind all
// scales.
struct BufferLayout {
  BufferSpec spec;
  std::int64_t page_bytes = 0;  // of one layer, those of scales included
  std::int64_t head_stride = 0, token_stride = 0;
  std::int64_t scale_page_bytes = 0;
  std::int64_t scale_head_stride = 0, scale_group_stride = 0;
  std::int64_t zero_offset = 0;  // in a page of scales

  std::int64_t code_page_bytes() const noexcept { return page_bytes - scale_page_bytes; }
};

struct LayerLayout {
  std::int64_t layer = 0;  // its index in the cache
  LayerSpec spec;
  BufferLayout buffers[LayerSpec::kMaxBuffers];

  std::span<const BufferLayout> used() const noexcept {
    return {buffers, static_cast<std::size_t>(spec.num_buffers)};
  }
};

// Layers of equal life, which share page ids. Where the newest rows of coded layers stay plain
// (residual_tokens), these layers are in two groups, in the same order: that of their codes, and
// that of their tails, whose rows are plain and turned as the codes are.
struct GroupLayout {
  KeepRule rule;
  std::int32_t tail = -1;   // of codes: the group of their tails
  std::int32_t codes = -1;  // of tails: the group of their codes
  std::vector<LayerLayout> layers;
  std::int64_t page_bytes = 0;  // a page in all buffers of all layers
  std::int64_t row_bytes = 0;   // one token's rows in all of them
  std::int64_t coded_buffers = 0;
};

struct LayerPlace {
  std::int32_t group = 0;  // that of the codes where there are two
  std::int32_t index = 0;  // among the layers of the group
};

struct PagedLayout {
  Layout layout = Layout::kHND;
  std::int64_t page_size = 0;
  std::int64_t rewind_tokens = 0;
  TailRule tail;
  std::int64_t prefix_bytes = 0;  // of the index of prefixes, for a page; 0: there is none
  std::vector<GroupLayout> groups;
  std::vector<LayerPlace> places;  // [num_layers]

  std::int64_t num_groups() const noexcept { return static_cast<std::int64_t>(groups.size()); }
  std::int64_t num_layers() const noexcept { return static_cast<std::int64_t>(places.size()); }

  // Bytes of one page in every group.
  std::int64_t page_bytes() const noexcept;
  // Whether a sequence of any length has room in a pool of its own: no group keeps all its rows.
  bool is_bounded() const noexcept;
  std::int64_t page_table_bytes() const noexcept {
    return kPageTableBytes * num_groups() + kTokenBytes * page_size + kBlockTableBytes +
           kSequenceBytes + prefix_bytes;
  }
  // What sequences and the ids in their tables need beyond what `touched` pages bring.
  std::int64_t sharing_bytes(std::int64_t touched, std::int64_t sequences,
                             std::int64_t entries) const noexcept;
  // All tables, of groups of which none has touched more pages than `touched`.
  std::int64_t table_bytes(std::int64_t touched, std::int64_t sequences,
                           std::int64_t entries) const noexcept {
    return touched * page_table_bytes() + sharing_bytes(touched, sequences, entries);
  }

  // The most pages that one group could have within `budget_bytes` while the others have one each;
  // 0 if not even one page in every group fits.
  std::int64_t pages_in_budget(std::int64_t budget_bytes) const noexcept;

  // Room for an index of prefixes in the tables. Errors: kUnsupported beside residual_tokens.
  Status add_prefixes();

  // Whether `num_pages` can be had: slots (page * page_size + offset) fit int32, bytes kMaxBytes.
  // Errors: kInvalidArgument.
  Status check_num_pages(std::int64_t num_pages) const;
};

// Errors: kInvalidArgument for no layers or sizes that no cache could have, kUnsupported for
// buffers and lives that are not built. May throw bad_alloc.
Result<PagedLayout> make_paged_layout(std::span<const LayerSpec> layers, std::int64_t page_size,
                                      Layout layout, std::int64_t rewind_tokens = 0,
                                      std::int64_t residual_tokens = 0);

// plan_memory for CacheKind::kPaged: request.batch_size sequences of request.seq_length tokens,
// none shared, in steps over all of them of request.step_tokens each. num_pages 0 plans a pool of
// just the pages needed, at least 1.
Result<PlannedBytes> plan_paged(const MemoryPlanRequest& request);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_LAYOUT_H_
