// PagedBatch: arguments are checked here; batch_state.h does the work.
#include "kvcache/paged_batch.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/door.h"
#include "base/expect.h"
#include "batch/rows.h"
#include "batch/state.h"
#include "tensor/overlap.h"
#include "tensor/strides.h"

namespace kvcache {
inline namespace v1 {
namespace {

using internal::at_door;
using internal::BatchLayer;
using internal::BatchState;
using internal::KvExtents;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

Status expect_length(const std::string& name, std::int64_t found, std::int64_t length) {
  if (found < 0) {
    return internal::refusal(name, found, "at least 0");
  }
  if (found <= length) return {};
  return internal::refusal(StatusCode::kOutOfRange, name, found, "0 .. " + std::to_string(length));
}

}  // namespace

struct PagedBatch::Impl : BatchState {};

PagedBatch::PagedBatch(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
PagedBatch::PagedBatch(PagedBatch&&) noexcept = default;

PagedBatch& PagedBatch::operator=(PagedBatch&& other) noexcept {
  if (this == &other) return *this;
  if (impl_ != nullptr) reset();
  impl_ = std::move(other.impl_);
  return *this;
}

PagedBatch::~PagedBatch() {
  if (impl_ != nullptr) reset();
}

Result<PagedBatch> PagedBatch::create(std::shared_ptr<PagedCache> cache, std::int64_t num_rows) {
  return at_door([&]() -> Result<PagedBatch> {
    if (cache == nullptr) return internal::refusal("cache", "none", "one");
    if (num_rows < 0) {
      return internal::refusal("num_rows", num_rows, "at least 0");
    }
    auto impl = std::make_unique<Impl>();
    std::vector<BatchLayer> layers;
    for (std::int64_t layer = 0; layer < cache->num_layers(); ++layer) {
      KVC_ASSIGN_OR_RETURN(const OwnedKvView view, cache->view(layer, {}));
      const KvView& shape = view.get();
      layers.push_back({shape.num_kv_heads, shape.k_head_dim, shape.v_head_dim});
      const KvPart& part = shape.parts[0];
      // A tail of plain rows, too, is what it was for the step's queries until the step ends.
      impl->drops_rows =
          impl->drops_rows || part.held_window > 0 || part.held_chunk > 0 || shape.num_parts > 1;
    }
    impl->holds.resize(layers.size());
    impl->layers = std::make_shared<const std::vector<BatchLayer>>(std::move(layers));
    impl->lengths.assign(at(num_rows), 0);
    impl->cache = std::move(cache);
    KVC_RETURN_IF_ERROR(impl->open_rows(num_rows, &impl->rows));
    return PagedBatch(std::move(impl));
  });
}

Status PagedBatch::begin(std::span<const std::int64_t> counts,
                         std::span<const std::int32_t> tokens) {
  return at_door([&]() -> Status {
    if (static_cast<std::int64_t>(counts.size()) != num_rows()) {
      return internal::refusal("counts", counts.size(), num_rows());
    }
    KVC_RETURN_IF_ERROR(impl_->check_counts(counts, tokens));
    KVC_RETURN_IF_ERROR(impl_->settle());
    KVC_ASSIGN_OR_RETURN(Impl::Open open, impl_->reserve(counts, tokens, impl_->rows, true));
    impl_->open.emplace(std::move(open));
    return {};
  });
}

Status PagedBatch::write(std::int64_t layer, const TensorView& key, const TensorView& value,
                         const ExecContext& context) {
  return at_door([&]() -> Status {
    if (!step_open() || !impl_->open->announced) {
      return internal::refusal("step", "none that begin() opened", "one");
    }
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    KVC_RETURN_IF_ERROR(impl_->check_not_left_out(layer));
    KVC_RETURN_IF_ERROR(impl_->write(*impl_->open, layer, key, value, context));
    impl_->open->written[at(layer)] = 1;
    return {};
  });
}

Status PagedBatch::commit(std::span<const std::int64_t> accepted) {
  return at_door([&]() -> Status {
    if (!step_open()) return internal::refusal("step", "none", "an open one");
    if (impl_->open->announced) return impl_->commit(accepted);
    if (accepted.empty()) return impl_->close();
    return internal::refusal("accepted", "counts for a step that update() opened", "none");
  });
}

Status PagedBatch::rollback() {
  return at_door([&]() -> Status {
    if (!step_open()) return internal::refusal("step", "none", "an open one");
    KVC_RETURN_IF_ERROR(impl_->cache->rollback(impl_->open->step));
    impl_->open.reset();
    return {};
  });
}

Status PagedBatch::update(std::int64_t layer, const TensorView& key, const TensorView& value,
                          const ExecContext& context) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    const BatchLayer& shape = (*impl_->layers)[at(layer)];
    const Layout layout = impl_->cache->layout();
    const std::int64_t any = internal::kAnyExtent;
    const std::int64_t batch = num_rows() > 0 ? num_rows() : any;
    KVC_RETURN_IF_ERROR(
        internal::expect_kv("key", key, layout, KvExtents{batch, shape.heads, any, shape.k_dim}));
    const KvExtents given = internal::kv_extents(key, layout);
    KVC_RETURN_IF_ERROR(internal::expect_kv(
        "value", value, layout, KvExtents{given.batch, shape.heads, given.length, shape.v_dim}));
    if (given.batch == 0) return internal::refusal("key", "a batch of 0", "at least 1");
    if (given.length == 0) return {};
    if (step_open() && impl_->open->announced) return impl_->settle();
    KVC_RETURN_IF_ERROR(impl_->check_not_left_out(layer));
    return impl_->update(layer, key, value, context);
  });
}

