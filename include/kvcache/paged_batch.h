// PagedBatch: a batch that goes forward together. Its rows are sequences of one PagedCache.
//
//   begin -> write each layer -> attend over view(layer) -> commit       counts may differ by row
//   update each layer, attend over view(layer)                           a host that announces no
//   step
#ifndef KVCACHE_PAGED_BATCH_H_
#define KVCACHE_PAGED_BATCH_H_

#include <cstdint>
#include <memory>
#include <span>

#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// B: rows of the batch, H: num_kv_heads, T: new tokens, S: tokens so far, D: head_dim. Shapes are
// head-first; over a cache of Layout::kNHD they are [B, T, H, D].
//
// Every failing call leaves the batch as if it had not been made, but that one which is refused for
// want of room or memory has ended the forward pass of update() before it, as one that succeeds
// does: what layers drop at its end is dropped. A row or layer that does not exist is kOutOfRange,
// wrong shapes and types are kInvalidArgument, and what the cache reports (kRetryLater, kNeverFits,
// kOutOfMemory) is passed on. While a step that begin() opened is open, calls that change rows are
// kInvalidArgument.
//
// Batches may share a cache, and forks share pages. REQUIRES: rows are changed through their batch
// alone, and the cache is not moved from while a batch has rows.
//
// Thread safety: that of the cache, over all its batches: const calls may run together, changing
// calls are serialised by the caller; attention over views that are valid may run beside any call.
class KVC_API PagedBatch final {
 public:
  // `num_rows` empty rows. Errors: kInvalidArgument for no cache or num_rows < 0.
  static Result<PagedBatch> create(std::shared_ptr<PagedCache> cache, std::int64_t num_rows = 0);

  PagedBatch(PagedBatch&&) noexcept;
  PagedBatch& operator=(PagedBatch&&) noexcept;
  ~PagedBatch();  // rolls an open step back and releases the rows

  // ---- A step by name ----

  // Room for counts[b] >= 0 new tokens of row b, [B], in every layer, or nothing at all. `tokens`:
  // their ids, packed, for prefix reuse; or none. Errors: those of PagedCache::reserve.
  Status begin(std::span<const std::int64_t> counts, std::span<const std::int32_t> tokens = {});

  // Stores the step's rows of one layer: packed [num_new_tokens(), H, D], rows of the batch in
  // order; or [B, H, T, D] where every row brings T tokens. May be repeated; the last one counts.
  Status write(std::int64_t layer, const TensorView& key, const TensorView& value,
               const ExecContext& context = {});

  // Keeps the first accepted[b] new tokens of row b (none given: all) and ends the step; or takes
  // all of it back. Both also end a step that update() opened. Errors: kInvalidArgument without a
  // step, for a layer not written and for counts outside 0 .. counts[b]; the step then stays open.
  Status commit(std::span<const std::int64_t> accepted = {});
  Status rollback();

  // ---- A step that nobody announces ----

  // Appends key [B, H, T, Dk] and value [B, H, T, Dv] to one layer. The first layer of a forward
  // pass reserves room in all of them; the last commits. A batch without rows gets B of them.
  // T == 0 changes nothing.
  //
  // The forward pass ends when the last layer is written that holds all tokens so far, when a
  // layer is written that it has written already, or before whatever else changes the batch. A
  // layer that it did not write is left out: it holds what it held (seq_length), and is written
  // again once the batch is back there (truncate, rewind). So a forward pass that died is taken
  // back by rewind(T), or by rollback() before the next.
  // Where layers drop rows, rollback() takes back one that wrote all layers too: it is open still.
  //
  // Where layers drop rows (Life), rows go when the forward pass ends, and the last layer's queries
  // are yet to see them: its step stays open until the next call that changes the batch.
  // rewind and truncate before that need no rewind_tokens for what they take of its tokens. So it
  // is where CacheConfig::residual_tokens leaves rows plain until the step ends. Errors:
  // kInvalidArgument for a layer that is left out, and for another T than the forward's.
  Status update(std::int64_t layer, const TensorView& key, const TensorView& value,
                const ExecContext& context = {});

