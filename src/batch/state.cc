#include "batch/state.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/expect.h"
#include "batch/rows.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

}  // namespace

Status BatchState::check_layer(std::int64_t layer) const {
  return expect_index("layer", layer, num_layers());
}

Status BatchState::check_not_left_out(std::int64_t layer) const {
  if (!left_out(layer)) return {};
  const std::vector<std::int64_t>& held = holds[at(layer)];
  std::size_t row = 0;
  while (held[row] == lengths[row]) ++row;
  return refusal("layer " + std::to_string(layer),
                 std::to_string(held[row]) + " of " + std::to_string(lengths[row]) + " tokens",
                 "all: a forward pass left it out, and rewinding to them brings it back");
}

// --- Steps. ---

Status BatchState::check_counts(std::span<const std::int64_t> counts,
                                std::span<const std::int32_t> tokens) const {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const std::int64_t most = std::numeric_limits<std::int32_t>::max() - sum;
    if (counts[i] < 0 || counts[i] > most) {
      return refusal("counts[" + std::to_string(i) + "]", counts[i],
                     "0 .. " + std::to_string(most));
    }
    sum += counts[i];
  }
  if (!tokens.empty() && static_cast<std::int64_t>(tokens.size()) != sum) {
    return refusal("tokens", tokens.size(), "none or " + std::to_string(sum));
  }
  return {};
}

Result<BatchState::Open> BatchState::reserve(std::span<const std::int64_t> counts,
                                             std::span<const std::int32_t> tokens,
                                             std::span<const SequenceId> seqs,
                                             bool announced) const {
  std::vector<Append> appends(seqs.size());
  std::vector<std::int32_t> indptr{0};
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    appends[i].seq = seqs[i];
    appends[i].count = counts[i];
    sum += counts[i];
    indptr.push_back(static_cast<std::int32_t>(sum));
  }
  if (!tokens.empty()) {
    for (std::size_t i = 0; i < seqs.size(); ++i) {
      appends[i].tokens = tokens.subspan(at(indptr[i]), at(counts[i]));
    }
  }
  std::vector<unsigned char> written(layers->size(), 0);
  std::vector<std::int64_t> kept(counts.begin(), counts.end());
  KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache->reserve(appends));
  Open opened{std::move(step),   announced,          std::move(kept),
              std::move(indptr), std::move(written), 0};
  for (std::int64_t layer = 0; layer < num_layers(); ++layer) opened.missing += !left_out(layer);
  return opened;
}

Status BatchState::write(Open& step, std::int64_t layer, const TensorView& key,
                         const TensorView& value, const ExecContext& context) const {
  TensorView k = key;
  TensorView v = value;
  std::vector<std::byte> key_copy, value_copy;
  if (key.rank == 4) {
    const auto count = step.equal_count();
    if (!count.has_value()) {
      return refusal("key", "rank 4 in a step whose rows bring different counts",
                     "[num_new_tokens, num_kv_heads, head_dim]");
    }
    const BatchLayer& shape = (*layers)[at(layer)];
    const auto batch = static_cast<std::int64_t>(step.counts.size());
    const Layout layout = cache->layout();
    KVC_RETURN_IF_ERROR(
        expect_kv("key", key, layout, KvExtents{batch, shape.heads, *count, shape.k_dim}));
    KVC_RETURN_IF_ERROR(
        expect_kv("value", value, layout, KvExtents{batch, shape.heads, *count, shape.v_dim}));
    k = packed_rows(key, layout, key_copy);
    v = packed_rows(value, layout, value_copy);
  }
  return cache->write(step.step, layer, k, v, context);
}

Status BatchState::commit(std::span<const std::int64_t> accepted) {
  KVC_RETURN_IF_ERROR(cache->commit(open->step, accepted));
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    lengths[row] += accepted.empty() ? open->counts[row] : accepted[row];
  }
  open.reset();
  revive();
  return {};
}

