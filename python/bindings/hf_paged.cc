#include "python/bindings/hf_paged.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "python/bindings/hf_move.h"
#include "python/bindings/turn.h"

namespace kvcache::python {
namespace {

std::string rows_of(std::int64_t batch, std::int64_t heads, std::int64_t dim) {
  return "[" + std::to_string(batch) + ", " + std::to_string(heads) + ", length, " +
         std::to_string(dim) + "]";
}

// [batch, heads, tokens, dim] as [batch * tokens, heads, dim]; false where strides do not allow it.
bool pack(const TensorView& rows, TensorView* packed) {
  const std::int64_t batch = rows.shape[0];
  const std::int64_t tokens = rows.shape[2];
  if (batch > 1 && tokens > 1 && rows.strides[0] != tokens * rows.strides[2]) return false;
  *packed = rows;
  packed->rank = 3;
  packed->shape[0] = batch * tokens;
  packed->shape[1] = rows.shape[1];
  packed->shape[2] = rows.shape[3];
  packed->strides[0] = tokens > 1 ? rows.strides[2] : rows.strides[0];
  packed->strides[1] = rows.strides[1];
  packed->strides[2] = rows.strides[3];
  return true;
}

// The rows of one sequence, [tokens, heads, dim].
TensorView rows_of_sequence(const TensorView& rows, std::int64_t seq) {
  TensorView one = rows;
  one.rank = 3;
  one.data = static_cast<const char*>(rows.data) + seq * rows.strides[0] * size_of(rows.dtype);
  one.shape[0] = rows.shape[2];
  one.shape[1] = rows.shape[1];
  one.shape[2] = rows.shape[3];
  one.strides[0] = rows.strides[2];
  one.strides[1] = rows.strides[1];
  one.strides[2] = rows.strides[3];
  return one;
}

// The rows of one sequence, [heads, tokens, dim].
MutableTensorView row_of(const MutableTensorView& rows, std::int64_t seq) {
  MutableTensorView one;
  one.data = static_cast<char*>(rows.data) + seq * rows.strides[0] * size_of(rows.dtype);
  one.dtype = rows.dtype;
  one.rank = 3;
  std::copy(rows.shape + 1, rows.shape + 4, one.shape);
  std::copy(rows.strides + 1, rows.strides + 4, one.strides);
  return one;
}

// Of rows [heads, tokens, dim] those from `first` on; those before become zeros. REQUIRES: rows as
// new tensors have them.
MutableTensorView held_of(MutableTensorView rows, std::int64_t first) {
  const std::int64_t element = size_of(rows.dtype);
  auto* const data = static_cast<char*>(rows.data);
  const auto gone = static_cast<std::size_t>(first * rows.shape[2] * element);
  for (std::int64_t head = 0; head < rows.shape[0]; ++head) {
    std::memset(data + head * rows.strides[0] * element, 0, gone);
  }
  rows.data = data + first * rows.strides[1] * element;
  rows.shape[1] -= first;
  return rows;
}

// Room for the new tokens of all sequences, or nothing; written as one.
Result<PagedCache::Step> write_packed(PagedCache& cache, std::span<const SequenceId> seqs,
                                      const TensorView& key, const TensorView& value) {
  const std::int64_t tokens = key.shape[0] / static_cast<std::int64_t>(seqs.size());
  std::vector<Append> appends;
  appends.reserve(seqs.size());
  for (const SequenceId seq : seqs) appends.push_back({seq, tokens, {}, {}});
  KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve(appends));
  KVC_RETURN_IF_ERROR(cache.write(step, 0, key, value));
  return step;
}

// Rows that pack() cannot see as packed, in memory of their own.
struct PackedCopy {
  std::vector<std::byte> bytes;
  TensorView view;

