#include "python/bindings/hf_prefix.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "kvcache/cache_file.h"
#include "python/bindings/hf_move.h"

namespace kvcache::python {
namespace {

// Tokens that are stored as one: rows of windows are held for as many.
constexpr std::int64_t kPiece = 256;

// Of rows [B, H, S, D] those of one text, [count, H, D].
TensorView rows_of_text(const TensorView& rows, std::int64_t text, std::int64_t begin,
                        std::int64_t count) {
  TensorView some = rows;
  some.rank = 3;
  some.data = static_cast<const char*>(rows.data) +
              (text * rows.strides[0] + begin * rows.strides[2]) * size_of(rows.dtype);
  const int axes[] = {2, 1, 3};
  for (int axis = 0; axis < 3; ++axis) {
    some.shape[axis] = rows.shape[axes[axis]];
    some.strides[axis] = rows.strides[axes[axis]];
  }
  some.shape[0] = count;
  return some;
}

std::int32_t token_at(const TensorView& ids, std::int64_t row, std::int64_t column) noexcept {
  const std::int64_t at = row * ids.strides[0] + column * ids.strides[1];
  if (ids.dtype == DType::kI32) return static_cast<const std::int32_t*>(ids.data)[at];
  return static_cast<std::int32_t>(static_cast<const std::int64_t*>(ids.data)[at]);
}

}  // namespace

// --- The rows of a call. ---

LayerSpec PrefixRows::spec() const noexcept {
  if (layer != nullptr) return layer->spec();
  return LayerSpec::kv(key.shape[1], key.shape[3], value.shape[3], plain(key.dtype),
                       plain(value.dtype));
}

Result<TensorView> PrefixRows::read(std::int64_t text, std::int64_t behind, std::int64_t count,
                                    bool keys, std::vector<std::byte>* copy) const {
  const std::int64_t begin = columns() - behind;
  if (layer == nullptr) return rows_of_text(keys ? key : value, text, begin, count);
  const BufferSpec& buffer = keys ? layer->spec().key() : layer->spec().value();
  copy->resize(static_cast<std::size_t>(count * buffer.token_bytes()));
  const MutableTensorView to(copy->data(), buffer.format.dtype, {buffer.heads, count, buffer.dim});
  KVC_RETURN_IF_ERROR(layer->read(text, begin, keys, to));
  TensorView rows = to;
  std::swap(rows.shape[0], rows.shape[1]);
  std::swap(rows.strides[0], rows.strides[1]);
  return rows;
}

// --- The store. ---

Status ModelRows::expect(std::span<const LayerSpec> layers) {
  if (cache_.has_value() &&
      std::equal(layers.begin(), layers.end(), layers_.begin(), layers_.end())) {
    return {};
  }
  for (const LayerSpec& spec : layers) {
    if (spec.key().format.is_coded() || spec.value().format.is_coded()) {
      return Status(StatusCode::kUnsupported, "layers: found coded rows, expected plain ones");
    }
  }
  release_retired();
  if (cache_.has_value() && cache_->stats().sequences > 0) {
    return Status(StatusCode::kRetryLater,
                  "layers: found rows of other shapes or types in use, expected none");
  }
  CacheConfig config;
  config.layers.assign(layers.begin(), layers.end());
  config.page_size = page_size_;
  config.budget_bytes = budget_bytes_;
  config.rewind_tokens = 1;  // so that no page leaves with a chunk before it is whole and known
  config.prefixes = true;
  prefixes_.reset();  // first, so that both budgets are never in use at once
  cache_.reset();
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
  cache_.emplace(std::move(cache));
  Result<PrefixCache> prefixes = PrefixCache::create(*cache_);
  if (!prefixes.ok()) {
    cache_.reset();
    return prefixes.status();
  }
  prefixes_.emplace(std::move(*prefixes));
  layers_.assign(layers.begin(), layers.end());
  return {};
}

PrefixStats ModelRows::stats() {
  release_retired();
  return prefixes_.has_value() ? prefixes_->stats() : PrefixStats();
}

Result<std::int64_t> ModelRows::save(const std::string& path) {
  release_retired();
  if (!prefixes_.has_value()) {
    return Status(StatusCode::kInvalidArgument, "layers: found none yet, expected some");
  }
  return prefixes_->save(path);
}

Result<std::int64_t> ModelRows::load(const std::string& path, const PrefixNamespace& space) {
  release_retired();
  if (!prefixes_.has_value()) {
    return Status(StatusCode::kInvalidArgument, "layers: found none yet, expected some");
  }
  KVC_ASSIGN_OR_RETURN(const CacheFile file, CacheFile::open(path));
  const std::vector<PrefixNamespace>& spaces = file.info().spaces;
  if (!spaces.empty() && std::find(spaces.begin(), spaces.end(), space) == spaces.end()) {
    return Status(StatusCode::kInvalidArgument,
                  "namespaces: found texts of " + std::to_string(spaces.size()) +
                      ", none of this model, expected its own (weights, config, adapters, "
                      "versions)");
  }
  return prefixes_->load(path, space);
}

std::int64_t ModelRows::reserved_bytes() {
  release_retired();
  return cache_.has_value() ? cache_->reserved_bytes() : 0;
}

Status ModelRows::check_invariants() {
  release_retired();
  if (!cache_.has_value()) return {};
  KVC_RETURN_IF_ERROR(cache_->check_invariants());
  return prefixes_->check_invariants();
}

void ModelRows::retire(std::list<std::vector<SequenceId>>* seqs) noexcept {
  const std::lock_guard lock(retiring_);
  retired_.splice(retired_.end(), *seqs);
}

void ModelRows::release_retired() noexcept {
  std::list<std::vector<SequenceId>> retired;
  {
    const std::lock_guard lock(retiring_);
    retired.swap(retired_);
  }
  for (const std::vector<SequenceId>& seqs : retired) {
    for (const SequenceId seq : seqs) (void)cache_->release(seq);
  }
}

// --- A batch. ---

PrefixBatch::PrefixBatch(std::shared_ptr<ModelRows> store, const PrefixNamespace& space,
                         std::vector<std::int64_t> paddings, std::vector<std::int32_t> ends)
    : store_(std::move(store)), space_(space), texts_(paddings.size()), ends_(std::move(ends)) {
  for (std::size_t i = 0; i < texts_.size(); ++i) texts_[i].padding = paddings[i];
  leaving_.emplace_back().reserve(2 * texts_.size());
}

PrefixBatch::~PrefixBatch() {
  std::vector<SequenceId>& seqs = leaving_.front();
  for (const Text& text : texts_) {
    if (text.is_open) seqs.push_back(text.seq);
    if (text.loads > 0) seqs.push_back(text.loading);
  }
  if (!seqs.empty()) store_->retire(&leaving_);
}

const LayerSpec& PrefixBatch::layer(std::int64_t index) const noexcept {
  return store_->layers_[static_cast<std::size_t>(index)];
}

Status PrefixBatch::open(Text& text, const PrefixHandle& handle) {
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, store_->prefixes_->open(handle));
  if (text.is_open) (void)store_->cache_->release(text.seq);
  text.seq = seq;
  text.is_open = true;
  text.stored = handle.length();
  return {};
}

