#include "runner/model/batching_store.h"

#include <algorithm>
#include <string>
#include <utility>

#include "runner/model/view_store.h"

namespace kvcache::runner {
namespace {

// Packed rows of the occupied slots, spread over all slots in `buffer`; rows of idle slots hold
// anything. Returns them as a tensor [slots * new_tokens, heads, head_dim].
TensorView spread(const BatchingStore& store, const TensorView& packed, std::int64_t new_tokens,
                  std::vector<float>& buffer) {
  const std::int64_t row = packed.shape[1] * packed.shape[2];
  const std::int64_t slots = store.num_sequences();
  buffer.resize(static_cast<std::size_t>(slots * new_tokens * row));
  const auto* from = static_cast<const float*>(packed.data);
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    if (!store.occupied(slot)) continue;
    std::copy_n(from, new_tokens * row, buffer.data() + slot * new_tokens * row);
    from += new_tokens * row;
  }
  return TensorView(buffer.data(), DType::kF32,
                    {slots * new_tokens, packed.shape[1], packed.shape[2]});
}

Status unsupported() {
  return Status(StatusCode::kUnsupported,
                "beams: found a running batch, expected a dynamic, static or paged cache");
}

}  // namespace

Result<std::unique_ptr<BatchingStore>> BatchingStore::create(const ModelConfig& config,
                                                             const KvStoreOptions& options,
                                                             std::int64_t slots) {
  BatchingOptions batching;
  batching.num_layers = config.num_layers;
  batching.max_seq_len = config.max_position_embeddings;
  batching.layout = options.layout;
  batching.dtype = options.dtype;
  batching.memory = options.memory;
  KVC_ASSIGN_OR_RETURN(BatchingCache cache, BatchingCache::create(slots, batching));
  return std::make_unique<BatchingStore>(std::move(cache), config.num_layers, options.layout);
}

Status BatchingStore::begin(std::span<const std::int64_t> counts) {
  std::int64_t new_tokens = 0;
  for (const std::int64_t count : counts) new_tokens = std::max(new_tokens, count);
  for (std::size_t slot = 0; slot < counts.size(); ++slot) {
    const bool used = occupied(static_cast<std::int64_t>(slot));
    if (counts[slot] == (used ? new_tokens : 0)) continue;
    return Status(StatusCode::kInvalidArgument,
                  "counts: found " + std::to_string(counts[slot]) + " for " +
                      (used ? "occupied" : "idle") + " slot " + std::to_string(slot) +
                      ", expected " + std::to_string(used ? new_tokens : 0));
  }
  new_tokens_ = new_tokens;
  lengths_.resize(counts.size());
  for (std::size_t slot = 0; slot < counts.size(); ++slot) {
    lengths_[slot] = length(static_cast<std::int64_t>(slot));
  }
  rows_read_before_ = cache_.stats().rows_read;
  return {};
}

Status BatchingStore::attend(std::int64_t layer, const AttentionInputs& inputs,
                             const MutableTensorView& out, const AttentionOptions& options,
                             const ExecContext& context) {
  const std::int64_t slots = num_sequences();
  const TensorView q = as_batch(spread(*this, inputs.q, new_tokens_, q_), slots, layout_);
  const TensorView k = as_batch(spread(*this, inputs.k, new_tokens_, k_), slots, layout_);
  const TensorView v = as_batch(spread(*this, inputs.v, new_tokens_, v_), slots, layout_);
  out_.resize(q_.size());
  // The same axes as q, over memory of its own.
  MutableTensorView attended;
  attended.data = out_.data();
  attended.rank = q.rank;
  std::copy_n(q.shape, kMaxRank, attended.shape);
  std::copy_n(q.strides, kMaxRank, attended.strides);
  KVC_RETURN_IF_ERROR(cache_.attend(q, k, v, attended, layer, options, context));

  const std::int64_t rows = new_tokens_ * out.shape[1] * out.shape[2];
  auto* to = static_cast<float*>(out.data);
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    if (!occupied(slot)) continue;
    std::copy_n(out_.data() + slot * rows, rows, to);
    to += rows;
  }
  return {};
}

Status BatchingStore::end() { return {}; }

void BatchingStore::abandon() noexcept {
  for (std::size_t slot = 0; slot < lengths_.size(); ++slot) {
    const auto id = static_cast<std::int64_t>(slot);
    if (!occupied(id)) continue;
    // Of a slot that is occupied, and to a length it had: it cannot fail.
    [[maybe_unused]] const Status status = cache_.truncate(id, lengths_[slot]);
  }
}

std::int64_t BatchingStore::length(std::int64_t sequence) const {
  const auto length = cache_.seq_length(sequence);
  return length.ok() ? *length : 0;
}

std::int64_t BatchingStore::next_position(std::int64_t sequence) const {
  const auto position = cache_.next_position(sequence);
  return position.ok() ? *position : 0;
}

KvUsage BatchingStore::usage() const {
  KvUsage usage;
  usage.nbytes = cache_.nbytes();
  usage.reserved_bytes = cache_.reserved_bytes();
  usage.copied_bytes = cache_.stats().copied_bytes;
  return usage;
}

Status BatchingStore::repeat(std::int64_t, const ExecContext&) { return unsupported(); }
Status BatchingStore::reorder(std::span<const std::int64_t>, const ExecContext&) {
  return unsupported();
}

}  // namespace kvcache::runner
