// Page tables in the forms that attention and engines take.
#ifndef KVCACHE_SRC_CACHE_PAGED_TABLES_H_
#define KVCACHE_SRC_CACHE_PAGED_TABLES_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/paged/store.h"
#include "kvcache/kv_view.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// What the views of one group point into: tables of a list of sequences, and a part for each layer.
struct PagedTables {
  std::vector<std::int32_t> block_table;  // [num_seqs, stride] page ids, -1 unused; stride >= 1
  std::int64_t stride = 1;
  std::vector<std::int32_t> lengths;                             // [num_seqs]
  std::vector<std::int32_t> hole_begin, hole_pages, first_held;  // [num_seqs]; none: all are kept
  // Of codes, the part of the plain tails: where its rows begin, and which of them do not exist.
  std::vector<std::int32_t> first_position, first_visible;  // [num_seqs]
  std::shared_ptr<const PagedTables> tail;
  std::vector<KvPart> parts;  // those of one layer, or of each layer of the group
};

using Sequences = std::span<const PagedSequence* const>;

// All of these may throw bad_alloc. Counts and tables are int32: kOutOfRange where one is too many
// for that (ids and lengths always fit, see PagedLayout::check_num_pages).

// Committed rows of one layer.
Result<OwnedKvView> committed_view(const PagedStore& store, std::int64_t layer, Sequences seqs);

// Committed rows and those of the step. Tables are built by the first call of a group.
Result<OwnedKvView> step_view(const PagedStore& store, PagedStep& step, std::int64_t layer);

Result<BlockTable> make_block_table(const PagedStore& store, std::int64_t layer, Sequences seqs);
Result<PageIndices> make_page_indices(const PagedStore& store, std::int64_t layer, Sequences seqs);
Result<std::vector<std::int32_t>> make_slot_mapping(const PagedStore& store, const PagedStep& step,
                                                    std::int64_t layer);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_TABLES_H_