Status BatchState::update(std::int64_t layer, const TensorView& key, const TensorView& value,
                          const ExecContext& context) {
  const KvExtents given = kv_extents(key, cache->layout());
  // A batch that had no rows has none after a failure either.
  struct Undo {
    BatchState* state;
    ~Undo() {
      if (state != nullptr) state->reset();
    }
  } undo{rows.empty() ? this : nullptr};
  if (open.has_value() && open->written[at(layer)] == 0) {
    if (given.length != open->counts.front()) {
      return refusal("key", std::to_string(given.length) + " tokens",
                     "the " + std::to_string(open->counts.front()) + " of this forward pass");
    }
    KVC_RETURN_IF_ERROR(write(*open, layer, key, value, context));
  } else {
    const std::vector<std::int64_t> counts(at(given.batch), given.length);
    KVC_RETURN_IF_ERROR(check_counts(counts, {}));
    KVC_RETURN_IF_ERROR(settle());
    if (rows.empty()) {
      lengths.assign(at(given.batch), 0);
      KVC_RETURN_IF_ERROR(open_rows(given.batch, &rows));
    }
    KVC_ASSIGN_OR_RETURN(Open begun, reserve(counts, {}, rows, false));
    KVC_RETURN_IF_ERROR(write(begun, layer, key, value, context));
    open.emplace(std::move(begun));
  }
  // Where layers drop rows at commit, the last one's queries are yet to see theirs.
  if (open->missing == 1 && !drops_rows) {
    KVC_RETURN_IF_ERROR(close(layer));
  } else {
    --open->missing;
    open->written[at(layer)] = 1;
  }
  undo.state = nullptr;
  return {};
}

// What the step did not write is left out from here on, and holds zeros that nobody is shown.
Status BatchState::close(std::int64_t last, std::span<const std::int64_t> accepted) {
  static constexpr float kZero = 0;
  std::vector<std::vector<std::int64_t>> after = holds;
  for (std::int64_t layer = 0; layer < num_layers(); ++layer) {
    if (open->written[at(layer)] != 0 || layer == last) continue;
    if (after[at(layer)].empty()) after[at(layer)] = lengths;
    const BatchLayer& shape = (*layers)[at(layer)];
    TensorView zeros(&kZero, DType::kF32, {open->step.num_new_tokens(), shape.heads, shape.k_dim});
    std::fill_n(zeros.strides, kMaxRank, 0);
    TensorView v_zeros = zeros;
    v_zeros.shape[2] = shape.v_dim;
    KVC_RETURN_IF_ERROR(cache->write(open->step, layer, zeros, v_zeros));
  }
  KVC_RETURN_IF_ERROR(cache->commit(open->step, accepted));
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    lengths[row] += accepted.empty() ? open->counts[row] : accepted[row];
  }
  holds = std::move(after);
  open.reset();
  return {};
}

Status BatchState::settle() {
  if (!open.has_value()) return {};
  if (!open->announced) return close();
  return refusal("batch", "an open step", "it committed or rolled back");
}

// --- Rows. ---

void BatchState::revive() noexcept {
  for (std::vector<std::int64_t>& held : holds) {
    if (held == lengths) held.clear();
  }
}

Status BatchState::open_rows(std::int64_t count, std::vector<SequenceId>* opened) const {
  opened->reserve(at(count));
  for (std::int64_t i = 0; i < count; ++i) {
    const Result<SequenceId> seq = cache->open();
    if (!seq.ok()) {
      release_all(*opened);
      opened->clear();
      return seq.status();
    }
    opened->push_back(*seq);
  }
  return {};
}

void BatchState::release_all(std::span<const SequenceId> seqs) const noexcept {
  for (const SequenceId seq : seqs) {
    [[maybe_unused]] const Status status = cache->release(seq);  // of ours: it cannot fail
  }
}

void BatchState::reset() noexcept {
  open.reset();
  release_all(rows);
  rows.clear();
  lengths.clear();
  for (std::vector<std::int64_t>& held : holds) held.clear();
}

