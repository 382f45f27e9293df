// ViewHistory: the histories whose cache hands out a view that attention reads in place.
#ifndef KVCACHE_RUNNER_MODEL_VIEW_HISTORY_H_
#define KVCACHE_RUNNER_MODEL_VIEW_HISTORY_H_

#include <cstdint>
#include <span>
#include <vector>

#include "runner/model/history.h"

namespace kvcache::runner {

class ViewHistory : public History {
 public:
  Status begin(std::span<const std::int64_t> counts, std::span<const std::int32_t> ids) final;
  Status attend(std::int64_t layer, const AttentionInputs& inputs, const MutableTensorView& out,
                const AttentionOptions& options, const ExecContext& context) final;
  std::int64_t rows_read() const noexcept final { return rows_read_; }

  // Stores k and v of one layer, packed; returns the view of all sequences so far, in their order.
  // Valid until the next write. attend() is this and the attention over it.
  virtual Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                                    const ExecContext& context) = 0;

 protected:
  // Room for the new tokens of each sequence.
  virtual Status reserve(std::span<const std::int64_t> counts,
                         std::span<const std::int32_t> ids) = 0;

 private:
  // The plan over layers that store their rows alike.
  struct LikeLayers {
    std::vector<RowFormat> formats;  // of keys and values of each part
    AttentionPlan plan;
    bool planned = false;  // in this step
  };
  // That of a view. May throw bad_alloc.
  LikeLayers& alike(const KvView& view);

  std::vector<LikeLayers> plans_;
  std::int64_t rows_read_ = 0;
  std::vector<std::int32_t> qo_indptr_;  // [num_sequences + 1]
};

// An error unless every sequence brings as many tokens: what a batch of equal lengths can take.
Status check_equal_counts(std::span<const std::int64_t> counts);

// Packed rows [batch * tokens, heads, dim] as the 4-D tensor of a layout.
TensorView as_batch(const TensorView& packed, std::int64_t batch, Layout layout);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_VIEW_HISTORY_H_
