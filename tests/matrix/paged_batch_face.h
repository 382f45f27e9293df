// The rows of a PagedBatch.
#ifndef KVCACHE_TESTS_MATRIX_PAGED_BATCH_FACE_H_
#define KVCACHE_TESTS_MATRIX_PAGED_BATCH_FACE_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kvcache/paged_batch.h"
#include "matrix/face.h"
#include "matrix/paged_cache_face.h"

namespace kvcache::testing {

// Steps by name, and forward passes that nobody announces where every row brings as many tokens.
class PagedBatchFace final : public Face {
 public:
  static Result<std::unique_ptr<Face>> make(const CacheConfig& config) {
    KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
    auto shared = std::make_shared<PagedCache>(std::move(cache));
    KVC_ASSIGN_OR_RETURN(PagedBatch batch, PagedBatch::create(shared));
    return std::unique_ptr<Face>(new PagedBatchFace(config, shared, std::move(batch)));
  }
  const char* name() const override { return "PagedBatch"; }
  bool may_write_again() const override { return !forward_; }

  Status open() override { return batch_.add(); }
  Status release(std::int64_t seq) override { return batch_.release(seq); }
  Status begin(const Counts& counts) override {
    forward_ = ++steps_ % 2 == 0 && counts.front() > 0 &&
               std::equal(counts.begin() + 1, counts.end(), counts.begin());
    fresh_ = counts.front();
    return forward_ ? Status() : batch_.begin(counts);
  }
  Status write(std::int64_t layer, const std::vector<Tokens>& rows) override {
    const LayerSpec& spec = specs_[static_cast<std::size_t>(layer)];
    if (forward_) {
      const Layout layout = cache_->layout();
      return batch_.update(layer, dense_tokens(spec.key(), rows, layer, layout),
                           dense_tokens(spec.value(), rows, layer, layout));
    }
    const Tokens all = joined_tokens(rows);
    return batch_.write(layer, packed_tokens(spec.key(), all, layer),
                        packed_tokens(spec.value(), all, layer));
  }
  Status commit(const Counts* accepted) override {
    if (!forward_) return batch_.commit(accepted == nullptr ? Counts() : *accepted);
    // It ends by itself, or with the next change; what is not accepted is rewound before.
    if (accepted == nullptr) return batch_.step_open() ? batch_.commit() : Status();
    Counts drop;
    for (const std::int64_t count : *accepted) drop.push_back(fresh_ - count);
    return batch_.rewind(std::span<const std::int64_t>(drop));
  }
  Status rollback() override {
    if (!forward_ || batch_.step_open()) return batch_.rollback();
    return batch_.rewind(fresh_);
  }
  Status attend(std::int64_t layer, const HostTensor& q, const std::vector<std::int32_t>& indptr,
                const AttentionOptions& options, HostTensor* out) override {
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, batch_.view(layer));
    return kvcache::attend(q, indptr, view, out->mutable_view(), {}, options);
  }

  // The row once more, cut to `length`.
  Status fork(std::int64_t seq, std::int64_t length) override {
    Counts rows;
    for (std::int64_t row = 0; row < batch_.num_rows(); ++row) rows.push_back(row);
    rows.push_back(seq);
    KVC_RETURN_IF_ERROR(batch_.select(indices(rows)));
    const Status status = rewind(batch_.num_rows() - 1, batch_.seq_length(seq).value() - length);
    if (!status.ok()) KVC_RETURN_IF_ERROR(batch_.release(batch_.num_rows() - 1));
    return status;
  }
  Status reorder(const Counts& beams) override { return batch_.reorder(indices(beams)); }
  Status truncate(std::int64_t seq, std::int64_t n) override {
    bool alone = true;  // no other row is longer
    for (std::int64_t row = 0; row < batch_.num_rows(); ++row) {
      alone = alone && (row == seq || batch_.seq_length(row).value() <= n);
    }
    const std::int64_t length = batch_.seq_length(seq).value();
    if (alone || n < 0) return batch_.truncate(n);
    return n >= length ? Status() : rewind(seq, length - n);
  }
  Status rewind(std::int64_t seq, std::int64_t n) override {
    Counts drop(static_cast<std::size_t>(batch_.num_rows()), 0);
    drop[static_cast<std::size_t>(seq)] = n;
    return batch_.rewind(std::span<const std::int64_t>(drop));
  }

  // gather() is of all rows, where they hold as many.
  Status gather(std::int64_t layer, std::int64_t seq, HostTensor* k, HostTensor* v) override {
    const LayerSpec& spec = specs_[static_cast<std::size_t>(layer)];
    KVC_ASSIGN_OR_RETURN(PagedBatch one, batch_.fork());
    const std::int64_t row[] = {seq};
    KVC_RETURN_IF_ERROR(one.select(TensorView(row, DType::kI64, {1})));
    KVC_ASSIGN_OR_RETURN(const std::int64_t held, one.rows_held(0, layer));
    const bool head_first = cache_->layout() == Layout::kHND;
    const auto shaped = [&](const BufferSpec& buffer) {
      return HostTensor(DType::kF32, {1, head_first ? buffer.heads : held,
                                      head_first ? held : buffer.heads, buffer.dim});
    };
    HostTensor key = shaped(spec.key()), value = shaped(spec.value());
    KVC_RETURN_IF_ERROR(one.gather(layer, key.mutable_view(), value.mutable_view()));
    *k = tokens_first(without_batch(key), cache_->layout());
    *v = tokens_first(without_batch(value), cache_->layout());
    return {};
  }
  Status lengths(Counts* lengths) override {
    for (std::int64_t row = 0; row < batch_.num_rows(); ++row) {
      lengths->push_back(batch_.seq_length(row).value());
    }
    return {};
  }
  Result<std::int64_t> first_position(std::int64_t layer, std::int64_t seq) override {
    return batch_.first_position(seq, layer);
  }
  Status tables(std::int64_t layer, std::int64_t seq, SequencePages* pages) override {
    return pages_of(*cache_, layer, batch_.sequences()[static_cast<std::size_t>(seq)], pages);
  }
  Status slots(std::int64_t, Pages*) override { return no_call(); }
  Status check() const override { return cache_->check_invariants(); }

 private:
  PagedBatchFace(const CacheConfig& config, std::shared_ptr<PagedCache> cache, PagedBatch batch)
      : specs_(config.layers), cache_(std::move(cache)), batch_(std::move(batch)) {}

  static HostTensor without_batch(const HostTensor& rows) {
    HostTensor result(DType::kF32, {rows.shape()[1], rows.shape()[2], rows.shape()[3]});
    std::int64_t i = 0;
    for (const float x : values(rows)) result.set(i++, x);
    return result;
  }

  std::vector<LayerSpec> specs_;
  std::shared_ptr<PagedCache> cache_;
  PagedBatch batch_;
  bool forward_ = false;
  std::int64_t steps_ = 0;
  std::int64_t fresh_ = 0;  // new tokens of each row of a forward pass
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_PAGED_BATCH_FACE_H_
