// KvViews over a test's own memory: the same rows in any layout, page size, order of pages, type
// and split into parts. Every slot that holds no row is NaN, or codes of it.
#ifndef KVCACHE_TESTS_SUPPORT_KV_FIXTURE_H_
#define KVCACHE_TESTS_SUPPORT_KV_FIXTURE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/kv_view.h"
#include "kvcache/types.h"
#include "tensor/codecs/codec.h"
#include "tensor/codecs/coded_block.h"

namespace kvcache::testing {

// The first `rows` rows of a sequence are those of an earlier one.
struct SharedRows {
  std::int32_t of = -1;  // -1: of none
  std::int32_t rows = 0;
};

// Keys and values by sequence, row, head and element, without any storage.
struct KvRowsData {
  std::int32_t num_kv_heads = 1;
  std::int32_t k_dim = 1;
  std::int32_t v_dim = 1;
  std::vector<std::int32_t> lengths;  // [num_seqs]
  std::vector<std::vector<float>> k;  // [num_seqs][length, num_kv_heads, k_dim]
  std::vector<std::vector<float>> v;  // [num_seqs][length, num_kv_heads, v_dim]

  KvRowsData(std::vector<std::int32_t> lengths_in, std::int32_t heads, std::int32_t k_dim_in,
             std::int32_t v_dim_in)
      : num_kv_heads(heads), k_dim(k_dim_in), v_dim(v_dim_in), lengths(std::move(lengths_in)) {
    for (std::int32_t length : lengths) {
      k.emplace_back(std::size_t(length) * heads * k_dim);
      v.emplace_back(std::size_t(length) * heads * v_dim);
    }
  }

  float* k_row(std::size_t seq, std::int64_t row, std::int64_t head) {
    return k[seq].data() + (row * num_kv_heads + head) * k_dim;
  }
  float* v_row(std::size_t seq, std::int64_t row, std::int64_t head) {
    return v[seq].data() + (row * num_kv_heads + head) * v_dim;
  }

  // Makes the first rows of sequences those of earlier ones.
  void share(const std::vector<SharedRows>& shared) {
    for (std::size_t s = 0; s < shared.size(); ++s) {
      if (shared[s].of < 0) continue;
      const auto of = static_cast<std::size_t>(shared[s].of);
      const std::int64_t heads = std::int64_t{shared[s].rows} * num_kv_heads;
      std::copy_n(k[of].begin(), heads * k_dim, k[s].begin());
      std::copy_n(v[of].begin(), heads * v_dim, v[s].begin());
    }
  }

  template <typename Rng>
  void randomize(Rng& rng, float k_scale = 1, float v_scale = 1) {
    std::normal_distribution<float> normal;
    for (auto& rows : k) {
      for (float& x : rows) x = k_scale * normal(rng);
    }
    for (auto& rows : v) {
      for (float& x : rows) x = v_scale * normal(rng);
    }
  }
};

// Pages begin .. begin + pages of a sequence that its table does not list; their rows are nowhere.
struct Hole {
  std::int32_t begin = 0;
  std::int32_t pages = 0;
};

struct KvStorageOptions {
  DType k_dtype = DType::kF32;  // of plain rows
  DType v_dtype = DType::kF32;
  RowFormat k_format;  // where it is coded
  RowFormat v_format;
  Layout layout = Layout::kHND;
  std::int32_t page_size = 0;    // 0: contiguous, one page per sequence and no table
  std::int32_t spare_slots = 3;  // contiguous: slots behind the longest sequence
  std::uint32_t shuffle = 0;     // seed of the order of pages; 0: in order
  std::int32_t chunk_shift =
      -1;  // pages in chunks of 2^chunk_shift, apart in memory; -1: one array

  // [num_seqs] whole pages of these rows are the same pages, see KvRowsData::share; empty: none.
  std::vector<SharedRows> shared;

  std::vector<Hole> holes;  // [num_seqs], of a paged view of one part; empty: none

  std::vector<std::vector<std::int32_t>> parts;  // [num_parts][num_seqs] lengths; empty: one part
  std::vector<std::int32_t> first_position;      // [num_seqs] of the first part; empty: 0
  std::vector<std::int32_t> first_visible;       // [num_seqs] counted over all parts; empty: 0
  std::vector<std::vector<std::int32_t>> positions;  // [num_seqs][length]; empty: none
};

// Owns the memory and tables of a view.
class KvStorage {
 public:
  KvStorage(const KvRowsData& data, const KvStorageOptions& options = {})
      : num_seqs_(static_cast<std::int32_t>(data.lengths.size())) {
    std::vector<std::vector<std::int32_t>> parts = options.parts;
    if (parts.empty()) parts.push_back(data.lengths);
    owned_.resize(parts.size());
    std::vector<std::int32_t> begin(data.lengths.size(), 0);
    for (std::size_t p = 0; p < parts.size(); ++p) {
      build_part(data, options, parts[p], begin, &owned_[p]);
      for (std::size_t s = 0; s < begin.size(); ++s) begin[s] += parts[p][s];
    }
    for (const OwnedPart& part : owned_) parts_.push_back(part.part);
    view_.num_seqs = num_seqs_;
    view_.num_kv_heads = data.num_kv_heads;
    view_.k_head_dim = data.k_dim;
    view_.v_head_dim = data.v_dim;
    view_.num_parts = static_cast<std::int32_t>(parts_.size());
    view_.parts = parts_.data();
  }
  KvStorage(const KvStorage&) = delete;

