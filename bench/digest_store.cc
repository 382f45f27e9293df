#include "bench/digest_store.h"

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "kvcache/batching_cache.h"
#include "kvcache/dynamic_cache.h"
#include "kvcache/paged_cache.h"

namespace kvcache::bench {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// Rows begin .. end of a sequence: [count, heads, dim] for kNHD, else [heads, count, dim].
std::vector<float> make_rows(const DigestRows& rows, DigestStream stream, std::int32_t seq,
                             std::int64_t begin, std::int64_t end, Layout layout) {
  const std::int64_t dim = stream == DigestStream::kKey ? rows.k_dim : rows.v_dim;
  std::vector<float> made(at((end - begin) * rows.kv_heads * dim));
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t of = row < rows.shared[at(seq)] ? 0 : seq;
    for (std::int64_t head = 0; head < rows.kv_heads; ++head) {
      const std::int64_t place = layout == Layout::kNHD ? (row - begin) * rows.kv_heads + head
                                                        : head * (end - begin) + row - begin;
      for (std::int64_t d = 0; d < dim; ++d) {
        made[at(place * dim + d)] = digest_value(stream, of, row, head, d);
      }
    }
  }
  return made;
}

// [1, heads, count, dim] in the layout.
TensorView batch_of_one(const std::vector<float>& rows, std::int64_t heads, std::int64_t count,
                        std::int64_t dim, Layout layout) {
  if (layout == Layout::kHND) return {rows.data(), DType::kF32, {1, heads, count, dim}};
  return {rows.data(), DType::kF32, {1, count, heads, dim}};
}

Status update(Cache& cache, const DigestRows& rows, std::int32_t seq, std::int64_t begin,
              std::int64_t end) {
  const Layout layout = cache.layout();
  const auto k = make_rows(rows, DigestStream::kKey, seq, begin, end, layout);
  const auto v = make_rows(rows, DigestStream::kValue, seq, begin, end, layout);
  return cache
      .update(batch_of_one(k, rows.kv_heads, end - begin, rows.k_dim, layout),
              batch_of_one(v, rows.kv_heads, end - begin, rows.v_dim, layout))
      .status();
}

Result<DynamicCache> make_cache(DType dtype, Layout layout, std::int64_t reserve_tokens) {
  CacheOptions options;
  options.dtype = dtype;
  options.layout = layout;
  options.reserve_tokens = reserve_tokens;
  return DynamicCache::create(options);
}

// Digest of a tensor of rank 3 or 4 by token, then head.
std::uint64_t digest_of(const TensorView& rows, Layout layout, std::uint64_t seed) {
  const int head = layout == Layout::kHND ? rows.rank - 3 : rows.rank - 2;
  const int token = layout == Layout::kHND ? rows.rank - 2 : rows.rank - 3;
  const std::int64_t size = size_of(rows.dtype);
  for (std::int64_t t = 0; t < rows.shape[token]; ++t) {
    for (std::int64_t h = 0; h < rows.shape[head]; ++h) {
      const auto* row = static_cast<const std::byte*>(rows.data) +
                        (t * rows.strides[token] + h * rows.strides[head]) * size;
      seed = digest_bytes(row, rows.shape[rows.rank - 1] * size, seed);
    }
  }
  return seed;
}

// Rows begin .. end of a packed tensor [rows, heads, dim] or [rows, heads].
template <typename View>
View slice(const View& packed, std::int64_t begin, std::int64_t end) {
  if (!packed.defined()) return packed;
  View part = packed;
  using Bytes = std::conditional_t<std::is_same_v<View, TensorView>, const std::byte, std::byte>;
  part.data = static_cast<Bytes*>(packed.data) + begin * packed.strides[0] * size_of(packed.dtype);
  part.shape[0] = end - begin;
  return part;
}

// Every sequence in a cache of its own, attended to alone.
class ContiguousStore final : public DigestStore {
 public:
  static Result<std::unique_ptr<DigestStore>> create(const DigestRows& rows, DType dtype,
                                                     Layout layout) {
    auto store = std::unique_ptr<ContiguousStore>(new ContiguousStore(layout));
    for (std::int32_t seq = 0; seq < static_cast<std::int32_t>(rows.lengths.size()); ++seq) {
      // Some outgrow what they reserved.
      KVC_ASSIGN_OR_RETURN(auto cache, make_cache(dtype, layout, seq % 2 == 0 ? 256 : 4096));
      const std::int64_t length = rows.lengths[at(seq)];
      for (std::int64_t begin = 0; begin < length; begin += 500) {
        KVC_RETURN_IF_ERROR(update(cache, rows, seq, begin, std::min(begin + 500, length)));
      }
      store->caches_.push_back(std::move(cache));
    }
    return std::unique_ptr<DigestStore>(std::move(store));
  }