  explicit PackedCopy(const TensorView& rows) {
    const std::int64_t element = size_of(rows.dtype);
    const std::int64_t* const shape = rows.shape;
    bytes.resize(static_cast<std::size_t>(rows.num_elements() * element));
    std::byte* to = bytes.data();
    for (std::int64_t b = 0; b < shape[0]; ++b) {
      for (std::int64_t t = 0; t < shape[2]; ++t) {
        for (std::int64_t h = 0; h < shape[1]; ++h) {
          const auto* from =
              static_cast<const std::byte*>(rows.data) +
              (b * rows.strides[0] + h * rows.strides[1] + t * rows.strides[2]) * element;
          for (std::int64_t d = 0; d < shape[3]; ++d, to += element) {
            std::memcpy(to, from + d * rows.strides[3] * element,
                        static_cast<std::size_t>(element));
          }
        }
      }
    }
    view = TensorView(bytes.data(), rows.dtype, {shape[0] * shape[2], shape[1], shape[3]});
  }
};

// The same for rows that cannot be seen as packed: a step a sequence, all reserved before the first
// is written.
Status append_each(PagedCache& cache, std::span<const SequenceId> seqs, const TensorView& key,
                   const TensorView& value) {
  std::vector<PagedCache::Step> steps;
  steps.reserve(seqs.size());
  for (const SequenceId seq : seqs) {
    const Append append{seq, key.shape[2], {}, {}};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
    steps.push_back(std::move(step));
  }
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const auto seq = static_cast<std::int64_t>(i);
    KVC_RETURN_IF_ERROR(
        cache.write(steps[i], 0, rows_of_sequence(key, seq), rows_of_sequence(value, seq)));
  }
  for (PagedCache::Step& step : steps) KVC_RETURN_IF_ERROR(cache.commit(step));
  return {};
}

// Appends to all sequences. `open`: where the step is left, which else is committed.
Status append_rows(PagedCache& cache, std::span<const SequenceId> seqs, const TensorView& key,
                   const TensorView& value, std::optional<PagedCache::Step>* open) {
  TensorView packed_key;
  TensorView packed_value;
  const bool packed = pack(key, &packed_key) && pack(value, &packed_value);
  if (open == nullptr && !packed) return append_each(cache, seqs, key, value);
  std::optional<PackedCopy> key_copy, value_copy;
  if (!packed) {
    packed_key = key_copy.emplace(key).view;
    packed_value = value_copy.emplace(value).view;
  }
  KVC_ASSIGN_OR_RETURN(PagedCache::Step step, write_packed(cache, seqs, packed_key, packed_value));
  if (open == nullptr) return cache.commit(step);
  open->emplace(std::move(step));
  return {};
}

bool is_full(const Status& status) {
  return status.code() == StatusCode::kRetryLater || status.code() == StatusCode::kNeverFits;
}

Status too_many(const Status& full, std::int64_t max_tokens) {
  return Status(full.code(), "max_tokens: found more tokens than " + std::to_string(max_tokens) +
                                 ", over the batch and in whole pages, expected at most that (" +
                                 full.message() + ")");
}

constexpr std::int64_t kFirstTokens = 1024;  // that a layer's first pool has room for, at least
constexpr std::int64_t kGrowth = 4;          // of pools: each row is copied a third of a time

}  // namespace

PagedLayer::~PagedLayer() { reset(); }

std::int64_t PagedLayer::pages_for(std::int64_t batch, std::int64_t length) const noexcept {
  return times(batch, (length - 1) / options_.page_size + 1);
}

std::int64_t PagedLayer::pages_needed(std::int64_t batch, std::int64_t length,
                                      std::int64_t tokens) const noexcept {
  const std::int64_t all = pages_for(batch, length);
  if (options_.keeps_all() || records_) return all;
  const std::int64_t kept = options_.life.window + 2 * options_.life.chunk + options_.rewind_tokens;
  const std::int64_t bounded = times(batch, (kept + tokens) / options_.page_size + 3 +
                                                options_.life.sink_tokens / options_.page_size);
  return std::min(all, bounded);
}

std::int64_t PagedLayer::most_pages() const noexcept {
  constexpr std::int64_t kSlots = std::numeric_limits<std::int32_t>::max();  // of a PagedCache
  return (std::min(options_.max_tokens, kSlots - options_.page_size) - 1) / options_.page_size + 1;
}

