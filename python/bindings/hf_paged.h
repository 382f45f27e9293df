// One layer of the transformers cache over pages: a PagedCache of one layer whose sequences are the
// rows of a batch, all of one length.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_PAGED_H_
#define KVCACHE_PYTHON_BINDINGS_HF_PAGED_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvcache/layer_spec.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "python/bindings/hf_attend.h"

namespace kvcache::python {

struct PagedOptions {
  std::int64_t page_size = 64;        // tokens
  std::int64_t max_tokens = 1 << 20;  // over the whole batch; address space, until it is filled
  std::optional<DType> dtype;         // default: that of the first update, K and V each its own
};

// Forks share a pool. Thread safety: one layer is used by one thread at a time; layers that share a
// pool may be used by several, as the pool is locked while it changes.
class PagedLayer {
 public:
  explicit PagedLayer(const PagedOptions& options) : options_(options) {}
  PagedLayer(const PagedLayer&) = delete;
  PagedLayer& operator=(const PagedLayer&) = delete;
  ~PagedLayer();

  // Appends key [B, H, T, Dk] and value [B, H, T, Dv]. The first rows fix batch, heads and sizes;
  // T == 0 changes nothing and fixes no shape.
  Status append(const TensorView& key, const TensorView& value);

  // Attends to all rows. Errors: kInvalidArgument while there are none.
  Status attend(const HfAttend& call);

  // Copies all rows to key [B, H, S, Dk] and value [B, H, S, Dv], dense.
  Status gather(const MutableTensorView& key, const MutableTensorView& value);

  // Row i becomes what row indices[i] was: references move, no row is copied.
  Status select(std::span<const std::int64_t> indices);

  // Drops the newest n rows. Errors: kOutOfRange for more than there are.
  Status rewind(std::int64_t n);

  void reset() noexcept;

  // A layer with the same rows, in the same pages until either side writes to them.
  Result<std::unique_ptr<PagedLayer>> fork();

  std::int64_t batch() const noexcept { return static_cast<std::int64_t>(seqs_.size()); }
  std::int64_t length() const noexcept { return length_; }
  const LayerSpec& spec() const noexcept { return spec_; }
  std::int64_t elements() const noexcept {  // of K and V, in all rows
    return batch() * length_ * spec_.num_kv_heads * (spec_.k_head_dim + spec_.v_head_dim);
  }
  PagedStats stats() const;             // of the pool, which forks share
  std::int64_t nbytes() const;          // likewise
  std::int64_t reserved_bytes() const;  // likewise

 private:
  struct Pool {
    std::mutex mutex;
    PagedCache cache;
    explicit Pool(PagedCache made) : cache(std::move(made)) {}
  };

  // A pool for rows of `spec`: the present one where it fits.
  Result<std::shared_ptr<Pool>> pool_for(const LayerSpec& spec) const;
  void release(std::span<const SequenceId> seqs) noexcept;

  PagedOptions options_;
  std::shared_ptr<Pool> pool_;
  LayerSpec spec_;
  std::vector<SequenceId> seqs_;  // [batch]; none before the first rows
  std::int64_t length_ = 0;
};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_PAGED_H_
