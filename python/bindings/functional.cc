#include "python/bindings/functional.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <string>
#include <utility>

#include "python/bindings/errors.h"
#include "python/bindings/layered.h"
#include "python/bindings/memory.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

struct PyCachedAttention {
  functional::CachedAttention call;
  std::int64_t num_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t layer_idx = 0;
  bool causal = true;
};

// Rows are valid while a state of their history lives: their owner is one.
std::shared_ptr<const void> owner_of(const PyState& state) {
  return std::make_shared<PyState>(state);
}

PyState init(std::int64_t batch_size, std::int64_t num_layers, std::int64_t num_heads,
             std::int64_t head_dim, std::int64_t max_seq_len, GivenDType type, GivenDType dtype,
             GivenLayout layout, std::shared_ptr<LimitedMemory> memory) {
  if (!type.is_none() && !dtype.is_none()) {
    raise(PyExc_ValueError, "dtype: found beside type, expected one of the two names");
  }
  auto history = std::make_shared<History>();
  history->memory = std::move(memory);
  history->layout = layout_from(layout);
  const auto element = type.is_none() ? dtype_from(dtype) : dtype_from(type, "type");
  history->dtype = element.value_or(DType::kF32);
  functional::InitOptions options;
  options.batch_size = batch_size;
  options.num_layers = num_layers;
  options.num_heads = num_heads;
  options.head_dim = head_dim;
  options.max_seq_len = max_seq_len;
  options.dtype = history->dtype;
  options.layout = history->layout;
  options.memory = history->memory.get();
  functional::CacheState state = take(functional::init(options));
  return {std::move(history), std::move(state), Framework::kNumpy};
}

nb::typed<nb::tuple, PyState, LikeFirst, LikeFirst> update(const PyState& cache,
                                                           std::int64_t layer_idx, FirstArray new_k,
                                                           GivenArray new_v,
                                                           GivenExecutor executor) {
  const Array k("new_k", new_k);
  const Array v("new_v", new_v);
  (void)k.view("new_k");
  (void)v.view("new_v");
  expect_lendable(cache.history->dtype, k.framework());
  const ExecContext context = context_from(executor);
  PyState next{cache.history, {}, k.framework()};
  KeyValueView rows;
  Status status;
  {
    const Turn turn(cache.history->mutex);
    const Unlocked unlocked(k.raw().num_elements() + v.raw().num_elements());
    auto updated = functional::update(cache.state, layer_idx, k.raw(), v.raw(), context);
    status = updated.status();
    if (updated.ok()) {
      next.state = std::move(updated->state);
      rows = updated->rows;
    }
  }
  check(status);
  const AnyPair pair = lend_pair(rows, owner_of(next), next.framework);
  return nb::make_tuple(std::move(next), pair[0], pair[1]);
}

AnyPair get(const PyState& cache, std::int64_t layer_idx) {
  const KeyValueView rows = take(functional::get(cache.state, layer_idx));
  return lend_pair(rows, owner_of(cache), cache.framework);
}

PyState reset(const PyState& cache) {
  const Turn turn(cache.history->mutex);
  return {cache.history, take(functional::reset(cache.state)), cache.framework};
}

nb::typed<nb::tuple, LikeFirst, PyState> attend(const PyCachedAttention& self, FirstArray q,
                                                GivenArray k, GivenArray v, const PyState& cache,
                                                GivenArray out_given, GivenExecutor executor) {
  const Array query("q", q);
  const Array key("k", k);
  const Array value("v", v);
  (void)key.view("k");
  (void)value.view("v");
  const TensorView& view = query.view("q");
  const bool head_first = cache.history->layout == Layout::kHND;
  const std::int64_t shape[3] = {view.shape[0], head_first ? view.shape[2] : view.shape[1],
                                 self.num_heads * self.head_dim};
  if (view.rank != 4 || !is_floating(view.dtype)) {
    raise(PyExc_ValueError,
          "q: found " + query.describe() + ", expected float32, float16 or bfloat16 of four axes");
  }
  nb::object out = out_given.is_none() ? new_array(query.framework(), view.dtype, shape, 3)
                                       : nb::borrow(out_given);
  const Array out_array("out", out);
  const MutableTensorView out_view = out_array.writable("out");
  const ExecContext context = context_from(executor);
  PyState next{cache.history, {}, query.framework()};
  Status status;
  {
    const Turn turn(cache.history->mutex);
    const Unlocked unlocked(times(view.num_elements(), 1 + cache.state.position()));
    auto made = self.call(view, key.raw(), value.raw(), cache.state, out_view, context);
    status = made.status();
    if (made.ok()) next.state = std::move(made).value();
  }
  check(status);
  return nb::make_tuple(std::move(out), std::move(next));
}

std::string repr(const PyState& self) {
  return "CacheState(position=" + std::to_string(self.state.position()) +
         ", max_seq_len=" + std::to_string(self.state.max_seq_len()) +
         ", num_layers=" + std::to_string(self.state.num_layers()) +
         ", dtype=" + python_name(self.history->dtype) +
         ", layout=" + name_of(self.history->layout) + ")";
}

