// Cache: the keys and values of a batch, layer by layer. The interface of DynamicCache, StaticCache
// and FullCache, which differ in their bounds alone.
#ifndef KVCACHE_CACHE_H_
#define KVCACHE_CACHE_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/layer_handle.h"
#include "kvcache/memory.h"
#include "kvcache/row_format.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

struct CacheOptions {
  // Element type of the stored rows; default: that of the first update, K and V each its own.
  std::optional<DType> dtype;

  // Forms of coded rows, keys and values apart; plain ones by default. Their own dtype is not
  // looked at: `dtype` is that of the decoded copies which update() and get() hand out.
  RowFormat keys, values;

  // Axes of storage and of every tensor that goes in and comes out.
  Layout layout = Layout::kHND;

  // Dynamic caches: address space reserved per row of batch and head, in tokens. Longer rows move
  // to a reservation of twice the size without being copied.
  std::int64_t reserve_tokens = 131072;

  // Where rows live. Not owned; null: system_memory().
  MemoryResource* memory = nullptr;
};

// B: batch, H: num_kv_heads, T: new tokens, S: tokens so far, D: head_dim (K and V may differ).
// Shapes below are head-first; with Layout::kNHD they are [B, T, H, D].
//
// Every failing call leaves the cache as if it had not been made. Wrong shapes, dtypes and
// arguments are kInvalidArgument, indices beyond what there is kOutOfRange, memory kOutOfMemory.
//
// Tensors and views that come out are valid until the next change of the cache (retain() keeps
// them readable longer). Tensors that go in are copied and never written to.
//
// Thread safety: const calls may run together; changing calls are serialised by the caller.
class KVC_API Cache {
 public:
  virtual ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  // Stores `key` [B, H, T, Dk] and `value` [B, H, T, Dv], converted to the cache's dtype, and
  // returns all of the layer so far, [B, H, S, D], as views of the storage.
  //   cache_position undefined       append after the layer's length
  //   scalar                         one token, written at that row (T == 1)
  //   [T]                            token t of every batch row goes to row cache_position[t]
  //   [B, T]                         the same for each batch row by itself
  // Positions (kI32 or kI64) are row indices >= 0 in any order; the last of duplicates wins; the
  // length becomes max(length, largest + 1), and rows never written read as zeros.
  // T == 0 changes nothing and fixes no shape. Rows of this same layer are no input
  // (kInvalidArgument), nor are rows that a coded form cannot store: elements that are not finite
  // (fp8_e4m3 keeps NaN) or too large for a scale of 16 bits.
  //
  // Codes are no tensors. Of coded rows update() and get() hand out decoded copies, of the whole
  // layer each time, which copied_bytes() counts; append() and view() copy nothing.
  Result<KeyValueView> update(const TensorView& key, const TensorView& value,
                              std::int64_t layer_idx = 0, const TensorView& cache_position = {},
                              const ExecContext& context = {});

  // update() without positions, that hands nothing out.
  Status append(const TensorView& key, const TensorView& value, std::int64_t layer_idx = 0,
                const ExecContext& context = {});

  // The filled rows of a layer; undefined tensors for one never populated.
  Result<KeyValueView> get(std::int64_t layer_idx) const;

  // The filled rows of a layer for attention, in place: one sequence per batch row, one part.
  // Errors: kNotFound for a layer never populated.
  Result<OwnedKvView> view(std::int64_t layer_idx) const;

  // Tokens stored; 0 for an empty layer. Errors: kOutOfRange outside a static cache's layers.
  Result<std::int64_t> seq_length(std::int64_t layer_idx = 0) const;

  // The position that the next token is rotated with: first_position + length, where crop() has
  // raised first_position by the tokens it dropped.
  Result<std::int64_t> next_position(std::int64_t layer_idx = 0) const;

  // Tokens a layer can hold; none for a dynamic cache.
  std::optional<std::int64_t> max_length() const noexcept;

  // Layers that exist: those seen so far, or those of a static cache.
  std::int64_t num_layers() const noexcept;

  Layout layout() const noexcept;

  // One layer for use inside an attention layer: update_and_fetch, offset, key_values, rewind.
  LayerHandle layer(std::int64_t layer_idx) noexcept { return {this, layer_idx}; }

  // Gathers batch rows: row i becomes what row indices[i] was, in every populated layer, and the
  // batch size becomes the number of indices (repeats and shrinking allowed). `indices` is 1-D,
  // kI32 or kI64. Errors: kOutOfRange for an index outside the batch, kInvalidArgument for none.
  Status batch_select(const TensorView& indices, const ExecContext& context = {});

  // batch_select under the name that beam search knows it by.
  Status reorder(const TensorView& beam_idx, const ExecContext& context = {}) {
    return batch_select(beam_idx, context);
  }

  // Rows a, b become a, a, b, b for n = 2. Errors: kInvalidArgument for n < 1.
  Status batch_repeat_interleave(std::int64_t n, const ExecContext& context = {});

  // Keeps the most recent n tokens of each layer. Errors: kInvalidArgument for n < 0.
  Status crop(std::int64_t n, const ExecContext& context = {});

  // Keeps the first n tokens of each layer. Errors: kInvalidArgument for n < 0.
  Status truncate(std::int64_t n);

  // Drops the newest n tokens of each populated layer. Errors: kOutOfRange if the shortest
  // populated layer is shorter than n, kInvalidArgument for n < 0.
  Status rewind(std::int64_t n);

  // Every length becomes 0, and the next update may have any shape. Memory is kept for one of the
  // same shape, and given back before one of another.
  void reset() noexcept;

  // Gives back to the memory resource what no stored row needs.
  void shrink() noexcept;

  // Bytes of the rows stored: length x bytes of a row, over layers, batch and heads.
  std::int64_t nbytes() const noexcept;

  // Bytes held for them: committed memory, rounding included; a static cache's whole capacity.
  // Decoded copies that were handed out are not among them.
  std::int64_t reserved_bytes() const noexcept;

  // Bytes of old rows that had to be copied since construction: by growth (0 where pages can be
  // moved), crop, batch_select and batch_repeat_interleave; and those of decoded copies.
  std::int64_t copied_bytes() const noexcept;

  // Rows that were encoded since construction, K and V of each layer and batch row apart: each one
  // that was given, once. Crop, reorder and clones move codes.
  std::int64_t rows_encoded() const noexcept;

  // Keeps the memory behind the layer's tensors mapped for as long as the result lives; after a
  // change of the cache its contents are unspecified, but reading them is not a fault.
  Result<std::shared_ptr<const void>> retain(std::int64_t layer_idx) const;

 protected:
  struct Impl;
  explicit Cache(std::unique_ptr<Impl> impl) noexcept;
  Cache(Cache&&) noexcept;
  Cache& operator=(Cache&&) noexcept;

 private:
  friend class DynamicCache;
  friend class StaticCache;
  friend class FullCache;
  friend class LayerHandle;
  friend class CacheFile;
  friend class BatchingCache;  // takes over the storage of a prefilled request

  Result<KeyValueView> store(const TensorView& key, const TensorView& value, std::int64_t layer_idx,
                             const TensorView& cache_position, bool hand_out,
                             const ExecContext& context);
  Status rewind_layer(std::int64_t layer_idx, std::int64_t n);

  std::unique_ptr<Impl> impl_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_CACHE_H_