// The first to name a row keeps its sequence; rows that nobody names become further copies, as far
// as they go, and forks the rest.
Status BatchState::select(std::span<const std::int64_t> indices) {
  if (indices.empty()) return refusal("indices", "none", "at least one");
  for (const std::int64_t index : indices) {
    KVC_RETURN_IF_ERROR(expect_index("indices", index, num_rows()));
  }
  KVC_RETURN_IF_ERROR(settle());
  std::vector<SequenceId> next(indices.size());
  std::vector<std::int64_t> next_lengths(indices.size());
  std::vector<unsigned char> named(rows.size(), 0);
  std::vector<std::size_t> copies;  // places that still need a sequence
  for (std::size_t i = 0; i < indices.size(); ++i) {
    const std::size_t from = at(indices[i]);
    next_lengths[i] = lengths[from];
    if (named[from] == 0) {
      next[i] = rows[from];
    } else {
      copies.push_back(i);
    }
    named[from] = 1;
  }
  std::vector<std::vector<std::int64_t>> next_holds(holds.size());
  for (std::size_t layer = 0; layer < holds.size(); ++layer) {
    if (holds[layer].empty()) continue;
    for (const std::int64_t index : indices) next_holds[layer].push_back(holds[layer][at(index)]);
  }
  std::vector<std::int64_t> sources(rows.size());
  std::vector<SequenceId> unused, forks;
  bool moved = false;
  std::size_t done = 0;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    sources[row] = static_cast<std::int64_t>(row);
    if (named[row] != 0) continue;
    if (done == copies.size()) {
      unused.push_back(rows[row]);
      continue;
    }
    sources[row] = indices[copies[done]];
    next[copies[done++]] = rows[row];
    moved = true;
  }
  forks.reserve(copies.size() - done);
  for (; done < copies.size(); ++done) {
    const std::size_t from = at(indices[copies[done]]);
    const Result<SequenceId> fork = cache->fork(rows[from], lengths[from]);
    if (!fork.ok()) {
      release_all(forks);
      return fork.status();
    }
    forks.push_back(*fork);
    next[copies[done]] = *fork;
  }
  if (moved) {
    const Status status =
        cache->reorder(rows, TensorView(sources.data(), DType::kI64, {num_rows()}));
    if (!status.ok()) {
      release_all(forks);
      return status;
    }
  }
  release_all(unused);
  rows = std::move(next);
  lengths = std::move(next_lengths);
  holds = std::move(next_holds);
  revive();
  return {};
}

Status BatchState::shorten(std::span<const std::int64_t> to) {
  if (open.has_value() && open->announced) return settle();
  for (std::size_t row = 0; row < rows.size(); ++row) {
    if (to[row] < lengths[row]) KVC_RETURN_IF_ERROR(cache->reaches(rows[row], to[row]));
  }
  if (open.has_value()) {
    std::vector<std::int64_t> accepted(rows.size());
    for (std::size_t row = 0; row < rows.size(); ++row) {
      accepted[row] = std::max<std::int64_t>(0, to[row] - lengths[row]);
    }
    KVC_RETURN_IF_ERROR(close(-1, accepted));
  }
  for (std::size_t row = 0; row < rows.size(); ++row) {
    if (to[row] < lengths[row]) KVC_RETURN_IF_ERROR(cache->truncate(rows[row], to[row]));
    lengths[row] = to[row];
    for (std::vector<std::int64_t>& held : holds) {
      if (!held.empty()) held[row] = std::min(held[row], to[row]);
    }
  }
  revive();
  return {};
}

// --- What there is. ---

Result<OwnedKvView> BatchState::view(std::int64_t layer) const {
  KVC_RETURN_IF_ERROR(check_layer(layer));
  KVC_RETURN_IF_ERROR(check_not_left_out(layer));
  if (open.has_value()) return cache->view(open->step, layer);
  return cache->view(layer, rows);
}

Status BatchState::gather(std::int64_t layer, const MutableTensorView& key,
                          const MutableTensorView& value, const ExecContext& context) const {
  for (std::int64_t row = 0; row < num_rows(); ++row) {
    const MutableTensorView k = row_of(key, row);
    const MutableTensorView v = row_of(value, row);
    KVC_RETURN_IF_ERROR(open.has_value() ? cache->gather(open->step, layer, row, k, v, context)
                                         : cache->gather(layer, rows[at(row)], k, v, context));
  }
  return {};
}

std::int64_t BatchState::length(std::int64_t row, std::int64_t layer) const noexcept {
  if (left_out(layer)) return holds[at(layer)][at(row)];
  const bool more = open.has_value() && !open->announced && open->written[at(layer)] != 0;
  return lengths[at(row)] + (more ? open->counts[at(row)] : 0);
}

}  // namespace kvcache::internal