  std::string name() const override { return std::string("contiguous, ") + name_of(layout_); }

  Status attend(const DigestCall& call, const ExecContext& context) override {
    for (std::size_t seq = 0; seq < caches_.size(); ++seq) {
      const std::int32_t begin = call.qo_indptr[seq];
      const std::int32_t end = call.qo_indptr[seq + 1];
      if (begin == end) continue;
      AttentionOptions options = call.options;
      const auto index = static_cast<std::int64_t>(seq);
      options.mask = slice(call.mask, index, index + 1);
      const std::int32_t indptr[] = {0, end - begin};
      KVC_ASSIGN_OR_RETURN(const OwnedKvView view, caches_[seq].view(0));
      KVC_RETURN_IF_ERROR(kvcache::attend(slice(call.q, begin, end), indptr, view,
                                          slice(call.out, begin, end), slice(call.lse, begin, end),
                                          options, context));
    }
    return {};
  }

  Result<std::uint64_t> rows() const override {
    std::uint64_t digest = kDigestSeed;
    for (const DynamicCache& cache : caches_) {
      KVC_ASSIGN_OR_RETURN(const KeyValueView stored, cache.get(0));
      digest = digest_of(stored.value, layout_, digest_of(stored.key, layout_, digest));
    }
    return digest;
  }

 private:
  explicit ContiguousStore(Layout layout) : layout_(layout) {}

  Layout layout_;
  std::vector<DynamicCache> caches_;
};

// A running batch with an idle slot; the newest rows come with the call, and leave after it.
class BatchStore final : public DigestStore {
 public:
  static Result<std::unique_ptr<DigestStore>> create(const DigestRows& rows, DType dtype,
                                                     Layout layout) {
    BatchingOptions options;
    options.layout = layout;
    options.dtype = dtype;
    const auto seqs = static_cast<std::int64_t>(rows.lengths.size());
    KVC_ASSIGN_OR_RETURN(auto batch, BatchingCache::create(seqs + 1, options));
    for (std::int32_t seq = 0; seq < seqs; ++seq) {
      KVC_ASSIGN_OR_RETURN(auto cache, make_cache(dtype, layout, 4096));
      KVC_RETURN_IF_ERROR(update(cache, rows, seq, 0, rows.lengths[at(seq)]));
      KVC_RETURN_IF_ERROR(batch.add_request(cache, seq));
    }
    return std::unique_ptr<DigestStore>(new BatchStore(rows, layout, std::move(batch)));
  }

  std::string name() const override { return std::string("running batch, ") + name_of(layout_); }

  // An idle slot attends too: a mask for it and lse do not go in.
  bool takes(const DigestCall& call) const override {
    const std::int32_t count = call.qo_indptr[1];
    for (std::size_t seq = 0; seq < rows_.lengths.size(); ++seq) {
      if (call.qo_indptr[seq + 1] - call.qo_indptr[seq] != count) return false;
    }
    return count > 0 && !call.lse.defined() && !call.mask.defined() &&
           call.q.dtype == DType::kF32 && call.out.dtype == DType::kF32;
  }

