// The functional cache at the public door: arguments are checked here, rows are History's.
#include "kvcache/functional.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "api/cache_impl.h"
#include "base/door.h"
#include "base/expect.h"
#include "cache/contiguous/history.h"
#include "cache/contiguous/view.h"
#include "kernels/select.h"
#include "kvcache/attention.h"
#include "tensor/strides.h"

namespace kvcache {
inline namespace v1 {
namespace functional {

using internal::at_door;
using internal::expect_at_least;
using internal::expect_between;
using internal::History;
using internal::refusal;

struct CacheState::Impl {
  // A state of `store`, or (reset) one that only holds its memory. May throw bad_alloc.
  Impl(std::shared_ptr<History> store, std::vector<History::Layer> list, bool is_reset)
      : history(std::move(store)), layers(std::move(list)), reset(is_reset) {
    for (const History::Layer& layer : layers) position = std::max(position, layer.length);
    if (!reset) history->enter();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (!reset) history->leave();
  }

  std::shared_ptr<History> history;    // outlives the buffers
  std::vector<History::Layer> layers;  // [num_layers]
  bool reset = false;
  std::int64_t position = 0;
};

// What the functions below may see of a state.
struct StateAccess {
  using Impl = CacheState::Impl;

  // A new state's layer, and how to undo it.
  struct Step {
    CacheState state;
    std::shared_ptr<History> history;
    History::Appended appended;
  };

  static const Impl* of(const CacheState& state) noexcept { return state.impl_.get(); }
  static Status check(const CacheState& state, std::int64_t layer);
  static Result<CacheState> empty(std::shared_ptr<History> history);
  static Result<CacheState> reset(const CacheState& state);
  static Status check_rows(const Impl& impl, std::int64_t layer, const TensorView& k,
                           const TensorView& v);
  static Result<Step> append(const CacheState& state, std::int64_t layer, const TensorView& k,
                             const TensorView& v, const ExecContext& context);
  static KeyValueView rows(const CacheState& state, std::int64_t layer) noexcept {
    return of(state)->history->rows(of(state)->layers[static_cast<std::size_t>(layer)]);
  }
  static Result<CachedAttention> build(std::int64_t num_heads, std::int64_t head_dim,
                                       std::int64_t layer_idx, bool causal);
};

Status StateAccess::check(const CacheState& state, std::int64_t layer) {
  if (of(state) == nullptr) return refusal("state", "none", "one of init or update");
  return internal::expect_index("layer", layer, of(state)->history->options().num_layers);
}

Result<CacheState> StateAccess::empty(std::shared_ptr<History> history) {
  std::vector<History::Layer> layers(static_cast<std::size_t>(history->options().num_layers));
  return CacheState(std::make_shared<const Impl>(std::move(history), std::move(layers), false));
}

Result<CacheState> StateAccess::reset(const CacheState& state) {
  std::vector<History::Layer> layers = of(state)->layers;  // for their buffers
  for (History::Layer& layer : layers) layer.length = 0;
  return CacheState(std::make_shared<const Impl>(of(state)->history, std::move(layers), true));
}

Status StateAccess::check_rows(const Impl& impl, std::int64_t layer, const TensorView& k,
                               const TensorView& v) {
  const History::Options& options = impl.history->options();
  const internal::LayerShape& s = options.shape;
  KVC_RETURN_IF_ERROR(internal::expect_kv("k", k, s.layout,
                                          {s.batch, s.heads(), internal::kAnyExtent, s.key().dim}));
  const std::int64_t count = internal::kv_extents(k, s.layout).length;
  KVC_RETURN_IF_ERROR(
      internal::expect_kv("v", v, s.layout, {s.batch, s.heads(), count, s.value().dim}));
  const std::int64_t length = impl.layers[static_cast<std::size_t>(layer)].length;
  if (count <= options.max_seq_len - length) return {};
  return refusal(StatusCode::kOutOfRange, "k",
                 std::to_string(count) + " new tokens after a length of " + std::to_string(length),
                 "at most the capacity of " + std::to_string(options.max_seq_len));
}

// REQUIRES: the checks passed, at least one token.
Result<StateAccess::Step> StateAccess::append(const CacheState& state, std::int64_t layer,
                                              const TensorView& k, const TensorView& v,
                                              const ExecContext& context) {
  const Impl& from = *of(state);
  Step step;
  step.history = from.history;
  std::vector<History::Layer> layers = from.layers;
  if (from.reset && !step.history->take_over(layers)) {
    step.history = std::make_shared<History>(from.history->options());
    layers.assign(layers.size(), {});
  }
  const auto next = std::make_shared<Impl>(step.history, std::move(layers), false);
  History::Layer& old = next->layers[static_cast<std::size_t>(layer)];
  KVC_ASSIGN_OR_RETURN(step.appended, step.history->append(old, k, v, context));
  old = step.appended.layer;
  next->position = std::max(next->position, step.appended.layer.length);
  step.state = CacheState(next);
  return step;
}

std::int64_t CacheState::position() const noexcept { return impl_ ? impl_->position : 0; }

std::int64_t CacheState::max_seq_len() const noexcept {
  return impl_ ? impl_->history->options().max_seq_len : 0;
}

std::int64_t CacheState::num_layers() const noexcept {
  return impl_ ? impl_->history->options().num_layers : 0;
}

std::int64_t CacheState::nbytes() const noexcept {
  if (!impl_) return 0;
  const internal::LayerShape& s = impl_->history->options().shape;
  std::int64_t tokens = 0;
  for (const History::Layer& layer : impl_->layers) tokens += layer.length;
  return tokens * s.batch * bytes_per_token(s.spec);
}

std::int64_t CacheState::reserved_bytes() const noexcept {
  return impl_ ? impl_->history->reserved_bytes() : 0;
}

std::int64_t CacheState::copied_bytes() const noexcept {
  return impl_ ? impl_->history->copied_bytes() : 0;
}

Result<CacheState> init(const InitOptions& options) {
  return at_door([&]() -> Result<CacheState> {
    KVC_RETURN_IF_ERROR(expect_at_least("batch_size", options.batch_size, 1));
    KVC_RETURN_IF_ERROR(expect_between("num_layers", options.num_layers, 1, internal::kMaxLayers));
    KVC_RETURN_IF_ERROR(expect_at_least("num_heads", options.num_heads, 1));
    KVC_RETURN_IF_ERROR(expect_at_least("head_dim", options.head_dim, 1));
    KVC_RETURN_IF_ERROR(expect_at_least("max_seq_len", options.max_seq_len, 1));
    if (!is_floating(options.dtype)) {
      return refusal("dtype", name_of(options.dtype), "f32, f16 or bf16");
    }
    if (options.layout != Layout::kHND && options.layout != Layout::kNHD) {
      return refusal("layout", static_cast<int>(options.layout), "hnd or nhd");
    }
    History::Options history;
    history.shape = {
        options.batch_size,
        LayerSpec::kv(options.num_heads, options.head_dim, options.head_dim, options.dtype),
        options.layout};
    history.num_layers = options.num_layers;
    history.max_seq_len = options.max_seq_len;
    history.memory = options.memory != nullptr ? options.memory : &system_memory();
    KVC_RETURN_IF_ERROR(internal::expect_backend("memory", history.memory->device()));
    internal::ContiguousGeometry geometry;
    if (!internal::fixed_geometry(history.shape, options.max_seq_len, &geometry)) {
      return refusal("max_seq_len", options.max_seq_len, "a layer of at most 2^62 bytes");
    }
    return StateAccess::empty(std::make_shared<History>(history));
  });
}

Result<Updated> update(const CacheState& state, std::int64_t layer, const TensorView& k,
                       const TensorView& v, const ExecContext& context) {
  return at_door([&]() -> Result<Updated> {
    KVC_RETURN_IF_ERROR(StateAccess::check(state, layer));
    KVC_RETURN_IF_ERROR(StateAccess::check_rows(*StateAccess::of(state), layer, k, v));
    const Layout layout = StateAccess::of(state)->history->options().shape.layout;
    if (internal::kv_extents(k, layout).length == 0) {
      return Updated{state, StateAccess::rows(state, layer)};
    }
    KVC_ASSIGN_OR_RETURN(StateAccess::Step step, StateAccess::append(state, layer, k, v, context));
    const KeyValueView rows = StateAccess::rows(step.state, layer);
    return Updated{std::move(step.state), rows};
  });
}

Result<KeyValueView> get(const CacheState& state, std::int64_t layer) {
  return at_door([&]() -> Result<KeyValueView> {
    KVC_RETURN_IF_ERROR(StateAccess::check(state, layer));
    return StateAccess::rows(state, layer);
  });
}

Result<std::int64_t> seq_length(const CacheState& state, std::int64_t layer) {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(StateAccess::check(state, layer));
    return StateAccess::of(state)->layers[static_cast<std::size_t>(layer)].length;
  });
}

Result<CacheState> reset(const CacheState& state) {
  return at_door([&]() -> Result<CacheState> {
    KVC_RETURN_IF_ERROR(StateAccess::check(state, 0));
    return StateAccess::reset(state);
  });
}

Result<CachedAttention> StateAccess::build(std::int64_t num_heads, std::int64_t head_dim,
                                           std::int64_t layer_idx, bool causal) {
  KVC_RETURN_IF_ERROR(expect_between("num_heads", num_heads, 1, 1 << 20));
  KVC_RETURN_IF_ERROR(expect_between("head_dim", head_dim, 1, 1 << 16));
  KVC_RETURN_IF_ERROR(internal::expect_index("layer_idx", layer_idx, internal::kMaxLayers));
  CachedAttention attention;
  attention.num_heads_ = num_heads;
  attention.head_dim_ = head_dim;
  attention.layer_ = layer_idx;
  attention.causal_ = causal;
  return attention;
}

Result<CachedAttention> build_cached_attention(std::int64_t num_heads, std::int64_t head_dim,
                                               std::int64_t layer_idx, bool causal) {
  return at_door([&]() -> Result<CachedAttention> {
    return StateAccess::build(num_heads, head_dim, layer_idx, causal);
  });
}

Result<CacheState> CachedAttention::operator()(const TensorView& q, const TensorView& k,
                                               const TensorView& v, const CacheState& state,
                                               const MutableTensorView& out,
                                               const ExecContext& context) const {
  return at_door([&]() -> Result<CacheState> {
    KVC_RETURN_IF_ERROR(StateAccess::check(state, layer_));
    const internal::LayerShape& s = StateAccess::of(state)->history->options().shape;
    if (head_dim_ != s.key().dim || num_heads_ % s.heads() != 0) {
      return refusal("state",
                     std::to_string(s.heads()) + " heads of size " + std::to_string(s.key().dim),
                     "heads of size " + std::to_string(head_dim_) + " whose number divides " +
                         std::to_string(num_heads_));
    }
    KVC_RETURN_IF_ERROR(StateAccess::check_rows(*StateAccess::of(state), layer_, k, v));
    const std::int64_t count = internal::kv_extents(k, s.layout).length;
    KVC_RETURN_IF_ERROR(
        internal::expect_kv("q", q, s.layout, {s.batch, num_heads_, count, head_dim_}));
    KVC_RETURN_IF_ERROR(internal::expect_tensor("out", out));
    KVC_RETURN_IF_ERROR(internal::expect_dtype_floating("out", out));
    KVC_RETURN_IF_ERROR(
        internal::expect_shape("out", out, {s.batch, count, num_heads_ * head_dim_}));
    if (count == 0) return state;

    KVC_ASSIGN_OR_RETURN(const StateAccess::Step step,
                         StateAccess::append(state, layer_, k, v, context));
    const Status attended = at_door([&]() -> Status {
      KVC_ASSIGN_OR_RETURN(const OwnedKvView view,
                           internal::view_of(StateAccess::rows(step.state, layer_), s.layout, 0));
      const MutableTensorView by_head = internal::kv_tensor(
          out.data, out.dtype, Layout::kHND, {s.batch, num_heads_, count, head_dim_},
          {out.strides[0], head_dim_ * out.strides[2], out.strides[1], out.strides[2]});
      AttentionOptions options;
      options.causal = causal_;
      return attend(internal::head_first(q, s.layout), {}, view, by_head, {}, options, context);
    });
    if (!attended.ok()) {
      step.history->take_back(step.appended);
      return attended;
    }
    return step.state;
  });
}

}  // namespace functional
}  // namespace v1
}  // namespace kvcache