// An error as it is; of memory, with what it was wanted for and what bounds it.
Status PagedLayer::explained(const Status& status, const LayerSpec& spec,
                             std::int64_t tokens) const {
  if (status.code() != StatusCode::kOutOfMemory || status.message().starts_with("paged layer")) {
    return status;
  }
  const std::int64_t each = bytes_per_token(spec);
  return Status(StatusCode::kOutOfMemory,
                "paged layer: found no address space for " + std::to_string(times(tokens, each)) +
                    " bytes of keys and values, " + std::to_string(tokens) + " tokens of " +
                    std::to_string(each) +
                    " bytes, expected as much below the limits of the process (ulimit -v); "
                    "max_tokens, now " +
                    std::to_string(options_.max_tokens) + ", bounds a layer");
}

Result<std::shared_ptr<PagedLayer::Pool>> PagedLayer::new_pool(const LayerSpec& spec,
                                                               std::int64_t pages,
                                                               std::int64_t fewest) const {
  CacheConfig config;
  config.layers = {spec};
  config.page_size = options_.page_size;
  config.num_pages = options_.is_coded() ? most_pages() : std::min(pages, most_pages());
  config.rewind_tokens = options_.rewind_tokens;
  config.residual_tokens = options_.residual_tokens;
  Result<PagedCache> cache = PagedCache::create(config);
  if (!cache.ok() && cache.status().code() == StatusCode::kOutOfMemory) {
    config.num_pages = std::min(fewest, most_pages());
    cache = PagedCache::create(config);
  }
  if (!cache.ok()) return explained(cache.status(), spec, config.num_pages * config.page_size);
  return std::make_shared<Pool>(std::move(*cache), config.num_pages);
}

Status PagedLayer::grow(std::int64_t tokens) {
  const std::int64_t needed = pages_needed(batch(), length() + tokens, tokens);
  if (options_.is_coded()) {  // whose pool is smaller because there was no address space for more
    return explained(Status(StatusCode::kOutOfMemory, ""), spec_, needed * options_.page_size);
  }
  KVC_ASSIGN_OR_RETURN(std::shared_ptr<Pool> pool,
                       new_pool(spec_, std::max(kGrowth * pool_->pages, 2 * needed), needed));
  const std::shared_ptr<Pool> before = pool_;
  const std::lock_guard lock(before->mutex);
  KVC_ASSIGN_OR_RETURN(std::vector<SequenceId> moved,
                       copy_sequences(before->cache, seqs_, options_.life, options_.rewind_tokens,
                                      records_, &pool->cache));
  release(seqs_);
  seqs_ = std::move(moved);
  pool_ = std::move(pool);
  return {};
}

Status PagedLayer::append(const TensorView& key, const TensorView& value) {
  if (key.rank != 4) return wrong_tensor("key", key, "[batch, num_kv_heads, length, head_dim]");
  if (value.rank != 4 || !std::equal(key.shape, key.shape + 3, value.shape)) {
    return wrong_tensor("value", value,
                        "the batch, heads and length of key, [" + std::to_string(key.shape[0]) +
                            ", " + std::to_string(key.shape[1]) + ", " +
                            std::to_string(key.shape[2]) + ", head_dim]");
  }
  if (!is_floating(key.dtype)) return wrong_tensor("key", key, "a floating dtype");
  if (!is_floating(value.dtype)) return wrong_tensor("value", value, "a floating dtype");
  if (key.shape[2] == 0) return {};
  if (key.shape[0] < 1) return wrong_tensor("key", key, "a batch of at least 1");

  if (!seqs_.empty()) {
    const auto fits = [&](const TensorView& rows, std::int64_t dim) {
      return rows.shape[0] == batch() && rows.shape[1] == spec_.key().heads && rows.shape[3] == dim;
    };
    if (!fits(key, spec_.key().dim)) {
      return wrong_tensor("key", key, rows_of(batch(), spec_.key().heads, spec_.key().dim));
    }
    if (!fits(value, spec_.value().dim)) {
      return wrong_tensor("value", value, rows_of(batch(), spec_.key().heads, spec_.value().dim));
    }
  }

  if (seqs_.empty()) return append_first(key, value);
  const auto try_append = [&]() -> Status {
    const std::lock_guard lock(pool_->mutex);
    KVC_RETURN_IF_ERROR(settle());
    return append_rows(pool_->cache, seqs_, key, value, options_.stays() ? nullptr : &step_);
  };
  Status status = try_append();
  if (is_full(status) && pool_->pages < most_pages()) {
    status = grow(key.shape[2]);
    if (status.ok()) status = try_append();
  }
  if (is_full(status)) return too_many(status, options_.max_tokens);
  if (!status.ok()) return explained(status, spec_, times(batch(), length() + key.shape[2]));
  now_.length += key.shape[2];
  step_tokens_ = key.shape[2];
  return {};
}