Result<OwnedKvView> PagedBatch::view(std::int64_t layer) const {
  return at_door([&] { return impl_->view(layer); });
}

Status PagedBatch::gather(std::int64_t layer, const MutableTensorView& key,
                          const MutableTensorView& value, const ExecContext& context) const {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, impl_->view(layer));
    const std::int64_t length = num_rows() == 0 ? 0 : internal::rows_held(view, 0);
    for (std::int32_t row = 1; row < num_rows(); ++row) {
      const std::int64_t other = internal::rows_held(view, row);
      if (other == length) continue;
      return internal::refusal("rows",
                               std::to_string(length) + " and " + std::to_string(other) + " tokens",
                               "as many in every row");
    }
    const BatchLayer& shape = (*impl_->layers)[at(layer)];
    const Layout layout = impl_->cache->layout();
    KVC_RETURN_IF_ERROR(internal::expect_kv(
        "key", key, layout, KvExtents{num_rows(), shape.heads, length, shape.k_dim}));
    KVC_RETURN_IF_ERROR(internal::expect_kv(
        "value", value, layout, KvExtents{num_rows(), shape.heads, length, shape.v_dim}));
    KVC_RETURN_IF_ERROR(internal::expect_apart("key", key, "value", value));
    return impl_->gather(layer, key, value, context);
  });
}

Result<std::int64_t> PagedBatch::seq_length(std::int64_t row, std::int64_t layer) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(internal::expect_index("row", row, num_rows()));
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    return impl_->length(row, layer);
  });
}

// Rows keep the positions they were appended at: they start at 0 as long as nothing drops the
// first.
Result<std::int64_t> PagedBatch::next_position(std::int64_t row, std::int64_t layer) const {
  return seq_length(row, layer);
}

Result<std::int64_t> PagedBatch::first_position(std::int64_t row, std::int64_t layer) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(internal::expect_index("row", row, num_rows()));
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    return impl_->cache->first_position(layer, impl_->rows[at(row)]);
  });
}

Result<std::int64_t> PagedBatch::rows_held(std::int64_t row, std::int64_t layer) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(internal::expect_index("row", row, num_rows()));
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, impl_->view(layer));
    return internal::rows_held(view, static_cast<std::int32_t>(row));
  });
}

std::int64_t PagedBatch::num_rows() const noexcept { return impl_->num_rows(); }
bool PagedBatch::step_open() const noexcept { return impl_->open.has_value(); }

std::int64_t PagedBatch::num_new_tokens() const noexcept {
  return step_open() ? impl_->open->step.num_new_tokens() : 0;
}

std::span<const std::int32_t> PagedBatch::qo_indptr() const noexcept {
  if (!step_open()) return {};
  return impl_->open->qo_indptr;
}

std::span<const SequenceId> PagedBatch::sequences() const noexcept { return impl_->rows; }
const std::shared_ptr<PagedCache>& PagedBatch::cache() const noexcept { return impl_->cache; }

Status PagedBatch::add(std::int64_t count) {
  return at_door([&]() -> Status {
    if (count < 0) return internal::refusal("count", count, "at least 0");
    KVC_RETURN_IF_ERROR(impl_->settle());
    const std::size_t more = impl_->rows.size() + at(count);
    impl_->rows.reserve(more);
    impl_->lengths.reserve(more);
    for (std::vector<std::int64_t>& held : impl_->holds) {
      if (!held.empty()) held.reserve(more);
    }
    std::vector<SequenceId> opened;
    KVC_RETURN_IF_ERROR(impl_->open_rows(count, &opened));
    impl_->rows.insert(impl_->rows.end(), opened.begin(), opened.end());
    impl_->lengths.resize(more, 0);
    for (std::vector<std::int64_t>& held : impl_->holds) {
      if (!held.empty()) held.resize(more, 0);
    }
    return {};
  });
}

