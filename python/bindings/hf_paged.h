// One layer of the transformers cache over pages: a PagedCache of one layer whose sequences are the
// rows of a batch, all of one length.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_PAGED_H_
#define KVCACHE_PYTHON_BINDINGS_HF_PAGED_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/cache_file.h"
#include "kvcache/layer_spec.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "python/bindings/hf_attend.h"

namespace kvcache::python {

struct PagedOptions {
  std::int64_t page_size = 64;        // tokens
  std::int64_t max_tokens = 1 << 20;  // over the whole batch
  std::optional<DType> dtype;         // default: that of the first update, K and V each its own
  Life life;                          // what queries see, and so what rows are kept
  std::int64_t rewind_tokens = 0;     // how far back beyond that
  RowFormat k, v;                     // forms of coded rows; of plain ones kStrided
  std::int64_t residual_tokens = 0;   // newest ones that stay plain where others are coded

  bool is_coded() const noexcept { return k.is_coded() || v.is_coded(); }
  bool keeps_all() const noexcept { return life.window == 0 && life.chunk == 0; }
  // Whether the rows of a step are as it wrote them once it has ended.
  bool stays() const noexcept { return keeps_all() && residual_tokens == 0; }
};

// Which rows a tensor that was handed out stands for: the first `length` of an epoch, which ends
// when rows do more than to be appended to.
struct Moment {
  std::int64_t length = 0;
  std::int64_t epoch = 0;

  friend bool operator==(const Moment&, const Moment&) = default;
};

// Address space is reserved for what is likely. A layer that outgrows its pool copies its rows to
// one of several times the size; its forks stay where they are. Coded rows are never encoded again,
// so a layer of them has room for max_tokens from the start.
//
// A layer of a window or chunk lets rows go that no later query sees, and one of residual tokens
// encodes those that are no longer the newest. The queries of the newest tokens come after their
// rows, so that its step stays open until the rows change again.
//
// Thread safety: one layer is used by one thread at a time, who holds turn(). Layers that share a
// pool may be used by several: the pool is locked while it changes.
class PagedLayer {
 public:
  explicit PagedLayer(const PagedOptions& options) : options_(options) {}
  PagedLayer(const PagedLayer&) = delete;
  PagedLayer& operator=(const PagedLayer&) = delete;
  ~PagedLayer();

  // One call at a time on this layer, whether or not it holds the GIL.
  std::recursive_mutex& turn() const noexcept { return turn_; }

  // Appends key [B, H, T, Dk] and value [B, H, T, Dv]. The first rows fix batch, heads and sizes;
  // T == 0 changes nothing and fixes no shape. Errors: kInvalidArgument for other shapes,
  // kRetryLater and kNeverFits past max_tokens, kOutOfMemory.
  Status append(const TensorView& key, const TensorView& value);

  // Attends to all rows. Errors: kInvalidArgument while there are none, and for queries that would
  // see what is gone.
  Status attend(const HfAttend& call);

  // Copies all rows to key [B, H, S, Dk] and value [B, H, S, Dv], dense and of the layer's types:
  // zeros for those that are gone.
  Status gather(const MutableTensorView& key, const MutableTensorView& value);

  // Rows `begin` .. of one sequence to rows [H, n, D] of the layer's types: zeros for those that
  // are gone. REQUIRES: they are among its rows, which are plain.
  Status read(std::int64_t seq, std::int64_t begin, bool keys, const MutableTensorView& rows) const;

  // What was appended was copied from elsewhere, and zeros for what later queries do not see: the
  // rows cannot be taken back to where they would.
  void loaded() noexcept { loaded_ = lets_go() ? length() : 0; }

  // Row i becomes what row indices[i] was: references move, no row is copied.
  Status select(std::span<const std::int64_t> indices);

  // Drops the newest n rows. Errors: kOutOfRange for more than there are, and where queries would
  // then see what is gone. reaches(n): OK if it would find all that it needs.
  Status rewind(std::int64_t n);
  Status reaches(std::int64_t n) const;

  // Whether no row is let go from here on; false: those that may go, go.
  Status record(bool on);
  bool records() const noexcept { return records_; }
  // Whether there are rows that it lets go of.
  bool lets_go() const noexcept { return !options_.keeps_all(); }