LayerSpec PagedLayer::spec_for(const LayerSpec& rows) const noexcept {
  RowFormat k = options_.k, v = options_.v;
  k.dtype = options_.dtype.value_or(rows.key().format.dtype);
  v.dtype = options_.dtype.value_or(rows.value().format.dtype);
  return LayerSpec::kv(rows.key().heads, rows.key().dim, rows.value().dim, k, v)
      .living(options_.life);
}

Status PagedLayer::append_first(const TensorView& key, const TensorView& value) {
  const LayerSpec spec = spec_for(LayerSpec::kv(key.shape[1], key.shape[3], value.shape[3],
                                                plain(key.dtype), plain(value.dtype)));
  const std::int64_t needed = pages_for(key.shape[0], key.shape[2]);
  if (pool_ != nullptr && spec == spec_ && pool_->pages >= needed) {
    const Status status = append_first_to(pool_, spec, key, value);
    // Forks may hold its pages.
    if (!is_full(status)) return explained(status, spec, times(key.shape[0], key.shape[2]));
  }
  const std::int64_t likely = std::max(pages_for(1, kFirstTokens), 2 * needed);
  KVC_ASSIGN_OR_RETURN(const std::shared_ptr<Pool> pool, new_pool(spec, likely, needed));
  const Status status = append_first_to(pool, spec, key, value);
  if (is_full(status)) return too_many(status, options_.max_tokens);
  return explained(status, spec, times(key.shape[0], key.shape[2]));
}

Status PagedLayer::append_first_to(const std::shared_ptr<Pool>& pool, const LayerSpec& spec,
                                   const TensorView& key, const TensorView& value) {
  std::vector<SequenceId> opened;
  opened.reserve(static_cast<std::size_t>(key.shape[0]));
  const std::lock_guard lock(pool->mutex);
  Status status;
  for (std::int64_t i = 0; i < key.shape[0] && status.ok(); ++i) {
    Result<SequenceId> seq = pool->cache.open();
    status = seq.status();
    if (seq.ok()) opened.push_back(*seq);
    if (seq.ok() && records_) status = pool->cache.hold_rows(*seq, true);
  }
  std::optional<PagedCache::Step> step;
  if (status.ok()) {
    status = append_rows(pool->cache, opened, key, value, options_.stays() ? nullptr : &step);
  }
  if (!status.ok()) {
    for (const SequenceId seq : opened) (void)pool->cache.release(seq);
    return status;
  }
  seqs_ = std::move(opened);
  pool_ = pool;
  spec_ = spec;
  step_ = std::move(step);
  now_.length = step_tokens_ = key.shape[2];
  return {};
}

Status PagedLayer::attend(const HfAttend& call) {
  if (seqs_.empty()) {
    return Status(StatusCode::kInvalidArgument, "keys: found an empty layer, expected rows");
  }
  std::optional<OwnedKvView> view;
  {
    const std::lock_guard lock(pool_->mutex);
    KVC_ASSIGN_OR_RETURN(OwnedKvView made, this->view());
    view.emplace(std::move(made));
  }
  return call.run(view->get(), elements());
}

