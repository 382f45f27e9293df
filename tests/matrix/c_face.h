// The sequences of a kvc_paged, and its attention, through the C door.
#ifndef KVCACHE_TESTS_MATRIX_C_FACE_H_
#define KVCACHE_TESTS_MATRIX_C_FACE_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kvcache_c.h"
#include "matrix/face.h"
#include "matrix/paged_cache_face.h"

namespace kvcache::testing {

class CFace final : public Face {
 public:
  static Result<std::unique_ptr<Face>> make(const CacheConfig& config) {
    std::vector<kvc_layer_spec> layers;
    for (const LayerSpec& spec : config.layers) {
      kvc_layer_spec layer = {};
      layer.struct_size = sizeof(layer);
      layer.k_dtype = static_cast<std::int32_t>(spec.key().format.dtype);
      layer.v_dtype = static_cast<std::int32_t>(spec.value().format.dtype);
      layer.num_kv_heads = spec.key().heads;
      layer.k_head_dim = spec.key().dim;
      layer.v_head_dim = spec.value().dim;
      layer.window = spec.life.window;
      layer.chunk = spec.life.chunk;
      layer.sink_tokens = spec.life.sink_tokens;
      layer.k_form = spec.key().format.kind;
      layer.v_form = spec.value().format.kind;
      layer.k_rotate = spec.key().format.rotate ? 1 : -1;
      layer.v_rotate = spec.value().format.rotate ? 1 : -1;
      layers.push_back(layer);
    }
    kvc_paged_config wanted = {};
    wanted.struct_size = sizeof(wanted);
    wanted.layout = config.layout == Layout::kHND ? KVC_HND : KVC_NHD;
    wanted.layers = layers.data();
    wanted.num_layers = static_cast<std::int64_t>(layers.size());
    wanted.page_size = config.page_size;
    wanted.num_pages = config.num_pages;
    wanted.rewind_tokens = config.rewind_tokens;
    wanted.residual_tokens = config.residual_tokens;
    kvc_paged* cache = nullptr;
    KVC_RETURN_IF_ERROR(status(kvc_paged_create(&wanted, &cache)));
    return std::unique_ptr<Face>(new CFace(config, cache));
  }
  ~CFace() override {
    kvc_step_free(step_);
    kvc_paged_free(cache_);
  }
  CFace(const CFace&) = delete;
  CFace& operator=(const CFace&) = delete;
  const char* name() const override { return "C"; }

  Status open() override {
    std::int64_t seq = 0;
    KVC_RETURN_IF_ERROR(status(kvc_paged_open(cache_, &seq)));
    seqs_.push_back(seq);
    return {};
  }
  Status release(std::int64_t seq) override {
    KVC_RETURN_IF_ERROR(status(kvc_paged_release(cache_, id(seq))));
    seqs_.erase(seqs_.begin() + seq);
    return {};
  }
  Status begin(const Counts& counts) override {
    std::vector<kvc_append> appends;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      appends.push_back({sizeof(kvc_append), seqs_[i], counts[i], nullptr});
    }
    kvc_step_free(std::exchange(step_, nullptr));
    return status(kvc_paged_reserve(cache_, appends.data(), count(), &step_));
  }
  Status write(std::int64_t layer, const std::vector<Tokens>& rows) override {
    const LayerSpec& spec = specs_[static_cast<std::size_t>(layer)];
    const Tokens all = joined_tokens(rows);
    HostTensor k = packed_tokens(spec.key(), all, layer);
    HostTensor v = packed_tokens(spec.value(), all, layer);
    const kvc_tensor key = tensor(k), value = tensor(v);
    return status(kvc_paged_write(cache_, step_, layer, &key, &value, nullptr));
  }
  Status commit(const Counts* accepted) override {
    return status(kvc_paged_commit(cache_, step_, accepted == nullptr ? nullptr : accepted->data(),
                                   accepted == nullptr ? 0 : count()));
  }
  Status rollback() override { return status(kvc_paged_rollback(cache_, step_)); }
  Status attend(std::int64_t layer, const HostTensor& q, const std::vector<std::int32_t>& indptr,
                const AttentionOptions& options, HostTensor* out) override {
    kvc_view* view = nullptr;
    KVC_RETURN_IF_ERROR(status(kvc_paged_step_view(cache_, step_, layer, &view)));
    kvc_attention_options wanted = {};
    wanted.struct_size = sizeof(wanted);
    wanted.window = options.window;
    wanted.sink_tokens = options.sink_tokens;
    wanted.chunk = options.chunk;
    wanted.reproducible = options.reproducible ? 1 : 0;
    HostTensor queries = q;
    const kvc_tensor from = tensor(queries), to = tensor(*out);
    const Status done =
        status(kvc_attend(&from, indptr.data(), view, &to, nullptr, &wanted, nullptr));
    kvc_view_free(view);
    return done;
  }

