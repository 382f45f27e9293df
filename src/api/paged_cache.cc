// PagedCache: arguments are checked here, the work is done in src/cache.
#include "kvcache/paged_cache.h"

#include <string>
#include <utility>

#include "api/paged_cache_impl.h"
#include "base/door.h"
#include "base/expect.h"
#include "cache/paged/layout.h"
#include "cache/paged/rows.h"
#include "cache/paged/tables.h"
#include "kernels/select.h"
#include "tensor/overlap.h"
#include "tensor/strides.h"

namespace kvcache {
inline namespace v1 {

using internal::at_door;
using internal::expect_at_least;
using internal::PagedStep;
using internal::PagedStore;
using internal::refusal;

namespace {

Status expect_rows(const char* name, const TensorView& rows, std::int64_t tokens,
                   std::int64_t heads, std::int64_t dim) {
  KVC_RETURN_IF_ERROR(internal::expect_tensor(name, rows));
  KVC_RETURN_IF_ERROR(internal::expect_dtype_floating(name, rows));
  return internal::expect_shape(name, rows, {tokens, heads, dim});
}

Status expect_outside(const PagedStore& store, const char* name, const TensorView& rows) {
  if (!store.owns(rows)) return {};
  return refusal(name, "rows of this cache itself", "memory outside of it");
}

Status check_layer(const PagedStore& store, std::int64_t layer) {
  return internal::expect_index("layer", layer, store.layout().num_layers());
}

// Of layers whose rows lie in one table.
Status check_one_table(const PagedStore& store, std::int64_t layer) {
  KVC_RETURN_IF_ERROR(check_layer(store, layer));
  if (store.tail_group(layer) < 0) return {};
  return refusal(StatusCode::kUnsupported, "layer",
                 std::to_string(layer) + ", coded beside residual_tokens",
                 "one whose rows lie in one table");
}

Status check_written(const PagedStore& store, const PagedStep& step, std::int64_t layer) {
  KVC_RETURN_IF_ERROR(check_layer(store, layer));
  if (step.num_new_tokens == 0 || step.written[static_cast<std::size_t>(layer)] != 0) return {};
  return refusal("layer", std::to_string(layer) + " not written", "it written");
}

// Tensors that `rows` rows of a layer are to be copied to. REQUIRES: the layer was checked.
Status check_gathered(const PagedStore& store, std::int64_t layer, std::int64_t rows,
                      const TensorView& key, const TensorView& value) {
  const LayerSpec& spec = store.spec_of(layer);
  const bool head_first = store.layout().layout == Layout::kHND;
  const std::int64_t first = head_first ? spec.key().heads : rows;
  const std::int64_t second = head_first ? rows : spec.key().heads;
  KVC_RETURN_IF_ERROR(expect_rows("key", key, first, second, spec.key().dim));
  KVC_RETURN_IF_ERROR(expect_rows("value", value, first, second, spec.value().dim));
  KVC_RETURN_IF_ERROR(expect_outside(store, "key", key));
  KVC_RETURN_IF_ERROR(expect_outside(store, "value", value));
  return internal::expect_apart("key", key, "value", value);
}

bool can(Operation operation) noexcept {
  switch (operation) {
    case Operation::kFork:
    case Operation::kTruncate:
    case Operation::kRewind:
    case Operation::kReorder:
    case Operation::kGather:
      return true;
    case Operation::kRemove:
    case Operation::kShift:
    case Operation::kParents:
      return false;
  }
  return false;
}

const char* name_of_operation(Operation operation) noexcept {
  switch (operation) {
    case Operation::kFork:
      return "kFork";
    case Operation::kTruncate:
      return "kTruncate";
    case Operation::kRewind:
      return "kRewind";
    case Operation::kReorder:
      return "kReorder";
    case Operation::kGather:
      return "kGather";
    case Operation::kRemove:
      return "kRemove";
    case Operation::kShift:
      return "kShift";
    case Operation::kParents:
      return "kParents";
  }
  return "unknown";
}

Status unsupported(Operation operation) {
  return refusal(StatusCode::kUnsupported, "operation", name_of_operation(operation),
                 "one that supports() names");
}

// num_pages, from the budget where it is not given.
Result<std::int64_t> pool_size(const CacheConfig& config, const internal::PagedLayout& layout) {
  KVC_RETURN_IF_ERROR(expect_at_least("num_pages", config.num_pages, 0));
  KVC_RETURN_IF_ERROR(expect_at_least("budget_bytes", config.budget_bytes, 0));
  if (config.num_pages == 0 && config.budget_bytes == 0) {
    return refusal("num_pages", 0, "at least 1, or budget_bytes");
  }
  std::int64_t num_pages = config.num_pages;
  if (config.budget_bytes > 0) {
    const std::int64_t most = layout.pages_in_budget(config.budget_bytes);
    if (most == 0) {
      return refusal("budget_bytes", config.budget_bytes,
                     "at least " + std::to_string(layout.page_bytes() + layout.page_table_bytes()) +
                         ", one page with its tables");
    }
    if (num_pages > most) {
      return refusal("num_pages", num_pages,
                     "at most " + std::to_string(most) + " for budget_bytes " +
                         std::to_string(config.budget_bytes));
    }
    if (num_pages == 0) num_pages = most;
  }
  KVC_RETURN_IF_ERROR(layout.check_num_pages(num_pages));
  return num_pages;
}

}  // namespace

CacheConfig CacheConfig::uniform(std::int64_t num_layers, std::int64_t num_kv_heads,
                                 std::int64_t head_dim, DType dtype) {
  CacheConfig config;
  if (num_layers > 0) {
    config.layers.assign(static_cast<std::size_t>(num_layers),
                         LayerSpec::kv(num_kv_heads, head_dim, head_dim, dtype));
  }
  return config;
}

PagedCache::Step::Step(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
PagedCache::Step::Step(Step&&) noexcept = default;
PagedCache::Step& PagedCache::Step::operator=(Step&&) noexcept = default;
PagedCache::Step::~Step() = default;

std::int64_t PagedCache::Step::num_new_tokens() const noexcept {
  return impl_ == nullptr || impl_->step == nullptr ? 0 : impl_->step->num_new_tokens;
}

PagedCache::PagedCache(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
PagedCache::PagedCache(PagedCache&&) noexcept = default;

PagedCache& PagedCache::operator=(PagedCache&& other) noexcept {
  if (this == &other) return *this;
  if (impl_ != nullptr) impl_->close();
  impl_ = std::move(other.impl_);
  return *this;
}

PagedCache::~PagedCache() {
  if (impl_ != nullptr) impl_->close();
}

Result<PagedCache> PagedCache::create(const CacheConfig& config) {
  return at_door([&]() -> Result<PagedCache> {
    for (const Operation operation : config.required) {
      if (!can(operation)) return unsupported(operation);
    }
    KVC_ASSIGN_OR_RETURN(internal::PagedLayout layout,
                         internal::make_paged_layout(config.layers, config.page_size, config.layout,
                                                     config.rewind_tokens, config.residual_tokens));
    if (config.prefixes) KVC_RETURN_IF_ERROR(layout.add_prefixes());
    KVC_ASSIGN_OR_RETURN(const std::int64_t num_pages, pool_size(config, layout));
    MemoryResource& memory = config.memory != nullptr ? *config.memory : system_memory();
    KVC_RETURN_IF_ERROR(internal::expect_backend("memory", memory.device()));
    auto impl = std::make_shared<Impl>();
    KVC_ASSIGN_OR_RETURN(
        impl->store, PagedStore::create(std::move(layout), num_pages, config.budget_bytes, memory));
    return PagedCache(std::move(impl));
  });
}

Result<SequenceId> PagedCache::open() {
  return at_door([&] { return impl_->store->open(); });
}

Status PagedCache::release(SequenceId seq) {
  return at_door([&] { return impl_->store->release(seq); });
}

Result<PagedCache::Step> PagedCache::reserve(std::span<const Append> appends) {
  return at_door([&]() -> Result<Step> {
    auto impl = std::make_unique<Step::Impl>();
    impl->owner = impl_;
    KVC_ASSIGN_OR_RETURN(impl->step, impl_->store->reserve(appends));
    return Step(std::move(impl));
  });
}

Status PagedCache::write(Step& step, std::int64_t layer, const TensorView& k, const TensorView& v,
                         const ExecContext& context) {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(PagedStep * open, Step::Impl::of(step, impl_.get()));
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    const LayerSpec& spec = impl_->store->spec_of(layer);
    KVC_RETURN_IF_ERROR(
        expect_rows("k", k, open->num_new_tokens, spec.key().heads, spec.key().dim));
    KVC_RETURN_IF_ERROR(
        expect_rows("v", v, open->num_new_tokens, spec.value().heads, spec.value().dim));
    KVC_RETURN_IF_ERROR(expect_outside(*impl_->store, "k", k));
    KVC_RETURN_IF_ERROR(expect_outside(*impl_->store, "v", v));
    KVC_RETURN_IF_ERROR(internal::check_rows(*impl_->store, *open, layer, k, v, context));
    internal::write_rows(*impl_->store, *open, layer, k, v, context);
    return {};
  });
}

Result<OwnedKvView> PagedCache::view(const Step& step, std::int64_t layer) const {
  return at_door([&]() -> Result<OwnedKvView> {
    KVC_ASSIGN_OR_RETURN(PagedStep * open, Step::Impl::of(step, impl_.get()));
    KVC_RETURN_IF_ERROR(check_written(*impl_->store, *open, layer));
    return internal::step_view(*impl_->store, *open, layer);
  });
}

Result<OwnedKvView> PagedCache::view(std::int64_t layer, std::span<const SequenceId> seqs) const {
  return at_door([&]() -> Result<OwnedKvView> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    KVC_ASSIGN_OR_RETURN(const auto found, impl_->store->find_all(seqs));
    return internal::committed_view(*impl_->store, layer, found);
  });
}

Status PagedCache::commit(Step& step, std::span<const std::int64_t> accepted,
                          const ExecContext& context) {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(PagedStep * open, Step::Impl::of(step, impl_.get()));
    KVC_RETURN_IF_ERROR(impl_->store->check_commit(*open, accepted));
    internal::encode_rows(*impl_->store, *open, accepted, context);
    KVC_RETURN_IF_ERROR(impl_->store->commit(*open, accepted));
    step.impl_->step.reset();
    return {};
  });
}