Status PagedLayer::gather(const MutableTensorView& key, const MutableTensorView& value) {
  const auto fits = [&](const TensorView& rows, std::int64_t dim) {
    return rows.rank == 4 && rows.shape[0] == batch() && rows.shape[1] == spec_.key().heads &&
           rows.shape[2] == length() && rows.shape[3] == dim;
  };
  if (!fits(key, spec_.key().dim)) {
    return wrong_tensor("key", key, rows_of(batch(), spec_.key().heads, spec_.key().dim));
  }
  if (!fits(value, spec_.value().dim)) {
    return wrong_tensor("value", value, rows_of(batch(), spec_.key().heads, spec_.value().dim));
  }
  if (seqs_.empty()) return {};
  const std::lock_guard lock(pool_->mutex);
  if (options_.stays()) {
    for (std::int64_t seq = 0; seq < batch(); ++seq) {
      KVC_RETURN_IF_ERROR(pool_->cache.gather(0, seqs_[static_cast<std::size_t>(seq)],
                                              row_of(key, seq), row_of(value, seq)));
    }
    return {};
  }
  if (!options_.is_coded()) {
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, this->view());
    copy_dense(view, true, key);
    copy_dense(view, false, value);
    return {};
  }
  for (std::int64_t i = 0; i < batch(); ++i) {
    const SequenceId seq = seqs_[static_cast<std::size_t>(i)];
    KVC_ASSIGN_OR_RETURN(const std::int64_t first, pool_->cache.first_position(0, seq));
    const MutableTensorView k = held_of(row_of(key, i), first);
    const MutableTensorView v = held_of(row_of(value, i), first);
    KVC_RETURN_IF_ERROR(step_.has_value() ? pool_->cache.gather(*step_, 0, i, k, v)
                                          : pool_->cache.gather(0, seq, k, v));
  }
  return {};
}

Status PagedLayer::read(std::int64_t seq, std::int64_t begin, bool keys,
                        const MutableTensorView& rows) const {
  const std::lock_guard lock(pool_->mutex);
  const auto index = static_cast<std::int32_t>(step_.has_value() ? seq : 0);
  KVC_ASSIGN_OR_RETURN(const OwnedKvView view,
                       step_.has_value()
                           ? pool_->cache.view(*step_, 0)
                           : pool_->cache.view(0, {&seqs_[static_cast<std::size_t>(seq)], 1}));
  copy_rows(view, keys, index, begin, rows);
  return {};
}

Result<OwnedKvView> PagedLayer::view() const {
  return step_.has_value() ? pool_->cache.view(*step_, 0) : pool_->cache.view(0, seqs_);
}

Status PagedLayer::settle(std::optional<std::int64_t> accepted) {
  if (!step_.has_value()) return {};
  std::vector<std::int64_t> counts;
  if (accepted.has_value()) counts.assign(seqs_.size(), *accepted);
  KVC_RETURN_IF_ERROR(pool_->cache.commit(*step_, counts));
  step_.reset();
  return {};
}

std::int64_t PagedLayer::first() const noexcept {
  if (seqs_.empty()) return 0;
  const std::lock_guard lock(pool_->mutex);
  return pool_->cache.first_position(0, seqs_.front()).value();
}

Status PagedLayer::record(bool on) {
  records_ = on;
  if (seqs_.empty()) return {};
  const std::lock_guard lock(pool_->mutex);
  if (!on) KVC_RETURN_IF_ERROR(settle());
  for (const SequenceId seq : seqs_) KVC_RETURN_IF_ERROR(pool_->cache.hold_rows(seq, on));
  return {};
}

Status PagedLayer::select(std::span<const std::int64_t> indices) {
  if (indices.empty()) {
    return Status(StatusCode::kInvalidArgument, "indices: found none, expected at least one");
  }
  for (const std::int64_t index : indices) {
    if (index < 0 || index >= batch()) {
      return Status(StatusCode::kOutOfRange, "indices: found " + std::to_string(index) +
                                                 ", expected 0 .. " + std::to_string(batch() - 1));
    }
  }
  const std::lock_guard lock(pool_->mutex);
  KVC_RETURN_IF_ERROR(settle());
  if (indices.size() == seqs_.size()) {
    const TensorView beams(indices.data(), DType::kI64, {batch()});
    KVC_RETURN_IF_ERROR(pool_->cache.reorder(seqs_, beams));
    ++now_.epoch;
    return {};
  }
  std::vector<SequenceId> chosen;
  chosen.reserve(indices.size());
  for (const std::int64_t index : indices) {
    Result<SequenceId> seq = pool_->cache.fork(seqs_[static_cast<std::size_t>(index)], length());
    if (!seq.ok()) {
      release(chosen);
      return seq.status();
    }
    chosen.push_back(*seq);
  }
  release(seqs_);
  seqs_ = std::move(chosen);
  ++now_.epoch;
  return {};
}

