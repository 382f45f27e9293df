// LayeredStorage: the contiguous layers of one cache, and the operations on all of them, each one
// transaction: what may fail is done for every layer before any row or length changes.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_STORAGE_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_STORAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/contiguous/layer.h"
#include "kvcache/executor.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"

namespace kvcache::internal {

// Layers of one cache: bounds what a wrong index may allocate.
inline constexpr std::int64_t kMaxLayers = 1 << 16;

struct StorageOptions {
  std::optional<DType> dtype;  // default: that of the first update
  RowFormat keys, values;      // their dtype: of `dtype`, or of the first update
  Layout layout = Layout::kHND;
  std::int64_t fixed_capacity = 0;  // tokens a layer holds; 0: grows
  std::int64_t reserve_tokens = 1;
  MemoryResource* memory = nullptr;
};

// The rows that new tokens go to.
struct RowTargets {
  enum Kind { kAppend, kShared, kPerBatchRow };
  Kind kind = kAppend;
  // kShared: [T], the same for all batch rows; kPerBatchRow: [B, T]. Each >= 0.
  const std::int64_t* rows = nullptr;
  std::int64_t max_row = -1;  // the largest of them
};

class LayeredStorage {
 public:
  // `num_layers` unpopulated layers; more appear by update(). May throw bad_alloc.
  LayeredStorage(const StorageOptions& options, std::int64_t num_layers)
      : options_(options), layers_(static_cast<std::size_t>(num_layers)) {}

  const StorageOptions& options() const noexcept { return options_; }
  std::int64_t num_layers() const noexcept { return static_cast<std::int64_t>(layers_.size()); }
  std::int64_t copied_bytes() const noexcept { return copied_bytes_; }
  // Rows of all heads that were encoded, K and V of each layer and batch row apart.
  std::int64_t rows_encoded() const noexcept { return rows_encoded_; }
  bool is_coded() const noexcept { return options_.keys.is_coded() || options_.values.is_coded(); }

  // What a layer without rows becomes by these, already checked.
  LayerShape shape_of(const TensorView& key, const TensorView& value) const noexcept;

  // Whether the forms can store these rows. Errors: kInvalidArgument naming batch row and token.
  // May throw bad_alloc.
  Status check_codes(const TensorView& key, const TensorView& value,
                     const ExecContext& context) const;

  // A layer that rows were stored in, else null. REQUIRES: layer >= 0.
  const ContiguousLayer* find(std::int64_t layer) const noexcept;

  // The rows that a layer has after `count` tokens went to `targets`. kOutOfRange from a caller's
  // point of view is the caller's to check; saturates instead of wrapping.
  std::int64_t length_after(std::int64_t layer, std::int64_t count,
                            const RowTargets& targets) const noexcept;

  // Stores key and value, already checked: rank 4, floating, agreeing with each other and with the
  // layer's shape, at least one token, within a fixed capacity, and check_codes(). May throw
  // bad_alloc, unchanged.
  Status update(std::int64_t layer, const TensorView& key, const TensorView& value,
                const RowTargets& targets, const ExecContext& context);

  // --- The halves of an append, for callers that append to several caches in one transaction. ---

  // Room for rows 0 .. `length` of a layer, which takes `shape` if it has none.
  // Errors: kOutOfMemory. May throw bad_alloc, unchanged.
  Status make_room(std::int64_t layer, const LayerShape& shape, std::int64_t length);

  // Stores key and value behind the layer's rows. REQUIRES: room for them.
  void append(std::int64_t layer, const TensorView& key, const TensorView& value,
              const ExecContext& context) noexcept;

  // What a layer holds now; take_back() undoes what the two calls above did to it since.
  ContiguousLayer::Mark mark(std::int64_t layer) const noexcept;
  void take_back(std::int64_t layer, const ContiguousLayer::Mark& mark) noexcept;

  // A new batch in every populated layer. REQUIRES: sources within every layer's batch.
  // Errors: kOutOfMemory. May throw bad_alloc, unchanged.
  // For a repeat, gather.count is ignored and follows from each layer's batch.
  Status gather_batch(const BatchGather& gather, const ExecContext& context);

  void crop(std::int64_t n, const ExecContext& context) noexcept;
  void truncate(std::int64_t n) noexcept;
  void rewind(std::int64_t n) noexcept;  // REQUIRES: n <= shortest_length()
  // Of a populated layer. REQUIRES: length <= its length.
  void set_length(std::int64_t layer, std::int64_t length) noexcept {
    layers_[static_cast<std::size_t>(layer)].set_length(length);
  }
  void reset() noexcept;
  void shrink() noexcept;

  // For rows that were stored elsewhere: length of a layer whose rows were put into their room and
  // position of the first, and the layers of another in the place of all.
  void set_rows(std::int64_t layer, std::int64_t length, std::int64_t first_position) noexcept {
    layers_[static_cast<std::size_t>(layer)].set_length(length);
    layers_[static_cast<std::size_t>(layer)].set_first_position(first_position);
  }
  void take_rows(LayeredStorage&& other) noexcept { layers_ = std::move(other.layers_); }

  // Of the shortest populated layer; 0 if there is none.
  std::int64_t shortest_length() const noexcept;

  std::int64_t stored_bytes() const noexcept;
  std::int64_t committed_bytes() const noexcept;

  // A copy of all rows in memory of its own. May throw bad_alloc.
  Result<std::unique_ptr<LayeredStorage>> clone(const ExecContext& context) const;

 private:
  Placement placement(std::int64_t address_in_use) const noexcept;
  std::int64_t address_in_use() const noexcept;
  void write(ContiguousLayer* layer, const TensorView& key, const TensorView& value,
             const RowTargets& targets, const ExecContext& context) noexcept;
  Result<std::vector<ContiguousLayer>> prepare(const BatchGather& gather) const;

  StorageOptions options_;
  std::vector<ContiguousLayer> layers_;
  std::int64_t copied_bytes_ = 0;
  std::int64_t rows_encoded_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_STORAGE_H_