  // The first position of which rows are there.
  std::int64_t first() const noexcept;

  void reset() noexcept;

  // A layer with the same rows, in the same pages until either side writes to them.
  Result<std::unique_ptr<PagedLayer>> fork();

  // --- Files (hf_files.cc). Whoever calls holds the turns of all layers. ---

  // The rows of each sequence, as CacheFile writes them; an open step ends. Errors: kOutOfMemory.
  Result<std::vector<std::vector<std::byte>>> to_bytes();
  // All layers of a model, of a batch of one text, as one sequence. Errors: those of CacheFile, and
  // kInvalidArgument for another batch.
  static Status save(std::span<PagedLayer* const> layers, const std::string& path,
                     const PrefixNamespace& space, std::span<const std::int32_t> tokens);
  // The rows of `files`, a sequence each, as the batch of layers without rows. Errors: those of
  // CacheFile::load, kInvalidArgument for layers with rows; all layers are then as before.
  static Status load(std::span<PagedLayer* const> layers, std::span<const CacheFile> files,
                     const PrefixNamespace& space);

  std::int64_t loaded_tokens() const noexcept { return loaded_; }
  void set_loaded(std::int64_t tokens) noexcept { loaded_ = tokens; }

  std::int64_t batch() const noexcept { return static_cast<std::int64_t>(seqs_.size()); }
  std::int64_t length() const noexcept { return now_.length; }
  Moment now() const noexcept { return now_; }
  const LayerSpec& spec() const noexcept { return spec_; }
  std::int64_t elements() const noexcept {  // of K and V, in all rows
    return batch() * length() * spec_.key().heads * (spec_.key().dim + spec_.value().dim);
  }
  PagedStats stats() const;             // of the pool, which forks share
  std::int64_t nbytes() const;          // likewise
  std::int64_t reserved_bytes() const;  // likewise

 private:
  struct Pool {
    std::mutex mutex;
    PagedCache cache;
    const std::int64_t pages;  // that it has room for
    Pool(PagedCache made, std::int64_t num_pages) : cache(std::move(made)), pages(num_pages) {}
  };

  // Pages of `batch` sequences of that length, and the most that max_tokens allows.
  std::int64_t pages_for(std::int64_t batch, std::int64_t length) const noexcept;
  std::int64_t most_pages() const noexcept;
  // A new pool of `pages`, or of `fewest` where there is no address space for so many.
  Status explained(const Status& status, const LayerSpec& spec, std::int64_t tokens) const;
  Result<std::shared_ptr<Pool>> new_pool(const LayerSpec& spec, std::int64_t pages,
                                         std::int64_t fewest) const;
  // Ends the open step, of which all tokens stay, or the first.
  Status settle(std::optional<std::int64_t> accepted = std::nullopt);
  // Pages that a layer of `batch` rows likely needs for `length` tokens, the newest in one step.
  std::int64_t pages_needed(std::int64_t batch, std::int64_t length,
                            std::int64_t tokens) const noexcept;
  // What all rows see, those of the open step too. REQUIRES: the pool is locked, and rows.
  Result<OwnedKvView> view() const;
  // Moves the rows to a larger pool, with room for that many more tokens a sequence. Errors:
  // kOutOfMemory; the rows then are where they were.
  Status grow(std::int64_t tokens);
  Status append_first(const TensorView& key, const TensorView& value);
  // The same in that pool, for rows of `spec`.
  Status append_first_to(const std::shared_ptr<Pool>& pool, const LayerSpec& spec,
                         const TensorView& key, const TensorView& value);
  void release(std::span<const SequenceId> seqs) noexcept;
  // That of rows with these heads and sizes here.
  LayerSpec spec_for(const LayerSpec& rows) const noexcept;

  PagedOptions options_;
  std::shared_ptr<Pool> pool_;
  LayerSpec spec_;
  std::vector<SequenceId> seqs_;          // [batch]; none before the first rows
  std::optional<PagedCache::Step> step_;  // open, of a layer whose rows do not stay as they are
  std::int64_t step_tokens_ = 0;          // of each row
  bool records_ = false;
  std::int64_t loaded_ = 0;  // the shortest that rows can be taken back to
  Moment now_;
  mutable std::recursive_mutex turn_;
};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_PAGED_H_