Status PagedCache::rollback(Step& step) {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(PagedStep * open, Step::Impl::of(step, impl_.get()));
    impl_->store->rollback(*open);
    step.impl_->step.reset();
    return {};
  });
}

Result<SequenceId> PagedCache::fork(SequenceId seq, std::int64_t length) {
  return at_door([&] { return impl_->store->fork(seq, length); });
}

Status PagedCache::reaches(SequenceId seq, std::int64_t length) const {
  return at_door([&] { return impl_->store->reaches(seq, length); });
}

Status PagedCache::hold_rows(SequenceId seq, bool hold) {
  return at_door([&] { return impl_->store->hold_rows(seq, hold); });
}

Status PagedCache::truncate(SequenceId seq, std::int64_t n) {
  return at_door([&] { return impl_->store->truncate(seq, n); });
}

Status PagedCache::rewind(SequenceId seq, std::int64_t n) {
  return at_door([&] { return impl_->store->rewind(seq, n); });
}

Status PagedCache::reorder(std::span<const SequenceId> seqs, const TensorView& beam_idx) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(internal::expect_tensor("beam_idx", beam_idx));
    KVC_RETURN_IF_ERROR(
        internal::expect_shape("beam_idx", beam_idx, {static_cast<std::int64_t>(seqs.size())}));
    KVC_ASSIGN_OR_RETURN(const auto beams, internal::read_indices("beam_idx", beam_idx));
    return impl_->store->reorder(seqs, beams);
  });
}