void PrefixBatch::close(Text& text) noexcept {
  if (text.is_open) (void)store_->cache_->release(text.seq);
  text.is_open = false;
  text.is_closed = true;
}

void PrefixBatch::end_loading() noexcept {
  for (Text& text : texts_) {
    if (text.loads > 0) (void)store_->cache_->release(text.loading);
    text.loads = 0;
  }
}

void PrefixBatch::crop(std::int64_t columns) noexcept {
  length_ = std::min(length_, columns);
  for (Text& text : texts_) {
    const std::int64_t count = std::max<std::int64_t>(0, length_ - text.padding);
    if (!text.is_open || text.stored <= count) continue;
    if (store_->cache_->truncate(text.seq, count).ok()) {
      text.stored = count;
    } else {  // a window has moved on
      close(text);
    }
  }
}

void PrefixBatch::close() noexcept {
  end_loading();
  for (Text& text : texts_) close(text);
}

Status PrefixBatch::settle(std::int64_t* start) const {
  for (bool again = true; again && *start > length_;) {
    again = false;
    for (const Text& text : texts_) {
      const std::int64_t count = *start - text.padding;
      if (count <= 0) continue;
      const std::span tokens(text.tokens.data(), static_cast<std::size_t>(count + 1));
      KVC_ASSIGN_OR_RETURN(const PrefixExplanation served,
                           store_->prefixes_->explain(tokens, space_));
      if (served.length == count) continue;
      *start = text.padding + served.length;
      again = true;
    }
  }
  *start = std::max(*start, length_);
  return {};
}