  // ---- What there is ----

  // One layer of all rows, in their order: what is committed, and the open step's tokens. Valid
  // until the step ends or a row changes. Errors: kInvalidArgument for a layer that the open step
  // has not written, or that is left out.
  Result<OwnedKvView> view(std::int64_t layer) const;

  // Copies the rows of view(layer) that are held to dense tensors of the caller, the sinks first,
  // key [B, H, S, Dk] and value [B, H, S, Dv], converting to their dtypes. S is rows_held, the
  // length where nothing was dropped. Errors: kInvalidArgument where rows differ in S, and those of
  // view.
  Status gather(std::int64_t layer, const MutableTensorView& key, const MutableTensorView& value,
                const ExecContext& context = {}) const;

  // Tokens of a row, and the position that its next one is rotated with: what is committed, and
  // what update() has written to this layer since.
  Result<std::int64_t> seq_length(std::int64_t row, std::int64_t layer = 0) const;
  Result<std::int64_t> next_position(std::int64_t row, std::int64_t layer = 0) const;

  // The position of the oldest token that the layer holds of a row beside the sinks, and how many
  // view(layer) shows. Errors: those of view.
  Result<std::int64_t> first_position(std::int64_t row, std::int64_t layer = 0) const;
  Result<std::int64_t> rows_held(std::int64_t row, std::int64_t layer = 0) const;

  std::int64_t num_rows() const noexcept;
  bool step_open() const noexcept;
  std::int64_t num_new_tokens() const noexcept;  // of the open step, over all rows; 0 without one

  // [B + 1]: new tokens of row b are qo_indptr[b] .. qo_indptr[b + 1] of the packed ones, as
  // attention takes them; empty without a step. Valid until the step ends.
  std::span<const std::int32_t> qo_indptr() const noexcept;

  // The rows' sequences, for tables and questions. Valid until a row changes.
  std::span<const SequenceId> sequences() const noexcept;
  const std::shared_ptr<PagedCache>& cache() const noexcept;

  // ---- Rows ----

  // `count` empty rows after the others. Errors: kInvalidArgument for count < 0.
  Status add(std::int64_t count = 1);

  // Row `row` becomes `seq`, a sequence of the same cache with the tokens it has
  // (PrefixCache::open, PagedCache::fork), which is the batch's from here on; what the row was goes
  // back. Errors: kOutOfRange for the row, kNotFound for a sequence that is not there,
  // kInvalidArgument for one that is a row already. REQUIRES: no other batch and no open step has
  // it.
  Status replace(std::int64_t row, SequenceId seq);

  // Gives one row's pages back; the rows after it move up. All of them, an open step included.
  Status release(std::int64_t row);
  void reset() noexcept;

  // Row i becomes what row indices[i] was; there are as many rows as indices, [n] kI32 or kI64.
  // References move, no token row is copied: a tail page that is shared afterwards is copied by
  // the next step that writes to it. reorder: as many as there are rows. repeat: rows a, b become
  // a, a, b, b for n = 2. Errors: kInvalidArgument for no indices and n < 1.
  Status select(const TensorView& indices);
  Status reorder(const TensorView& beam_idx);
  Status repeat(std::int64_t n);

  // A batch of the same rows, in the same pages until either side writes to them.
  Result<PagedBatch> fork();

  // Drops the newest n tokens of every row, or counts[b] of row b (kOutOfRange beyond its length) /
  // keeps the first n of every row (shorter rows are left alone). Errors: those of
  // PagedCache::truncate; no row has changed then.
  Status rewind(std::int64_t n);
  Status rewind(std::span<const std::int64_t> counts);
  Status truncate(std::int64_t n);

 private:
  struct Impl;
  explicit PagedBatch(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_PAGED_BATCH_H_