  Status attend(const DigestCall& call, const ExecContext& context) override {
    const auto seqs = static_cast<std::int64_t>(rows_.lengths.size());
    const std::int64_t count = call.qo_indptr[1];
    const std::int64_t heads = call.q.shape[1];
    const bool head_first = layout_ == Layout::kHND;
    const auto dense = [&](std::int64_t of, std::int64_t dim) {
      return std::vector<float>(at((seqs + 1) * of * count * dim));
    };
    std::vector<float> q = dense(heads, rows_.k_dim), out = dense(heads, rows_.v_dim);
    std::vector<float> k = dense(rows_.kv_heads, rows_.k_dim);
    std::vector<float> v = dense(rows_.kv_heads, rows_.v_dim);
    const auto shape = [&](std::int64_t of, std::int64_t dim) {
      return TensorView(nullptr, DType::kF32,
                        {seqs + 1, head_first ? of : count, head_first ? count : of, dim});
    };
    for (std::int32_t seq = 0; seq < seqs; ++seq) {
      const std::int64_t length = rows_.lengths[at(seq)];
      KVC_RETURN_IF_ERROR(batch_.rewind(seq, count));
      const auto rows_k =
          make_rows(rows_, DigestStream::kKey, seq, length - count, length, layout_);
      const auto rows_v =
          make_rows(rows_, DigestStream::kValue, seq, length - count, length, layout_);
      std::copy(rows_k.begin(), rows_k.end(), k.begin() + seq * std::ssize(rows_k));
      std::copy(rows_v.begin(), rows_v.end(), v.begin() + seq * std::ssize(rows_v));
    }
    const auto* packed_q = static_cast<const float*>(call.q.data);
    auto* packed_out = static_cast<float*>(call.out.data);
    const auto place = [&](std::int64_t row, std::int64_t head) {
      const std::int64_t seq = row / count, i = row % count;
      return head_first ? (seq * heads + head) * count + i : row * heads + head;
    };
    for (std::int64_t row = 0; row < seqs * count; ++row) {
      for (std::int64_t head = 0; head < heads; ++head) {
        std::copy_n(packed_q + (row * heads + head) * rows_.k_dim, rows_.k_dim,
                    q.begin() + place(row, head) * rows_.k_dim);
      }
    }
    const auto with = [](TensorView view, const std::vector<float>& data) {
      view.data = data.data();
      return view;
    };
    MutableTensorView result(out.data(), DType::kF32,
                             {seqs + 1, head_first ? heads : count, head_first ? count : heads,
                              std::int64_t{rows_.v_dim}});
    KVC_RETURN_IF_ERROR(batch_.attend(
        with(shape(heads, rows_.k_dim), q), with(shape(rows_.kv_heads, rows_.k_dim), k),
        with(shape(rows_.kv_heads, rows_.v_dim), v), result, 0, call.options, context));
    for (std::int64_t row = 0; row < seqs * count; ++row) {
      for (std::int64_t head = 0; head < heads; ++head) {
        std::copy_n(out.begin() + place(row, head) * rows_.v_dim, rows_.v_dim,
                    packed_out + (row * heads + head) * rows_.v_dim);
      }
    }
    return {};
  }

  bool shows_rows() const override { return false; }
  Result<std::uint64_t> rows() const override { return kDigestSeed; }

 private:
  BatchStore(DigestRows rows, Layout layout, BatchingCache batch)
      : rows_(std::move(rows)), layout_(layout), batch_(std::move(batch)) {}

  DigestRows rows_;
  Layout layout_;
  BatchingCache batch_;
};

// Pages of one pool. Sequences grow in turns, so that their pages lie among one another; or each is
// forked where it leaves sequence 0.
class PagedStore final : public DigestStore {
 public:
  static Result<std::unique_ptr<DigestStore>> create(const DigestRows& rows, DType dtype,
                                                     Layout layout, std::int64_t page_size,
                                                     bool shared) {
    CacheConfig config;
    LayerSpec spec;
    spec.num_kv_heads = rows.kv_heads;
    spec.k_head_dim = rows.k_dim;
    spec.v_head_dim = rows.v_dim;
    spec.k_format.dtype = spec.v_format.dtype = dtype;
    config.layers = {spec};
    config.page_size = page_size;
    config.layout = layout;
    for (const std::int32_t length : rows.lengths) config.num_pages += length / page_size + 2;
    KVC_ASSIGN_OR_RETURN(auto cache, PagedCache::create(config));
    auto store =
        std::unique_ptr<PagedStore>(new PagedStore(rows, dtype, layout, shared, std::move(cache)));
    KVC_RETURN_IF_ERROR(shared ? store->fork_all() : store->grow_in_turns());
    return std::unique_ptr<DigestStore>(std::move(store));
  }

  std::string name() const override {
    return std::string(shared_ ? "shared pages of " : "pages of ") +
           std::to_string(cache_.page_size()) + ", " + name_of(layout_);
  }