Status PagedCache::remove(SequenceId, std::int64_t, std::int64_t) {
  return at_door([&] { return unsupported(Operation::kRemove); });
}

Status PagedCache::shift(SequenceId, std::int64_t, std::int64_t, std::int64_t) {
  return at_door([&] { return unsupported(Operation::kShift); });
}

Result<BlockTable> PagedCache::block_table(std::int64_t layer,
                                           std::span<const SequenceId> seqs) const {
  return at_door([&]() -> Result<BlockTable> {
    KVC_RETURN_IF_ERROR(check_one_table(*impl_->store, layer));
    KVC_ASSIGN_OR_RETURN(const auto found, impl_->store->find_all(seqs));
    return internal::make_block_table(*impl_->store, layer, found);
  });
}

Result<PageIndices> PagedCache::page_indices(std::int64_t layer,
                                             std::span<const SequenceId> seqs) const {
  return at_door([&]() -> Result<PageIndices> {
    KVC_RETURN_IF_ERROR(check_one_table(*impl_->store, layer));
    KVC_ASSIGN_OR_RETURN(const auto found, impl_->store->find_all(seqs));
    return internal::make_page_indices(*impl_->store, layer, found);
  });
}

Result<std::vector<std::int32_t>> PagedCache::slot_mapping(const Step& step,
                                                           std::int64_t layer) const {
  return at_door([&]() -> Result<std::vector<std::int32_t>> {
    KVC_ASSIGN_OR_RETURN(const PagedStep* open, Step::Impl::of(step, impl_.get()));
    KVC_RETURN_IF_ERROR(check_one_table(*impl_->store, layer));
    return internal::make_slot_mapping(*impl_->store, *open, layer);
  });
}

