#include "bench/kv_ring.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

namespace kvcache::bench {
namespace {

constexpr std::int64_t kReadUnit = 512;

std::int64_t round_up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Random bytes of rows: pieces of one block of normal numbers, from random places of it.
void fill_random(std::byte* to, std::int64_t bytes, DType dtype, std::mt19937_64& random) {
  constexpr std::int64_t kBlock = 1 << 18;  // elements
  std::normal_distribution<float> normal;
  std::vector<std::byte> block(static_cast<std::size_t>(kBlock * size_of(dtype)));
  for (std::int64_t i = 0; i < kBlock; ++i) {
    const float x = normal(random);
    std::byte* at = block.data() + i * size_of(dtype);
    if (dtype == DType::kF32) {
      std::memcpy(at, &x, sizeof(x));
    } else {
      const std::uint16_t bits = dtype == DType::kF16 ? to_float16(x).bits : to_bfloat16(x).bits;
      std::memcpy(at, &bits, sizeof(bits));
    }
  }
  constexpr std::int64_t kPiece = 1000;  // elements
  std::uniform_int_distribution<std::int64_t> place(0, kBlock - kPiece);
  for (std::int64_t at = 0; at < bytes;) {
    const std::int64_t size = std::min(kPiece * size_of(dtype), bytes - at);
    std::memcpy(to + at, block.data() + place(random) * size_of(dtype),
                static_cast<std::size_t>(size));
    at += size;
  }
}

struct Strides {
  std::int64_t page = 0, head = 0, token = 0;
};
Strides strides_of(Layout layout, std::int64_t page_size, std::int64_t heads, std::int64_t dim) {
  if (layout == Layout::kHND) return {heads * page_size * dim, page_size * dim, dim};
  return {heads * page_size * dim, dim, heads * dim};
}

// Pages of a shape: K of all of them, then V.
struct Geometry {
  std::int64_t page_size = 0;
  std::int64_t k_bytes = 0, v_bytes = 0;  // whole units of reading
  KvPart part;                            // without pointers
};
Geometry geometry_of(const AttentionShape& shape, std::int64_t page_size, std::int64_t num_pages) {
  Geometry geometry;
  geometry.page_size = page_size;
  const Strides k = strides_of(shape.layout, page_size, shape.kv_heads, shape.head_dim);
  const Strides v = strides_of(shape.layout, page_size, shape.kv_heads, shape.v_dim());
  KvPart& part = geometry.part;
  part.k = strided_rows(nullptr, shape.dtype, k.page, k.head, k.token);
  part.v = strided_rows(nullptr, shape.dtype, v.page, v.head, v.token);
  part.page_size = static_cast<std::int32_t>(page_size);
  geometry.k_bytes = round_up(num_pages * k.page * size_of(shape.dtype), kReadUnit);
  geometry.v_bytes = round_up(num_pages * v.page * size_of(shape.dtype), kReadUnit);
  return geometry;
}

std::int64_t pages_of(std::int64_t tokens, std::int64_t page_size) {
  return (tokens + page_size - 1) / page_size;
}

// [batch, stride] pages in random order; those of the shared prefix are the same for all.
std::vector<std::int32_t> shuffled_table(const AttentionShape& shape,
                                         const std::vector<std::int32_t>& lengths,
                                         std::int64_t stride, std::int64_t num_pages,
                                         std::mt19937_64& random) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(num_pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  std::vector<std::int32_t> table(static_cast<std::size_t>(shape.batch * stride), -1);
  const std::int64_t shared = shape.shared_prefix / shape.page_size;
  std::int64_t used = shared;
  for (std::int64_t s = 0; s < shape.batch; ++s) {
    const std::int64_t pages = pages_of(lengths[static_cast<std::size_t>(s)], shape.page_size);
    for (std::int64_t p = 0; p < pages; ++p) {
      table[static_cast<std::size_t>(s * stride + p)] =
          order[static_cast<std::size_t>(p < shared ? p : used++)];
    }
  }
  return table;
}

}  // namespace

Result<KvRing> KvRing::create(const AttentionShape& shape, std::vector<std::int32_t> lengths,
                              std::uint64_t seed, std::int64_t most_bytes) {
  std::mt19937_64 random(seed);
  const bool paged = shape.page_size > 0;
  const std::int64_t page_size = paged ? shape.page_size : shape.kv_len;
  std::int64_t num_pages = shape.batch;
  if (paged) {
    num_pages = shape.shared_prefix / page_size;
    for (const std::int32_t length : lengths) {
      num_pages += pages_of(length - shape.shared_prefix, page_size);
    }
  }
  Geometry geometry = geometry_of(shape, page_size, num_pages);
  const std::int64_t entry_bytes = geometry.k_bytes + geometry.v_bytes;
  const std::int64_t read_bytes = count_attention(shape, lengths).bytes;
  const std::int64_t wanted = (8 * last_level_bytes() + read_bytes - 1) / read_bytes;
  const std::int64_t entries =
      std::clamp<std::int64_t>(most_bytes / entry_bytes, 1, std::max<std::int64_t>(1, wanted));

  KVC_ASSIGN_OR_RETURN(Pages pages, Pages::create(entries * entry_bytes));
  fill_random(pages.data(), pages.bytes(), shape.dtype, random);
  KvRing ring(std::move(pages));
  ring.shape_ = shape;
  ring.lengths_ = std::move(lengths);
  ring.num_entries_ = entries;
  ring.entry_bytes_ = entry_bytes;
  KvPart part = geometry.part;
  part.lengths = ring.lengths_.data();
  if (paged) {
    part.block_table_stride = pages_of(shape.kv_len, page_size);
    ring.table_ = shuffled_table(shape, ring.lengths_, part.block_table_stride, num_pages, random);
    part.block_table = ring.table_.data();
  }
  for (std::int64_t i = 0; i < entries; ++i) {
    part.k.data = ring.pages_.data() + i * entry_bytes;
    part.v.data = ring.pages_.data() + i * entry_bytes + geometry.k_bytes;
    ring.parts_.push_back(part);
  }

  // The cached part: pages of 16 over the first bytes of entry 0, picked at random, so that no two
  // sequences seem to share a prefix.
  constexpr std::int64_t kCachedPage = 16;
  const std::int64_t page_bytes =
      kCachedPage * shape.kv_heads * (shape.head_dim + shape.v_dim()) * size_of(shape.dtype);
  const std::int64_t there = std::max<std::int64_t>(1, entry_bytes / 2 / page_bytes);
  const std::int64_t distinct =
      std::clamp<std::int64_t>(second_level_bytes() / 2 / page_bytes, 1, there);
  const Geometry cached = geometry_of(shape, kCachedPage, distinct);
  if (cached.k_bytes + cached.v_bytes <= ring.pages_.bytes()) {
    KvPart few = cached.part;
    few.lengths = ring.lengths_.data();
    few.k.data = ring.pages_.data();
    few.v.data = ring.pages_.data() + cached.k_bytes;
    few.block_table_stride = pages_of(shape.kv_len, kCachedPage);
    ring.cached_table_.resize(static_cast<std::size_t>(shape.batch * few.block_table_stride));
    std::uniform_int_distribution<std::int32_t> pick(0, static_cast<std::int32_t>(distinct) - 1);
    for (std::int32_t& page : ring.cached_table_) page = pick(random);
    few.block_table = ring.cached_table_.data();
    ring.parts_.push_back(few);
  } else {
    ring.parts_.push_back(ring.parts_.front());  // smaller than a page: cached as it is
  }
  return ring;
}

KvView KvRing::view_of(const KvPart& part) const {
  KvView view;
  view.num_seqs = static_cast<std::int32_t>(shape_.batch);
  view.num_kv_heads = static_cast<std::int32_t>(shape_.kv_heads);
  view.k_head_dim = static_cast<std::int32_t>(shape_.head_dim);
  view.v_head_dim = static_cast<std::int32_t>(shape_.v_dim());
  view.num_parts = 1;
  view.parts = &part;
  return view;
}

KvView KvRing::view(std::int64_t entry) const {
  return view_of(parts_[static_cast<std::size_t>(entry % num_entries_)]);
}

KvView KvRing::cached_view() const { return view_of(parts_.back()); }

std::span<const std::byte> KvRing::memory(std::int64_t entry) const {
  return {pages_.data() + entry % num_entries_ * entry_bytes_,
          static_cast<std::size_t>(entry_bytes_)};
}

}  // namespace kvcache::bench