  Status attend(const DigestCall& call, const ExecContext& context) override {
    AttentionOptions options = call.options;
    options.mask = call.mask;
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, cache_.view(0, seqs_));
    return kvcache::attend(call.q, call.qo_indptr, view, call.out, call.lse, options, context);
  }

  Result<std::uint64_t> rows() const override {
    std::uint64_t digest = kDigestSeed;
    for (std::size_t seq = 0; seq < seqs_.size(); ++seq) {
      const std::int64_t heads = rows_.kv_heads, length = rows_.lengths[seq];
      std::vector<std::byte> memory(
          at(heads * length * (rows_.k_dim + rows_.v_dim) * size_of(dtype_)));
      const auto dense = [&](std::byte* data, std::int64_t dim) {
        return layout_ == Layout::kHND ? MutableTensorView(data, dtype_, {heads, length, dim})
                                       : MutableTensorView(data, dtype_, {length, heads, dim});
      };
      const MutableTensorView k = dense(memory.data(), rows_.k_dim);
      const MutableTensorView v =
          dense(memory.data() + k.num_elements() * size_of(dtype_), rows_.v_dim);
      KVC_RETURN_IF_ERROR(cache_.gather(0, seqs_[seq], k, v));
      digest = digest_of(v, layout_, digest_of(k, layout_, digest));
    }
    return digest;
  }

 private:
  PagedStore(DigestRows rows, DType dtype, Layout layout, bool shared, PagedCache cache)
      : rows_(std::move(rows)),
        dtype_(dtype),
        layout_(layout),
        shared_(shared),
        cache_(std::move(cache)) {}

  Status append(std::int32_t seq, std::int64_t begin, std::int64_t end) {
    const Append appended{seqs_[at(seq)], end - begin};
    KVC_ASSIGN_OR_RETURN(auto step, cache_.reserve({&appended, 1}));
    const auto k = make_rows(rows_, DigestStream::kKey, seq, begin, end, Layout::kNHD);
    const auto v = make_rows(rows_, DigestStream::kValue, seq, begin, end, Layout::kNHD);
    const std::int64_t heads = rows_.kv_heads;
    KVC_RETURN_IF_ERROR(
        cache_.write(step, 0, TensorView(k.data(), DType::kF32, {end - begin, heads, rows_.k_dim}),
                     TensorView(v.data(), DType::kF32, {end - begin, heads, rows_.v_dim})));
    return cache_.commit(step);
  }

  Status grow_in_turns() {
    constexpr std::int64_t kTurn = 75;
    for (std::size_t seq = 0; seq < rows_.lengths.size(); ++seq) {
      KVC_ASSIGN_OR_RETURN(const SequenceId id, cache_.open());
      seqs_.push_back(id);
    }
    const std::int64_t longest = *std::max_element(rows_.lengths.begin(), rows_.lengths.end());
    for (std::int64_t begin = 0; begin < longest; begin += kTurn) {
      for (std::int32_t seq = 0; seq < std::ssize(seqs_); ++seq) {
        const std::int64_t end = std::min<std::int64_t>(begin + kTurn, rows_.lengths[at(seq)]);
        if (begin < end) KVC_RETURN_IF_ERROR(append(seq, begin, end));
      }
    }
    return {};
  }

  Status fork_all() {
    for (std::int32_t seq = 0; seq < std::ssize(rows_.lengths); ++seq) {
      const std::int64_t shared = seq > 0 ? rows_.shared[at(seq)] : 0;
      KVC_ASSIGN_OR_RETURN(const SequenceId id,
                           shared > 0 ? cache_.fork(seqs_[0], shared) : cache_.open());
      seqs_.push_back(id);
      const std::int64_t length = rows_.lengths[at(seq)];
      if (shared < length) KVC_RETURN_IF_ERROR(append(seq, shared, length));
    }
    return {};
  }

  DigestRows rows_;
  DType dtype_;
  Layout layout_;
  bool shared_;
  PagedCache cache_;
  std::vector<SequenceId> seqs_;
};

}  // namespace

float digest_value(DigestStream stream, std::int64_t seq, std::int64_t row, std::int64_t head,
                   std::int64_t element) noexcept {
  // The finaliser of splitmix64 (Steele, Lea, Flood 2014), over a mix of the arguments.
  std::uint64_t x = static_cast<std::uint64_t>(stream);
  for (const std::int64_t part : {seq, row, head, element}) {
    x = (x + static_cast<std::uint64_t>(part)) * 0x9e3779b97f4a7c15u + 1;
  }
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return (static_cast<float>(x & 0xffff) - 32768) / 16384;
}

std::uint64_t digest_bytes(const void* data, std::int64_t bytes, std::uint64_t seed) noexcept {
  const auto* byte = static_cast<const unsigned char*>(data);
  for (std::int64_t i = 0; i < bytes; ++i) seed = (seed ^ byte[i]) * 0x100000001b3u;
  return seed;
}

Result<std::vector<std::unique_ptr<DigestStore>>> digest_stores(const DigestRows& rows,
                                                                DType dtype) {
  std::vector<std::unique_ptr<DigestStore>> stores;
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    KVC_ASSIGN_OR_RETURN(auto contiguous, ContiguousStore::create(rows, dtype, layout));
    stores.push_back(std::move(contiguous));
    KVC_ASSIGN_OR_RETURN(auto batch, BatchStore::create(rows, dtype, layout));
    stores.push_back(std::move(batch));
    for (const std::int64_t page_size : {1, 16, 128}) {
      KVC_ASSIGN_OR_RETURN(auto pages, PagedStore::create(rows, dtype, layout, page_size, false));
      stores.push_back(std::move(pages));
    }
    KVC_ASSIGN_OR_RETURN(auto shared, PagedStore::create(rows, dtype, layout, 16, true));
    stores.push_back(std::move(shared));
  }
  return stores;
}

}  // namespace kvcache::bench