Status PagedBatch::release(std::int64_t row) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(internal::expect_index("row", row, num_rows()));
    KVC_RETURN_IF_ERROR(impl_->settle());
    KVC_RETURN_IF_ERROR(impl_->cache->release(impl_->rows[at(row)]));
    impl_->rows.erase(impl_->rows.begin() + row);
    impl_->lengths.erase(impl_->lengths.begin() + row);
    for (std::vector<std::int64_t>& held : impl_->holds) {
      if (!held.empty()) held.erase(held.begin() + row);
    }
    impl_->revive();
    return {};
  });
}

Status PagedBatch::replace(std::int64_t row, SequenceId seq) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(internal::expect_index("row", row, num_rows()));
    KVC_ASSIGN_OR_RETURN(const std::int64_t length, impl_->cache->seq_length(seq));
    if (std::find(impl_->rows.begin(), impl_->rows.end(), seq) != impl_->rows.end()) {
      return internal::refusal("seq", "a row of this batch", "a sequence that is none");
    }
    KVC_RETURN_IF_ERROR(impl_->settle());
    KVC_RETURN_IF_ERROR(impl_->cache->release(impl_->rows[at(row)]));
    impl_->rows[at(row)] = seq;
    impl_->lengths[at(row)] = length;
    for (std::vector<std::int64_t>& held : impl_->holds) {
      if (!held.empty()) held[at(row)] = length;
    }
    impl_->revive();
    return {};
  });
}

void PagedBatch::reset() noexcept { impl_->reset(); }

Status PagedBatch::select(const TensorView& indices) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(internal::expect_tensor("indices", indices));
    KVC_RETURN_IF_ERROR(internal::expect_rank("indices", indices, 1));
    KVC_ASSIGN_OR_RETURN(const auto rows, internal::read_indices("indices", indices));
    return impl_->select(rows);
  });
}

Status PagedBatch::reorder(const TensorView& beam_idx) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(internal::expect_tensor("beam_idx", beam_idx));
    KVC_RETURN_IF_ERROR(internal::expect_shape("beam_idx", beam_idx, {num_rows()}));
    KVC_ASSIGN_OR_RETURN(const auto rows, internal::read_indices("beam_idx", beam_idx));
    if (rows.empty()) return impl_->settle();
    return impl_->select(rows);
  });
}

Status PagedBatch::repeat(std::int64_t n) {
  return at_door([&]() -> Status {
    const std::int64_t most = std::numeric_limits<std::int32_t>::max();
    if (n < 1 || (num_rows() > 0 && n > most / num_rows())) {
      return internal::refusal("n", n, "at least 1, and fewer than 2^31 rows in all");
    }
    if (num_rows() == 0) return {};
    std::vector<std::int64_t> rows;
    rows.reserve(at(num_rows() * n));
    for (std::int64_t row = 0; row < num_rows(); ++row) rows.insert(rows.end(), at(n), row);
    return impl_->select(rows);
  });
}

Result<PagedBatch> PagedBatch::fork() {
  return at_door([&]() -> Result<PagedBatch> {
    KVC_RETURN_IF_ERROR(impl_->settle());
    auto child = std::make_unique<Impl>();
    child->cache = impl_->cache;
    child->layers = impl_->layers;
    child->drops_rows = impl_->drops_rows;
    child->lengths = impl_->lengths;
    child->holds = impl_->holds;
    child->rows.reserve(impl_->rows.size());
    PagedBatch forked(std::move(child));  // gives back what it has got if a fork is refused
    for (std::size_t row = 0; row < impl_->rows.size(); ++row) {
      KVC_ASSIGN_OR_RETURN(const SequenceId seq,
                           impl_->cache->fork(impl_->rows[row], impl_->lengths[row]));
      forked.impl_->rows.push_back(seq);
    }
    return forked;
  });
}

Status PagedBatch::rewind(std::int64_t n) {
  return at_door([&] { return rewind(std::vector<std::int64_t>(impl_->rows.size(), n)); });
}

Status PagedBatch::rewind(std::span<const std::int64_t> counts) {
  return at_door([&]() -> Status {
    if (static_cast<std::int64_t>(counts.size()) != num_rows()) {
      return internal::refusal("counts", counts.size(), num_rows());
    }
    std::vector<std::int64_t> to(impl_->rows.size());
    for (std::size_t row = 0; row < to.size(); ++row) {
      to[row] = impl_->all_tokens(row);
      KVC_RETURN_IF_ERROR(
          expect_length("tokens of row " + std::to_string(row), counts[row], to[row]));
      to[row] -= counts[row];
    }
    return impl_->shorten(to);
  });
}

Status PagedBatch::truncate(std::int64_t n) {
  return at_door([&]() -> Status {
    if (n < 0) return internal::refusal("n", n, "at least 0");
    std::vector<std::int64_t> to(impl_->rows.size());
    for (std::size_t row = 0; row < to.size(); ++row) to[row] = std::min(impl_->all_tokens(row), n);
    return impl_->shorten(to);
  });
}

}  // namespace v1
}  // namespace kvcache
