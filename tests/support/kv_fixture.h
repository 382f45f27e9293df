// KvViews over a test's own memory: the same rows in any layout, page size, order of pages, type
// and split into parts. Every slot that holds no row is NaN.
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

#include "kvcache/kv_view.h"
#include "kvcache/types.h"

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

struct KvStorageOptions {
  DType k_dtype = DType::kF32;
  DType v_dtype = DType::kF32;
  Layout layout = Layout::kHND;
  std::int32_t page_size = 0;    // 0: contiguous, one page per sequence and no table
  std::int32_t spare_slots = 3;  // contiguous: slots behind the longest sequence
  std::uint32_t shuffle = 0;     // seed of the order of pages; 0: in order

  // [num_seqs] whole pages of these rows are the same pages, see KvRowsData::share; empty: none.
  std::vector<SharedRows> shared;

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
  struct OwnedPart {
    KvPart part;
    std::vector<std::byte> k, v;
    std::vector<std::int32_t> table, lengths, first_position, first_visible, positions;
  };

  static void store(std::vector<std::byte>& to, DType dtype, std::int64_t at, float value) {
    std::byte* address = to.data() + at * size_of(dtype);
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

  static void poison(std::vector<std::byte>& to, DType dtype, std::int64_t elements) {
    to.resize(static_cast<std::size_t>(elements * size_of(dtype)));
    for (std::int64_t i = 0; i < elements; ++i) {
      store(to, dtype, i, std::numeric_limits<float>::quiet_NaN());
    }
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
    part.k_format.dtype = options.k_dtype;
    part.v_format.dtype = options.v_dtype;
    strides(options.layout, heads, part.page_size, data.k_dim, &part.k_page_stride,
            &part.k_head_stride, &part.k_token_stride);
    strides(options.layout, heads, part.page_size, data.v_dim, &part.v_page_stride,
            &part.v_head_stride, &part.v_token_stride);
    poison(owned->k, options.k_dtype, num_pages * part.k_page_stride);
    poison(owned->v, options.v_dtype, num_pages * part.v_page_stride);
    for (std::int32_t s = 0; s < num_seqs_; ++s) {
      for (std::int64_t row = 0; row < lengths[s]; ++row) {
        const std::int64_t page =
            paged ? owned->table[s * part.block_table_stride + row / part.page_size] : s;
        const std::int64_t slot = row % part.page_size;
        for (std::int64_t head = 0; head < heads; ++head) {
          const std::int64_t from = (begin[s] + row) * heads + head;
          for (std::int64_t d = 0; d < data.k_dim; ++d) {
            store(owned->k, options.k_dtype,
                  page * part.k_page_stride + slot * part.k_token_stride +
                      head * part.k_head_stride + d,
                  data.k[s][from * data.k_dim + d]);
          }
          for (std::int64_t d = 0; d < data.v_dim; ++d) {
            store(owned->v, options.v_dtype,
                  page * part.v_page_stride + slot * part.v_token_stride +
                      head * part.v_head_stride + d,
                  data.v[s][from * data.v_dim + d]);
          }
        }
      }
      const std::int32_t base = options.first_position.empty() ? 0 : options.first_position[s];
      owned->first_position.push_back(base + begin[s]);
      const std::int32_t hidden = options.first_visible.empty() ? 0 : options.first_visible[s];
      owned->first_visible.push_back(std::clamp(hidden - begin[s], 0, lengths[s]));
    }
    part.k = owned->k.data();
    part.v = owned->v.data();
    part.lengths = owned->lengths.data();
    part.first_position = owned->first_position.data();
    if (!options.first_visible.empty()) part.first_visible = owned->first_visible.data();
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
      for (std::int64_t page = 0; page * page_size < lengths[s]; ++page) {
        owned->table[s * per_seq + page] =
            (page + 1) * page_size <= rows ? owned->table[shared.of * per_seq + page] : ids[next++];
      }
    }
    owned->part.block_table = owned->table.data();
    owned->part.block_table_stride = per_seq;
    return used + 2;
  }

  static void strides(Layout layout, std::int64_t heads, std::int64_t page_size, std::int64_t dim,
                      std::int64_t* page, std::int64_t* head, std::int64_t* token) {
    *page = heads * page_size * dim;
    *head = layout == Layout::kHND ? page_size * dim : dim;
    *token = layout == Layout::kHND ? dim : heads * dim;
  }

  std::int32_t num_seqs_;
  std::vector<OwnedPart> owned_;
  std::vector<KvPart> parts_;
  KvView view_;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_KV_FIXTURE_H_
