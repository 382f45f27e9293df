// The state of a batch that goes forward together, over the public calls of PagedCache alone: rows,
// the open step, and layers that forward passes have left out.
#ifndef KVCACHE_SRC_BATCH_STATE_H_
#define KVCACHE_SRC_BATCH_STATE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

// What a layer's rows look like.
struct BatchLayer {
  std::int64_t heads = 0, k_dim = 0, v_dim = 0;
};

// Calls that return Status or Result may throw bad_alloc; every failing call changes nothing,
// but that one which settles may fail after that: the step of update() before it is committed then.
struct BatchState {
  struct Open {
    PagedCache::Step step;
    bool announced = false;               // by begin()
    std::vector<std::int64_t> counts;     // [B]
    std::vector<std::int32_t> qo_indptr;  // [B + 1]
    std::vector<unsigned char> written;   // [num_layers]
    std::int64_t missing = 0;             // layers that hold all tokens and are not written yet

    // New tokens of every row; none where they differ.
    std::optional<std::int64_t> equal_count() const {
      if (counts.empty()) return 0;
      const bool equal = std::all_of(counts.begin(), counts.end(), [this](std::int64_t count) {
        return count == counts.front();
      });
      return equal ? std::optional(counts.front()) : std::nullopt;
    }
  };

  std::shared_ptr<PagedCache> cache;
  std::shared_ptr<const std::vector<BatchLayer>> layers;
  bool drops_rows = false;  // a layer of the cache does not keep all, or not as they were written
  std::vector<SequenceId> rows;
  std::vector<std::int64_t> lengths;             // [B] committed tokens
  std::vector<std::vector<std::int64_t>> holds;  // [num_layers][B] tokens of a layer that is left
                                                 // out; nothing for one that holds all
  std::optional<Open> open;

  std::int64_t num_rows() const { return static_cast<std::int64_t>(rows.size()); }
  std::int64_t num_layers() const { return static_cast<std::int64_t>(layers->size()); }
  bool left_out(std::int64_t layer) const {
    return !holds[static_cast<std::size_t>(layer)].empty();
  }

  Status check_layer(std::int64_t layer) const;
  Status check_not_left_out(std::int64_t layer) const;

  // --- Steps. ---

  // What reserve() refuses whatever room there is, to be asked before settle().
  Status check_counts(std::span<const std::int64_t> counts,
                      std::span<const std::int32_t> tokens) const;
  // Room for new tokens of `seqs`, [seqs.size()]; the step is not the open one yet. REQUIRES:
  // check_counts.
  Result<Open> reserve(std::span<const std::int64_t> counts, std::span<const std::int32_t> tokens,
                       std::span<const SequenceId> seqs, bool announced) const;
  // REQUIRES: check_layer and check_not_left_out.
  Status write(Open& step, std::int64_t layer, const TensorView& key, const TensorView& value,
               const ExecContext& context) const;
  Status commit(std::span<const std::int64_t> accepted);
  // PagedBatch::update for rows that fit the layer, at least one token each.
  Status update(std::int64_t layer, const TensorView& key, const TensorView& value,
                const ExecContext& context);
  // Ends a step that update() opened, of which `last` was written just now; rows keep the first
  // accepted[b] of its tokens (none given: all).
  Status close(std::int64_t last = -1, std::span<const std::int64_t> accepted = {});
  // Before rows change. Errors: kInvalidArgument for a step that begin() opened.
  Status settle();

  // --- Rows. ---
  Status open_rows(std::int64_t count, std::vector<SequenceId>* opened) const;
  void release_all(std::span<const SequenceId> seqs) const noexcept;
  Status select(std::span<const std::int64_t> indices);
  // Tokens of a row, those of a step that update() opened included.
  std::int64_t all_tokens(std::size_t row) const noexcept {
    const bool more = open.has_value() && !open->announced;
    return lengths[row] + (more ? open->counts[row] : 0);
  }
  // Row b keeps its first to[b] tokens, all rows or none. Such a step ends with what is left of it.
  // REQUIRES: to[b] <= all_tokens(b).
  Status shorten(std::span<const std::int64_t> to);
  // Layers that hold all tokens again are no longer left out.
  void revive() noexcept;
  void reset() noexcept;

  // --- What there is. ---
  Result<OwnedKvView> view(std::int64_t layer) const;
  // Copies what view(layer) shows of each row. REQUIRES: it was asked for, and tensors that fit it.
  Status gather(std::int64_t layer, const MutableTensorView& key, const MutableTensorView& value,
                const ExecContext& context) const;
  std::int64_t length(std::int64_t row, std::int64_t layer) const noexcept;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BATCH_STATE_H_