Result<std::int64_t> PrefixBatch::find(const TensorView& ids, std::int64_t keep) {
  if (ids.rank != 2 || ids.shape[0] != batch()) {
    return Status(StatusCode::kInvalidArgument, "ids: found rank " + std::to_string(ids.rank) +
                                                    " and " + std::to_string(ids.shape[0]) +
                                                    " rows, expected [" + std::to_string(batch()) +
                                                    ", columns]");
  }
  end_loading();
  crop(length_);  // a forward pass that failed may have opened what it found
  total_ = length_ + ids.shape[1];
  found_ = length_;
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    Text& text = texts_[i];
    // Those of a forward pass that failed are no part of it.
    text.tokens.resize(static_cast<std::size_t>(std::max<std::int64_t>(0, length_ - text.padding)));
    for (std::int64_t column = std::max(length_, text.padding); column < total_; ++column) {
      text.tokens.push_back(token_at(ids, static_cast<std::int64_t>(i), column - length_));
    }
  }
  store_->release_retired();
  const std::int64_t most = total_ - std::max<std::int64_t>(keep, 1);
  if (most <= length_) return length_;

  PrefixCounts& counts = store_->counts_;
  std::int64_t start = most;
  std::vector<PrefixHandle> handles;
  for (Text& text : texts_) {
    ++counts.matches;
    counts.tokens_asked += static_cast<std::int64_t>(text.tokens.size());
    if (!store_->prefixes_.has_value()) {
      ++counts.misses[static_cast<std::size_t>(PrefixMiss::kCold)];
      start = length_;
      continue;
    }
    Result<PrefixHandle> handle = store_->prefixes_->match(text.tokens, space_);
    if (!handle.ok()) return length_;  // no room for handles: nothing is found
    counts.hits += handle->length() > 0 ? 1 : 0;
    counts.tokens_found += handle->length();
    ++counts.misses[static_cast<std::size_t>(handle->reason())];
    start = std::min(start, text.padding + handle->length());
    if (!text.is_closed && handle->length() > text.stored) {
      if (!open(text, *handle).ok()) close(text);
    }
    handles.push_back(std::move(*handle));  // pinned until rows are listed
  }
  if (start <= length_) return length_;
  KVC_RETURN_IF_ERROR(settle(&start));
  if (start <= length_) return length_;
  for (Text& text : texts_) {
    const std::int64_t count = start - text.padding;
    if (count <= 0) continue;
    const std::span tokens(text.tokens.data(), static_cast<std::size_t>(count + 1));
    Result<PrefixHandle> handle = store_->prefixes_->match(tokens, space_);
    Result<SequenceId> seq = handle.ok() && handle->length() == count
                                 ? store_->prefixes_->open(*handle)
                                 : Result<SequenceId>(Status(StatusCode::kRetryLater, ""));
    if (!seq.ok()) {
      end_loading();
      return length_;
    }
    text.loading = *seq;
    text.loads = count;
  }
  for (const Text& text : texts_) {
    if (text.loads > 0) {
      counts.tokens_reused += text.loads - std::max<std::int64_t>(0, length_ - text.padding);
    }
  }
  found_ = start;
  return found_;
}