  Status fork(std::int64_t seq, std::int64_t length) override {
    std::int64_t child = 0;
    KVC_RETURN_IF_ERROR(status(kvc_paged_fork(cache_, id(seq), length, &child)));
    seqs_.push_back(child);
    return {};
  }
  Status reorder(const Counts& beams) override {
    return status(kvc_paged_reorder(cache_, seqs_.data(), count(), beams.data()));
  }
  Status hold(std::int64_t seq, bool hold) override {
    return status(kvc_paged_hold_rows(cache_, id(seq), hold ? 1 : 0));
  }
  Status truncate(std::int64_t seq, std::int64_t n) override {
    return status(kvc_paged_truncate(cache_, id(seq), n));
  }
  Status rewind(std::int64_t seq, std::int64_t n) override {
    return status(kvc_paged_rewind(cache_, id(seq), n));
  }

  Status gather(std::int64_t layer, std::int64_t seq, HostTensor* k, HostTensor* v) override {
    const LayerSpec& spec = specs_[static_cast<std::size_t>(layer)];
    std::int64_t rows = 0;
    const std::int64_t which = id(seq);
    KVC_RETURN_IF_ERROR(status(kvc_paged_rows_held(cache_, layer, &which, 1, &rows)));
    const auto shaped = [&](const BufferSpec& buffer) {
      return layout_ == Layout::kHND ? HostTensor(DType::kF32, {buffer.heads, rows, buffer.dim})
                                     : HostTensor(DType::kF32, {rows, buffer.heads, buffer.dim});
    };
    HostTensor key = shaped(spec.key()), value = shaped(spec.value());
    const kvc_tensor to_key = tensor(key), to_value = tensor(value);
    KVC_RETURN_IF_ERROR(
        status(kvc_paged_gather(cache_, layer, which, &to_key, &to_value, nullptr)));
    *k = tokens_first(key, layout_);
    *v = tokens_first(value, layout_);
    return {};
  }
  Status lengths(Counts* lengths) override {
    lengths->resize(seqs_.size());
    return status(kvc_paged_lengths(cache_, seqs_.data(), count(), lengths->data()));
  }
  Result<std::int64_t> first_position(std::int64_t layer, std::int64_t seq) override {
    std::int64_t position = 0;
    const std::int64_t which = id(seq);
    KVC_RETURN_IF_ERROR(status(kvc_paged_first_positions(cache_, layer, &which, 1, &position)));
    return position;
  }
  Status tables(std::int64_t layer, std::int64_t seq, SequencePages* pages) override {
    std::int64_t most = 0;
    const std::int64_t which = id(seq);
    KVC_RETURN_IF_ERROR(status(kvc_paged_block_table(cache_, layer, &which, 1, nullptr, 0, &most)));
    pages->block_table.resize(static_cast<std::size_t>(most));
    return status(
        kvc_paged_block_table(cache_, layer, &which, 1, pages->block_table.data(), most, &most));
  }
  Status slots(std::int64_t layer, Pages* slots) override {
    slots->resize(static_cast<std::size_t>(kvc_step_num_new_tokens(step_)));
    return status(kvc_paged_slot_mapping(cache_, step_, layer, slots->data(),
                                         static_cast<std::int64_t>(slots->size())));
  }

 private:
  CFace(const CacheConfig& config, kvc_paged* cache)
      : specs_(config.layers), layout_(config.layout), cache_(cache) {}

  static Status status(kvc_status code) {
    if (code == KVC_OK) return {};
    return {static_cast<StatusCode>(code), kvc_last_message()};
  }
  static kvc_tensor tensor(HostTensor& rows) {
    const MutableTensorView view = rows.mutable_view();
    kvc_tensor made = {};
    made.struct_size = sizeof(made);
    made.dtype = static_cast<std::int32_t>(view.dtype);
    made.rank = view.rank;
    made.data = view.data;
    std::copy_n(view.shape, view.rank, made.shape);
    return made;
  }
  std::int64_t count() const { return static_cast<std::int64_t>(seqs_.size()); }
  std::int64_t id(std::int64_t seq) const { return seqs_[static_cast<std::size_t>(seq)]; }

  std::vector<LayerSpec> specs_;
  Layout layout_;
  kvc_paged* cache_;
  kvc_step* step_ = nullptr;
  std::vector<std::int64_t> seqs_;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_C_FACE_H_