void bind_state(nb::module_& module) {
  nb::class_<PyState>(
      module, "CacheState",
      "The cache as a value. update() gives a new state; the old one stays readable as it was. "
      "The states of a\nhistory share storage: going forward from the newest copies nothing, a "
      "second update from the same state\n(a branch) copies that layer's rows first.\n\nArrays "
      "that come out are valid for as long as they live, and never change. Threads: calls on one "
      "history\nwait for each other.")
      .def_prop_ro(
          "position", [](const PyState& s) { return s.state.position(); },
          "Length of the longest layer.")
      .def_prop_ro(
          "max_seq_len", [](const PyState& s) { return s.state.max_seq_len(); },
          "Tokens a layer can hold.")
      .def_prop_ro("num_layers", [](const PyState& s) { return s.state.num_layers(); })
      .def(
          "nbytes", [](const PyState& s) { return s.state.nbytes(); },
          "Bytes of this state's rows.")
      .def(
          "reserved_bytes",
          [](const PyState& s) {
            const Turn turn(s.history->mutex);
            return s.state.reserved_bytes();
          },
          "Bytes held for all of its history.")
      .def(
          "copied_bytes",
          [](const PyState& s) {
            const Turn turn(s.history->mutex);
            return s.state.copied_bytes();
          },
          "Bytes that branches of its history copied.")
      .def("__copy__", [](const PyState& s) { return s; })
      .def(
          "__deepcopy__", [](const PyState& s, GivenMemo) { return s; }, "memo"_a)
      .def("__repr__", &repr);
}

}  // namespace

std::unique_ptr<PyKvView> view_of(const PyState& state, std::int64_t layer) {
  const KeyValueView rows = take(functional::get(state.state, layer));
  auto view = std::make_unique<PyKvView>(take(dense_view(rows, state.history->layout)));
  view->rows = owner_of(state);
  return view;
}

void bind_functional(nb::module_& module) {
  bind_state(module);
  nb::class_<PyCachedAttention>(
      module, "CachedAttention",
      "Attention of one layer over a state: (q, k, v, cache) -> (out, new state).\n\nq "
      "[B, num_heads, L, D], k and v [B, H, L, D] are appended first; out [B, L, num_heads * D], "
      "heads merged\nhead-major, scale 1 / sqrt(head_dim).")
      .def("__call__", &attend, "q"_a.none(), "k"_a.none(), "v"_a.none(), "cache"_a, nb::kw_only(),
           "out"_a = nb::none(), "executor"_a = nb::none(),
           "Errors: those of update(), ValueError for q, out and the state's heads.")
      .def("__repr__", [](const PyCachedAttention& self) {
        return "CachedAttention(num_heads=" + std::to_string(self.num_heads) +
               ", head_dim=" + std::to_string(self.head_dim) +
               ", layer_idx=" + std::to_string(self.layer_idx) +
               ", causal=" + (self.causal ? "True" : "False") + ")";
      });
  nb::module_ inner = module.def_submodule("functional", "What kvcache.functional is made of.");
  inner.def("init", &init, nb::kw_only(), "batch_size"_a, "num_layers"_a, "num_heads"_a,
            "head_dim"_a, "max_seq_len"_a = 2048, "type"_a = nb::none(), "dtype"_a = nb::none(),
            "layout"_a = "hnd", "memory"_a.none() = nb::none(),
            "An empty state. num_heads: of K and V. type and dtype are two names for the element "
            "type of the stored rows,\nfloat32 by default.\n\nErrors: ValueError for a size < 1, "
            "and for types.");
  inner.def("update", &update, "cache"_a, "layer_idx"_a, "new_k"_a.none(), "new_v"_a.none(),
            nb::kw_only(), "executor"_a = nb::none(),
            "Appends new_k, new_v [B, H, T, D] to a layer: (new state, K, V), K and V to date as "
            "[B, H, length, D] views.\n\nErrors: ValueError for shapes and types; IndexError for "
            "the layer, and past its capacity.");
  inner.def("get", &get, "cache"_a, "layer_idx"_a,
            "(K, V) of a layer, [B, H, length, D] views.\n\nErrors: IndexError.");
  inner.def(
      "seq_length",
      [](const PyState& cache, std::int64_t layer_idx) {
        return take(functional::seq_length(cache.state, layer_idx));
      },
      "cache"_a, "layer_idx"_a = 0, "Tokens of a layer.\n\nErrors: IndexError.");
  inner.def("reset", &reset, "cache"_a,
            "An empty state that holds on to the memory: its first update uses it when no other "
            "state of the old history\nis alive by then.");
  inner.def(
      "build_cached_attention",
      [](std::int64_t num_heads, std::int64_t head_dim, std::int64_t layer_idx, bool causal) {
        return PyCachedAttention{
            take(functional::build_cached_attention(num_heads, head_dim, layer_idx, causal)),
            num_heads, head_dim, layer_idx, causal};
      },
      "num_heads"_a, "head_dim"_a, "layer_idx"_a, "causal"_a = true,
      "A callable (q, k, v, cache) -> (out, new state). causal is bottom-right aligned; False "
      "gives the\nbidirectional prefill.\n\nErrors: ValueError for sizes, IndexError for a layer "
      "that no state has.");
}

}  // namespace kvcache::python