  const KvView& view() const { return view_; }
  KvPart& part(std::size_t p) { return parts_[p]; }

 private:
  // K or V, in one array or in chunks; the scales of coded rows lie behind all pages of codes,
  // which then are one array.
  struct Rows {
    std::vector<std::byte> all;
    std::vector<std::vector<std::byte>> chunks;
    std::vector<const std::byte*> starts;
  };

  struct OwnedPart {
    KvPart part;
    Rows k, v;
    std::vector<std::int32_t> table, lengths, first_position, first_visible, positions;
    std::vector<std::int32_t> hole_begin, hole_pages;
  };

  static void store(std::byte* address, DType dtype, float value) {
    if (dtype == DType::kF32) {
      std::memcpy(address, &value, sizeof(value));
    } else if (dtype == DType::kF16) {
      const Float16 half = to_float16(value);
      std::memcpy(address, &half, sizeof(half));
    } else {
      const BFloat16 half = to_bfloat16(value);
      std::memcpy(address, &half, sizeof(half));
    }
  }

  static void store(const RowsView& rows, std::int64_t page, std::int64_t head, std::int64_t slot,
                    std::int64_t element, float value) {
    store(const_cast<std::byte*>(rows.row_at(page, head, slot)) + rows.format.bytes(element),
          rows.format.dtype, value);
  }

  // Pages full of ones: NaN, as scales too.
  static RowsView make_coded_rows(const KvStorageOptions& options, const RowFormat& format,
                                  std::int64_t heads, std::int64_t page_size, std::int64_t dim,
                                  std::int64_t num_pages, Rows* rows) {
    const std::int64_t codes = format.code_bytes(dim);
    const bool by_head = options.layout == Layout::kHND;
    RowsView view;
    view.format = format;
    view.page_stride = heads * page_size * codes;
    view.head_stride = by_head ? page_size * codes : codes;
    view.token_stride = by_head ? codes : heads * codes;
    view.scale_offset = num_pages * view.page_stride;
    view.scale_page_stride = heads * page_size * format.scale_bytes(dim);
    view.scale_group_stride = 2 * page_size;
    view.scale_head_stride = format.num_scales(dim) * view.scale_group_stride;
    view.zero_offset = view.scale_offset + heads * view.scale_head_stride;
    rows->all.assign(
        static_cast<std::size_t>(num_pages * (view.page_stride + view.scale_page_stride)),
        std::byte{0xff});
    view.data = rows->all.data();
    return view;
  }

  static void store_row(const RowsView& rows, std::int64_t page, std::int64_t head,
                        std::int64_t slot, const float* from, std::int64_t dim) {
    if (!rows.format.is_coded()) {
      for (std::int64_t d = 0; d < dim; ++d) store(rows, page, head, slot, d, from[d]);
      return;
    }
    std::vector<float> row(from, from + dim);
    internal::CodedBlock block;
    internal::set_codes(rows, page, slot, &block);
    ASSERT_TRUE(internal::encode_row(rows.format, row.data(), dim, block.coded(0, head)));
  }

  // Pages full of NaN.
  static RowsView make_rows(const KvStorageOptions& options, DType dtype, std::int64_t heads,
                            std::int64_t page_size, std::int64_t dim, std::int64_t num_pages,
                            Rows* rows) {
    const std::int64_t page = heads * page_size * dim;
    const bool by_head = options.layout == Layout::kHND;
    rows->all.resize(static_cast<std::size_t>(num_pages * page * size_of(dtype)));
    for (std::size_t at = 0; at < rows->all.size();
         at += static_cast<std::size_t>(size_of(dtype))) {
      store(rows->all.data() + at, dtype, std::numeric_limits<float>::quiet_NaN());
    }
    RowsView view = strided_rows(rows->all.data(), dtype, page, by_head ? page_size * dim : dim,
                                 by_head ? dim : heads * dim);
    if (options.chunk_shift < 0) return view;
    const auto bytes = static_cast<std::size_t>(view.page_stride) << options.chunk_shift;
    for (std::size_t at = 0; at < rows->all.size(); at += bytes) {
      const std::byte* begin = rows->all.data() + at;
      rows->chunks.emplace_back(begin, begin + std::min(bytes, rows->all.size() - at));
    }
    for (const std::vector<std::byte>& chunk : rows->chunks) rows->starts.push_back(chunk.data());
    rows->all.clear();
    rows->all.shrink_to_fit();
    view.data = nullptr;
    view.chunks = rows->starts.data();
    view.chunk_shift = options.chunk_shift;
    return view;
  }