Status PrefixBatch::gather(std::int64_t layer, const MutableTensorView& key,
                           const MutableTensorView& value) const {
  for (const bool keys : {true, false}) {
    const MutableTensorView& rows = keys ? key : value;
    std::memset(rows.data, 0, static_cast<std::size_t>(rows.num_elements() * size_of(rows.dtype)));
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      const Text& text = texts_[i];
      if (text.loads == 0) continue;
      const std::int64_t skipped = std::max<std::int64_t>(0, text.padding - length_);
      MutableTensorView one(rows.data, rows.dtype,
                            {rows.shape[1], rows.shape[2] - skipped, rows.shape[3]});
      one.strides[0] = rows.strides[1];
      one.strides[1] = rows.strides[2];
      one.data = static_cast<std::byte*>(rows.data) +
                 (static_cast<std::int64_t>(i) * rows.strides[0] + skipped * rows.strides[2]) *
                     size_of(rows.dtype);
      KVC_ASSIGN_OR_RETURN(const OwnedKvView view, store_->cache_->view(layer, {&text.loading, 1}));
      copy_rows(view, keys, 0, std::max<std::int64_t>(0, length_ - text.padding), one);
    }
  }
  return {};
}

Status PrefixBatch::store_text(std::int64_t index, std::span<const PrefixRows> layers) {
  Text& text = texts_[static_cast<std::size_t>(index)];
  PagedCache& cache = *store_->cache_;
  if (!text.is_open) {
    KVC_ASSIGN_OR_RETURN(const PrefixHandle handle, store_->prefixes_->match(text.tokens, space_));
    KVC_RETURN_IF_ERROR(open(text, handle));
  }
  std::vector<std::byte> key_copy, value_copy;
  const auto known = static_cast<std::int64_t>(text.tokens.size());
  while (text.stored < known) {
    const std::int64_t count = std::min(kPiece, known - text.stored);
    const std::int64_t behind = known - text.stored;  // the end, which is that of all texts
    for (const PrefixRows& rows : layers) {
      if (rows.columns() >= behind) continue;
      return Status(StatusCode::kInvalidArgument,
                    "layers: found " + std::to_string(rows.columns()) +
                        " columns, expected at least " + std::to_string(behind));
    }
    const Append append{
        text.seq,
        count,
        std::span(text.tokens)
            .subspan(static_cast<std::size_t>(text.stored), static_cast<std::size_t>(count)),
        {}};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      KVC_ASSIGN_OR_RETURN(const TensorView key,
                           layers[i].read(index, behind, count, true, &key_copy));
      KVC_ASSIGN_OR_RETURN(const TensorView value,
                           layers[i].read(index, behind, count, false, &value_copy));
      KVC_RETURN_IF_ERROR(cache.write(step, static_cast<std::int64_t>(i), key, value));
    }
    KVC_RETURN_IF_ERROR(cache.commit(step));
    text.stored += count;
    store_->counts_.tokens_stored += count;
  }
  return {};
}

Result<bool> PrefixBatch::append(std::span<const PrefixRows> layers) {
  end_loading();
  const auto checked = [&]() -> Status {
    std::vector<LayerSpec> specs;
    for (const PrefixRows& rows : layers) {
      if (rows.batch() != batch() || rows.columns() > total_ ||
          (rows.layer != nullptr && rows.columns() < total_)) {
        return Status(StatusCode::kInvalidArgument,
                      "layers: found " + std::to_string(rows.batch()) + " x " +
                          std::to_string(rows.columns()) + " tokens, expected " +
                          std::to_string(batch()) + " x " + std::to_string(total_));
      }
      specs.push_back(rows.spec());
    }
    return store_->expect(specs);
  };
  const Status status = checked();
  if (!status.ok()) {
    close();
    return status;
  }
  const bool is_single = total_ - length_ == 1;
  bool goes_on = false;
  for (std::int64_t i = 0; i < batch(); ++i) {
    Text& text = texts_[static_cast<std::size_t>(i)];
    if (text.is_closed) continue;
    if (text.tokens.empty()) {  // padding so far
      goes_on = true;
      continue;
    }
    const Status stored = store_text(i, layers);
    store_->counts_.texts_refused += stored.ok() ? 0 : 1;
    const bool has_ended =
        is_single && std::find(ends_.begin(), ends_.end(), text.tokens.back()) != ends_.end();
    if (!stored.ok() || has_ended) close(text);
    goes_on = goes_on || !text.is_closed;
  }
  length_ = total_;
  return goes_on;
}

}  // namespace kvcache::python
