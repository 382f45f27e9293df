// The sequences of a PagedCache.
#ifndef KVCACHE_TESTS_MATRIX_PAGED_CACHE_FACE_H_
#define KVCACHE_TESTS_MATRIX_PAGED_CACHE_FACE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "matrix/face.h"

namespace kvcache::testing {

// What both faces over pages say of their tables.
inline Status pages_of(const PagedCache& cache, std::int64_t layer, SequenceId seq,
                       SequencePages* pages) {
  KVC_ASSIGN_OR_RETURN(const BlockTable table, cache.block_table(layer, {&seq, 1}));
  KVC_ASSIGN_OR_RETURN(const PageIndices indices, cache.page_indices(layer, {&seq, 1}));
  for (const std::int32_t page : table.pages) {
    if (page >= 0) pages->block_table.push_back(page);
  }
  pages->indices = indices.kv_indices;
  pages->last_page_len = indices.kv_last_page_len.front();
  return {};
}

inline Status gather_from(const PagedCache& cache, std::int64_t layer, SequenceId seq,
                          const LayerSpec& spec, HostTensor* k, HostTensor* v) {
  KVC_ASSIGN_OR_RETURN(const std::int64_t rows, cache.rows_held(layer, seq));
  const auto shaped = [&](const BufferSpec& buffer) {
    return cache.layout() == Layout::kHND
               ? HostTensor(DType::kF32, {buffer.heads, rows, buffer.dim})
               : HostTensor(DType::kF32, {rows, buffer.heads, buffer.dim});
  };
  HostTensor key = shaped(spec.key()), value = shaped(spec.value());
  KVC_RETURN_IF_ERROR(cache.gather(layer, seq, key.mutable_view(), value.mutable_view()));
  *k = tokens_first(key, cache.layout());
  *v = tokens_first(value, cache.layout());
  return {};
}

inline Tokens joined_tokens(const std::vector<Tokens>& rows) {
  Tokens all;
  for (const Tokens& row : rows) all.insert(all.end(), row.begin(), row.end());
  return all;
}

class PagedCacheFace final : public Face {
 public:
  static Result<std::unique_ptr<Face>> make(const CacheConfig& config) {
    KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
    return std::unique_ptr<Face>(new PagedCacheFace(config, std::move(cache)));
  }
  const char* name() const override { return "PagedCache"; }

  Status open() override {
    KVC_ASSIGN_OR_RETURN(const SequenceId seq, cache_.open());
    seqs_.push_back(seq);
    return {};
  }
  Status release(std::int64_t seq) override {
    KVC_RETURN_IF_ERROR(cache_.release(id(seq)));
    seqs_.erase(seqs_.begin() + seq);
    return {};
  }
  Status begin(const Counts& counts) override {
    std::vector<Append> appends;
    for (std::size_t i = 0; i < counts.size(); ++i) appends.push_back({seqs_[i], counts[i]});
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache_.reserve(appends));
    step_.emplace(std::move(step));
    return {};
  }
  Status write(std::int64_t layer, const std::vector<Tokens>& rows) override {
    const LayerSpec& spec = specs_[static_cast<std::size_t>(layer)];
    const Tokens all = joined_tokens(rows);
    return cache_.write(*step_, layer, packed_tokens(spec.key(), all, layer),
                        packed_tokens(spec.value(), all, layer));
  }
  Status commit(const Counts* accepted) override {
    return cache_.commit(*step_, accepted == nullptr ? Counts() : *accepted);
  }
  Status rollback() override { return cache_.rollback(*step_); }
  Status attend(std::int64_t layer, const HostTensor& q, const std::vector<std::int32_t>& indptr,
                const AttentionOptions& options, HostTensor* out) override {
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, cache_.view(*step_, layer));
    return kvcache::attend(q, indptr, view, out->mutable_view(), {}, options);
  }

  Status fork(std::int64_t seq, std::int64_t length) override {
    KVC_ASSIGN_OR_RETURN(const SequenceId child, cache_.fork(id(seq), length));
    seqs_.push_back(child);
    return {};
  }
  Status reorder(const Counts& beams) override { return cache_.reorder(seqs_, indices(beams)); }
  Status hold(std::int64_t seq, bool hold) override { return cache_.hold_rows(id(seq), hold); }
  Status truncate(std::int64_t seq, std::int64_t n) override { return cache_.truncate(id(seq), n); }
  Status rewind(std::int64_t seq, std::int64_t n) override { return cache_.rewind(id(seq), n); }

  Status gather(std::int64_t layer, std::int64_t seq, HostTensor* k, HostTensor* v) override {
    return gather_from(cache_, layer, id(seq), specs_[static_cast<std::size_t>(layer)], k, v);
  }
  Status lengths(Counts* lengths) override {
    for (const SequenceId seq : seqs_) lengths->push_back(cache_.seq_length(seq).value());
    return {};
  }
  Result<std::int64_t> first_position(std::int64_t layer, std::int64_t seq) override {
    return cache_.first_position(layer, id(seq));
  }
  Status tables(std::int64_t layer, std::int64_t seq, SequencePages* pages) override {
    return pages_of(cache_, layer, id(seq), pages);
  }
  Status slots(std::int64_t layer, Pages* slots) override {
    KVC_ASSIGN_OR_RETURN(*slots, cache_.slot_mapping(*step_, layer));
    return {};
  }
  Status remove(std::int64_t seq, std::int64_t begin, std::int64_t end) override {
    return cache_.remove(id(seq), begin, end);
  }
  Status shift(std::int64_t seq, std::int64_t begin, std::int64_t end,
               std::int64_t delta) override {
    return cache_.shift(id(seq), begin, end, delta);
  }
  Status parents(std::int64_t seq) override {
    const std::int32_t parents[] = {-1, 0};
    const Append append{id(seq), 2, {}, parents};
    return cache_.reserve({&append, 1}).status();
  }
  Status check() const override { return cache_.check_invariants(); }

 private:
  PagedCacheFace(const CacheConfig& config, PagedCache cache)
      : specs_(config.layers), cache_(std::move(cache)) {}
  SequenceId id(std::int64_t seq) const { return seqs_[static_cast<std::size_t>(seq)]; }

  std::vector<LayerSpec> specs_;
  PagedCache cache_;
  std::vector<SequenceId> seqs_;
  std::optional<PagedCache::Step> step_;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_PAGED_CACHE_FACE_H_
