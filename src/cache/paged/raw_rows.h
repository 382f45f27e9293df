// Rows as they are stored, byte for byte, between pages and dense arrays.
#ifndef KVCACHE_SRC_CACHE_PAGED_RAW_ROWS_H_
#define KVCACHE_SRC_CACHE_PAGED_RAW_ROWS_H_

#include <cstdint>

#include "cache/paged/store.h"
#include "tensor/codecs/raw_rows.h"

namespace kvcache::internal {

// Which rows: of positions begin .. end of a sequence, in one buffer of a layer.
struct RawRange {
  std::int64_t layer = 0;
  std::int32_t buffer = 0;
  std::int64_t begin = 0, end = 0;
};

// Copies them to, or from, rows `at` .. of `raw`. REQUIRES: the layer holds them, and where its
// newest rows stay plain they are all codes or all plain; of `put`: nobody else has their pages.
void get_raw(const PagedStore& store, const PagedSequence& seq, const RawRange& range,
             const RawRows& raw, std::int64_t at) noexcept;
void put_raw(PagedStore& store, const PagedSequence& seq, const RawRange& range, const RawRows& raw,
             std::int64_t at) noexcept;

// The same of the first `raw.rows` rows of a page of a layer that keeps no plain tails.
void get_page(const PagedStore& store, std::int64_t layer, std::int32_t buffer, std::int32_t page,
              const RawRows& raw) noexcept;
void put_page(PagedStore& store, std::int64_t layer, std::int32_t buffer, std::int32_t page,
              const RawRows& raw) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_RAW_ROWS_H_