  void build_part(const KvRowsData& data, const KvStorageOptions& options,
                  const std::vector<std::int32_t>& lengths, const std::vector<std::int32_t>& begin,
                  OwnedPart* owned) {
    KvPart& part = owned->part;
    owned->lengths = lengths;
    const std::int64_t longest =
        lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
    const bool paged = options.page_size > 0;
    part.page_size =
        paged ? options.page_size : static_cast<std::int32_t>(longest + options.spare_slots);
    std::int64_t num_pages = num_seqs_;
    if (paged) num_pages = make_table(options, lengths, begin, longest, owned);

    const std::int64_t heads = data.num_kv_heads;
    const auto make = [&](const RowFormat& format, DType dtype, std::int64_t dim, Rows* rows) {
      return format.is_coded()
                 ? make_coded_rows(options, format, heads, part.page_size, dim, num_pages, rows)
                 : make_rows(options, dtype, heads, part.page_size, dim, num_pages, rows);
    };
    part.k = make(options.k_format, options.k_dtype, data.k_dim, &owned->k);
    part.v = make(options.v_format, options.v_dtype, data.v_dim, &owned->v);
    for (std::int32_t s = 0; s < num_seqs_; ++s) {
      for (std::int64_t row = 0; row < lengths[s]; ++row) {
        const Hole hole = options.holes.empty() ? Hole() : options.holes[s];
        std::int64_t entry = row / part.page_size;
        if (entry >= hole.begin && entry < hole.begin + hole.pages) continue;
        if (entry >= hole.begin) entry -= hole.pages;
        const std::int64_t page = paged ? owned->table[s * part.block_table_stride + entry] : s;
        const std::int64_t slot = row % part.page_size;
        for (std::int64_t head = 0; head < heads; ++head) {
          const std::int64_t from = (begin[s] + row) * heads + head;
          store_row(part.k, page, head, slot, data.k[s].data() + from * data.k_dim, data.k_dim);
          store_row(part.v, page, head, slot, data.v[s].data() + from * data.v_dim, data.v_dim);
        }
      }
      const std::int32_t base = options.first_position.empty() ? 0 : options.first_position[s];
      owned->first_position.push_back(base + begin[s]);
      const std::int32_t hidden = options.first_visible.empty() ? 0 : options.first_visible[s];
      owned->first_visible.push_back(std::clamp(hidden - begin[s], 0, lengths[s]));
    }
    part.lengths = owned->lengths.data();
    part.first_position = owned->first_position.data();
    if (!options.first_visible.empty()) part.first_visible = owned->first_visible.data();
    for (const Hole& hole : options.holes) {
      owned->hole_begin.push_back(hole.begin);
      owned->hole_pages.push_back(hole.pages);
      part.hole_begin = owned->hole_begin.data();
      part.hole_pages = owned->hole_pages.data();
    }
    if (!options.positions.empty()) {
      part.positions_stride = longest;
      owned->positions.resize(static_cast<std::size_t>(num_seqs_ * longest));
      for (std::int32_t s = 0; s < num_seqs_; ++s) {
        for (std::int64_t row = 0; row < lengths[s]; ++row) {
          owned->positions[s * longest + row] = options.positions[s][begin[s] + row];
        }
      }
      part.positions = owned->positions.data();
    }
  }

  std::int64_t make_table(const KvStorageOptions& options, const std::vector<std::int32_t>& lengths,
                          const std::vector<std::int32_t>& begin, std::int64_t longest,
                          OwnedPart* owned) {
    const std::int64_t page_size = options.page_size;
    const std::int64_t per_seq = (longest + page_size - 1) / page_size + 1;
    std::int64_t used = 0;
    for (std::int32_t length : lengths) used += (length + page_size - 1) / page_size;
    // Two pages nobody names: they stay poisoned.
    std::vector<std::int32_t> ids(static_cast<std::size_t>(used + 2));
    std::iota(ids.begin(), ids.end(), 0);
    if (options.shuffle != 0) {
      std::mt19937 rng(options.shuffle);
      std::shuffle(ids.begin(), ids.end(), rng);
    }
    owned->table.assign(static_cast<std::size_t>(num_seqs_ * per_seq), -1);
    std::size_t next = 0;
    for (std::int32_t s = 0; s < num_seqs_; ++s) {
      const SharedRows shared = options.shared.empty() ? SharedRows() : options.shared[s];
      std::int64_t rows = 0;  // of this part that are shared
      if (shared.of >= 0 && begin[shared.of] == begin[s]) {
        rows = std::min({shared.rows - begin[s], lengths[s], lengths[shared.of]});
      }
      const Hole hole = options.holes.empty() ? Hole() : options.holes[s];
      std::int64_t entry = s * per_seq;
      for (std::int64_t page = 0; page * page_size < lengths[s]; ++page) {
        if (page >= hole.begin && page < hole.begin + hole.pages) continue;
        owned->table[entry++] =
            (page + 1) * page_size <= rows ? owned->table[shared.of * per_seq + page] : ids[next++];
      }
    }
    owned->part.block_table = owned->table.data();
    owned->part.block_table_stride = per_seq;
    return used + 2;
  }

  std::int32_t num_seqs_;
  std::vector<OwnedPart> owned_;
  std::vector<KvPart> parts_;
  KvView view_;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_KV_FIXTURE_H_
