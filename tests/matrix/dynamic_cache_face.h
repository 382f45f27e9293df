// The batch rows of a DynamicCache, which are of one length. It keeps every row, and reads a layer
// through its window or chunk. All layers are of the first one's forms.
#ifndef KVCACHE_TESTS_MATRIX_DYNAMIC_CACHE_FACE_H_
#define KVCACHE_TESTS_MATRIX_DYNAMIC_CACHE_FACE_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kvcache/dynamic_cache.h"
#include "matrix/face.h"

namespace kvcache::testing {

class DynamicCacheFace final : public Face {
 public:
  static Result<std::unique_ptr<Face>> make(const CacheConfig& config) {
    CacheOptions options;
    options.layout = config.layout;
    options.dtype = config.layers.front().key().format.dtype;
    options.keys = config.layers.front().key().format;
    options.values = config.layers.front().value().format;
    KVC_ASSIGN_OR_RETURN(DynamicCache cache, DynamicCache::create(options));
    // A form says no to a head size with the first rows.
    const LayerSpec& spec = config.layers.front();
    const HostTensor k(DType::kF32, {1, 1, 1, spec.key().dim});
    const HostTensor v(DType::kF32, {1, 1, 1, spec.value().dim});
    KVC_RETURN_IF_ERROR(cache.append(k, v));
    cache.reset();
    return std::unique_ptr<Face>(new DynamicCacheFace(config, std::move(cache)));
  }
  const char* name() const override { return "DynamicCache"; }
  bool is_dense() const override { return true; }

  Status open() override {
    ++rows_;
    return {};
  }
  Status release(std::int64_t seq) override {
    Counts rows;
    for (std::int64_t row = 0; row < rows_; ++row) {
      if (row != seq) rows.push_back(row);
    }
    KVC_RETURN_IF_ERROR(cache_.batch_select(indices(rows)));
    --rows_;
    return {};
  }
  Status begin(const Counts&) override { return {}; }
  Status write(std::int64_t layer, const std::vector<Tokens>& rows) override {
    return write_to(layer, rows, {});
  }
  Status commit(const Counts* accepted) override {
    return accepted == nullptr ? Status() : no_call();
  }
  Status rollback() override { return no_call(); }
  Status attend(std::int64_t layer, const HostTensor& q, const std::vector<std::int32_t>& indptr,
                const AttentionOptions& options, HostTensor* out) override {
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, cache_.view(layer));
    return kvcache::attend(q, indptr, view, out->mutable_view(), {}, options);
  }

  Status write_at(const std::vector<Counts>& positions, const std::vector<Tokens>& rows) override {
    const HostTensor at = index_table(positions);
    for (std::size_t layer = 0; layer < specs_.size(); ++layer) {
      KVC_RETURN_IF_ERROR(write_to(std::int64_t(layer), rows, at));
    }
    return {};
  }
  // The row once more: all rows are of one length.
  Status fork(std::int64_t seq, std::int64_t length) override {
    if (length != cache_.next_position().value()) return no_call();
    Counts rows;
    for (std::int64_t row = 0; row < rows_; ++row) rows.push_back(row);
    rows.push_back(seq);
    KVC_RETURN_IF_ERROR(cache_.batch_select(indices(rows)));
    ++rows_;
    return {};
  }
  Status reorder(const Counts& beams) override { return cache_.reorder(indices(beams)); }
  // To position n: rows count from where crop() has left them.
  Status truncate(std::int64_t, std::int64_t n) override {
    return cache_.truncate(n - first_position(0, 0).value());
  }
  Status rewind(std::int64_t, std::int64_t n) override { return cache_.rewind(n); }
  Status crop(std::int64_t n) override { return cache_.crop(n); }

  Status gather(std::int64_t layer, std::int64_t seq, HostTensor* k, HostTensor* v) override {
    KVC_ASSIGN_OR_RETURN(const KeyValueView rows, cache_.get(layer));
    const auto of_row = [&](const TensorView& all) {
      TensorView one = all;
      one.rank = 3;
      one.data =
          static_cast<const std::byte*>(all.data) + seq * all.strides[0] * size_of(all.dtype);
      std::copy_n(all.shape + 1, 3, one.shape);
      std::copy_n(all.strides + 1, 3, one.strides);
      HostTensor copy(DType::kF32, {one.shape[0], one.shape[1], one.shape[2]});
      std::int64_t i = 0;
      for (const float x : kvcache::testing::values(one)) copy.set(i++, x);
      return tokens_first(copy, cache_.layout());
    };
    *k = of_row(rows.key);
    *v = of_row(rows.value);
    return {};
  }
  Status lengths(Counts* lengths) override {
    lengths->assign(std::size_t(rows_), cache_.next_position().value());
    return {};
  }
  Result<std::int64_t> first_position(std::int64_t layer, std::int64_t) override {
    return cache_.next_position(layer).value() - cache_.seq_length(layer).value();
  }

 private:
  DynamicCacheFace(const CacheConfig& config, DynamicCache cache)
      : specs_(config.layers), cache_(std::move(cache)) {}

  Status write_to(std::int64_t layer, const std::vector<Tokens>& rows, const TensorView& at) {
    const LayerSpec& spec = specs_[static_cast<std::size_t>(layer)];
    return cache_
        .update(dense_tokens(spec.key(), rows, layer, cache_.layout()),
                dense_tokens(spec.value(), rows, layer, cache_.layout()), layer, at)
        .status();
  }

  std::vector<LayerSpec> specs_;
  DynamicCache cache_;
  std::int64_t rows_ = 0;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_DYNAMIC_CACHE_FACE_H_