Status PagedCache::gather(std::int64_t layer, SequenceId seq, const MutableTensorView& key,
                          const MutableTensorView& value, const ExecContext& context) const {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    KVC_ASSIGN_OR_RETURN(const internal::PagedSequence* found, impl_->store->find(seq));
    KVC_RETURN_IF_ERROR(
        check_gathered(*impl_->store, layer, impl_->rows_held(layer, *found), key, value));
    internal::gather_rows(*impl_->store, *found, layer, key, value, context);
    return {};
  });
}

Status PagedCache::gather(const Step& step, std::int64_t layer, std::int64_t index,
                          const MutableTensorView& key, const MutableTensorView& value,
                          const ExecContext& context) const {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(PagedStep * open, Step::Impl::of(step, impl_.get()));
    KVC_RETURN_IF_ERROR(check_written(*impl_->store, *open, layer));
    KVC_RETURN_IF_ERROR(
        internal::expect_index("index", index, static_cast<std::int64_t>(open->seqs.size())));
    const auto at = static_cast<std::size_t>(index);
    const internal::StepSequence& entry = open->seqs[at];
    const std::int64_t rows = impl_->rows_held(layer, *entry.seq) + entry.count;
    KVC_RETURN_IF_ERROR(check_gathered(*impl_->store, layer, rows, key, value));
    internal::gather_rows(*impl_->store, *open, at, layer, key, value, context);
    return {};
  });
}

Result<RowCodes> PagedCache::gather_codes(std::int64_t layer, SequenceId seq, Role role) const {
  return at_door([&]() -> Result<RowCodes> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    KVC_ASSIGN_OR_RETURN(const internal::PagedSequence* found, impl_->store->find(seq));
    if (role != Role::kKey && role != Role::kValue) {
      return refusal("role", static_cast<int>(role), "kKey or kValue");
    }
    const LayerSpec& spec = impl_->store->spec_of(layer);
    const RowFormat& format = (role == Role::kKey ? spec.key() : spec.value()).format;
    if (!format.is_coded()) {
      return refusal(StatusCode::kUnsupported, "role", "a buffer of plain rows", "a coded one");
    }
    return internal::gather_codes(*impl_->store, *found, layer, role == Role::kKey ? 0 : 1);
  });
}

Result<std::vector<SequenceId>> PagedCache::sequences() const {
  return at_door([&]() -> Result<std::vector<SequenceId>> { return impl_->store->sequences(); });
}

Result<std::int64_t> PagedCache::seq_length(SequenceId seq) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_ASSIGN_OR_RETURN(const internal::PagedSequence* found, impl_->store->find(seq));
    return found->length;
  });
}

// Rows keep the positions they were appended at: the first was at 0 as long as kRemove is missing.
Result<std::int64_t> PagedCache::next_position(SequenceId seq) const { return seq_length(seq); }

Result<std::int64_t> PagedCache::first_position(std::int64_t layer, SequenceId seq) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    KVC_ASSIGN_OR_RETURN(const internal::PagedSequence* found, impl_->store->find(seq));
    return impl_->store->table_of(*found, layer).first;  // of codes and their tails: 0
  });
}

Result<std::int64_t> PagedCache::rows_held(std::int64_t layer, SequenceId seq) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(impl_->check_layer(layer));
    KVC_ASSIGN_OR_RETURN(const internal::PagedSequence* found, impl_->store->find(seq));
    return impl_->rows_held(layer, *found);
  });
}

std::int64_t PagedCache::num_layers() const noexcept { return impl_->store->layout().num_layers(); }
std::int64_t PagedCache::num_groups() const noexcept { return impl_->store->layout().num_groups(); }
std::int64_t PagedCache::page_size() const noexcept { return impl_->store->page_size(); }
Layout PagedCache::layout() const noexcept { return impl_->store->layout().layout; }
std::int64_t PagedCache::free_pages(std::int64_t group) const noexcept {
  return impl_->store->free_pages(group);
}
PagedStats PagedCache::stats() const noexcept { return impl_->store->stats(); }
bool PagedCache::supports(Operation operation) const noexcept { return can(operation); }
std::int64_t PagedCache::nbytes() const noexcept { return impl_->store->nbytes(); }
std::int64_t PagedCache::reserved_bytes() const noexcept { return impl_->store->reserved_bytes(); }

Status PagedCache::check_invariants() const {
  return at_door([&] { return impl_->store->check_invariants(); });
}

}  // namespace v1
}  // namespace kvcache