Status PagedLayer::reaches(std::int64_t n) const {
  if (n < 0 || n > length()) {
    return Status(StatusCode::kOutOfRange,
                  "n: found " + std::to_string(n) + ", expected 0 .. " + std::to_string(length()));
  }
  if (length() - n < loaded_) {
    return Status(StatusCode::kOutOfRange, "n: found " + std::to_string(n) + ", expected 0 .. " +
                                               std::to_string(length() - loaded_) +
                                               ", as rows before were not computed here");
  }
  const std::int64_t fresh = step_.has_value() ? step_tokens_ : 0;
  if (seqs_.empty() || n <= fresh) return {};
  const std::lock_guard lock(pool_->mutex);
  for (const SequenceId seq : seqs_) {
    KVC_RETURN_IF_ERROR(pool_->cache.reaches(seq, length() - n));
  }
  return {};
}

Status PagedLayer::rewind(std::int64_t n) {
  KVC_RETURN_IF_ERROR(reaches(n));
  if (seqs_.empty() || n == 0) return {};
  const std::lock_guard lock(pool_->mutex);
  const std::int64_t fresh = step_.has_value() ? step_tokens_ : 0;
  KVC_RETURN_IF_ERROR(settle(std::max<std::int64_t>(0, fresh - n)));
  for (const SequenceId seq : seqs_) {
    KVC_RETURN_IF_ERROR(pool_->cache.truncate(seq, length() - n));
  }
  now_ = {length() - n, now_.epoch + 1};
  return {};
}

void PagedLayer::release(std::span<const SequenceId> seqs) noexcept {
  for (const SequenceId seq : seqs) (void)pool_->cache.release(seq);
}

void PagedLayer::reset() noexcept {
  if (!seqs_.empty()) {
    const std::lock_guard lock(pool_->mutex);
    step_.reset();
    release(seqs_);
  }
  seqs_.clear();
  loaded_ = 0;
  now_ = {0, now_.epoch + 1};
}

Result<std::unique_ptr<PagedLayer>> PagedLayer::fork() {
  auto child = std::make_unique<PagedLayer>(options_);
  child->records_ = records_;
  child->loaded_ = loaded_;
  if (seqs_.empty()) return child;
  child->pool_ = pool_;
  child->spec_ = spec_;
  child->seqs_.reserve(seqs_.size());
  const std::lock_guard lock(pool_->mutex);
  KVC_RETURN_IF_ERROR(settle());
  for (const SequenceId seq : seqs_) {
    Result<SequenceId> forked = pool_->cache.fork(seq, length());
    if (!forked.ok()) {
      release(child->seqs_);
      child->seqs_.clear();
      return forked.status();
    }
    child->seqs_.push_back(*forked);
  }
  child->now_ = now_;
  return child;
}

PagedStats PagedLayer::stats() const {
  if (pool_ == nullptr) return {};
  const std::lock_guard lock(pool_->mutex);
  return pool_->cache.stats();
}

std::int64_t PagedLayer::nbytes() const {
  if (pool_ == nullptr) return 0;
  const std::lock_guard lock(pool_->mutex);
  const std::int64_t fresh = step_.has_value() ? times(batch(), step_tokens_) : 0;
  const BufferSpec& k = spec_.key();
  const BufferSpec& v = spec_.value();
  const std::int64_t plain_bytes =
      k.heads * (k.dim * size_of(k.format.dtype) + v.dim * size_of(v.format.dtype));
  const std::int64_t each = options_.residual_tokens > 0 ? plain_bytes : bytes_per_token(spec_);
  return pool_->cache.nbytes() + times(fresh, each);
}

std::int64_t PagedLayer::reserved_bytes() const {
  if (pool_ == nullptr) return 0;
  const std::lock_guard lock(pool_->mutex);
  return pool_->cache.reserved_bytes();
}

}  // namespace kvcache::python
