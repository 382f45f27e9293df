#include "python/bindings/attention.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <utility>

#include "kvcache/mask.h"
#include "python/bindings/errors.h"
#include "python/bindings/info.h"
#include "python/bindings/kv_view.h"
#include "python/bindings/memory.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

std::vector<float> head_values(const char* name, nb::handle object, std::int64_t num_heads) {
  const Array array = number_array(name, object);
  if (array.raw().rank == 1 && array.raw().shape[0] == num_heads) return float_values(array, name);
  raise(PyExc_ValueError, std::string(name) + ": found " + array.describe() + ", expected [" +
                              std::to_string(num_heads) + "], one for each head of q");
}

void expect_query(const Array& q) {
  const TensorView& view = q.view("q");
  if ((view.rank == 3 || view.rank == 4) && is_floating(view.dtype)) return;
  raise(PyExc_ValueError, "q: found " + q.describe() +
                              ", expected [total_q, num_heads, k_head_dim] or [B, num_heads, L, "
                              "k_head_dim] of float32, float16 or bfloat16");
}

// The rows of each sequence: given, those of an open step, or all of them for one sequence. Empty
// for a dense q.
std::vector<std::int32_t> query_rows(nb::handle given, const Array& q, const PyKvView& kv) {
  if (!given.is_none()) return int32_values("qo_indptr", given);
  if (q.raw().rank == 4) return {};
  if (!kv.qo_indptr.empty()) return kv.qo_indptr;
  if (kv.view.get().num_seqs == 1 && q.raw().shape[0] <= std::numeric_limits<std::int32_t>::max()) {
    return {0, static_cast<std::int32_t>(q.raw().shape[0])};
  }
  raise(PyExc_ValueError, "qo_indptr: found none, expected [" +
                              std::to_string(std::int64_t{kv.view.get().num_seqs} + 1) +
                              "] row bounds with a packed q of several sequences");
}

void set_rules(AttentionOptions* core, std::optional<float> scale, std::optional<float> softcap,
               bool causal, std::optional<std::int32_t> window, std::int32_t sink_tokens,
               std::int32_t chunk, bool partial, bool reproducible) {
  core->scale = scale;
  core->softcap = softcap.value_or(0.0f);
  core->causal = causal;
  core->window = window.value_or(0);
  core->sink_tokens = sink_tokens;
  core->chunk = chunk;
  core->partial = partial;
  core->reproducible = reproducible;
}

Attended attend(FirstArray q, GivenKv kv, GivenIds qo_indptr, std::int64_t layer,
                GivenLayout layout, GivenArray out, GivenLse lse, std::optional<float> scale,
                std::optional<float> softcap, bool causal, std::optional<std::int32_t> window,
                std::int32_t sink_tokens, std::int32_t chunk, GivenNumbers alibi_slopes,
                GivenMask mask, GivenNumbers sinks, bool partial, bool reproducible,
                const std::optional<std::string>& backend, GivenExecutor executor) {
  const Array query("q", q);
  expect_query(query);
  const KvArgument rows(kv, layer, layout_from(layout));
  const KvView& view = rows.get().view;
  const std::vector<std::int32_t> indptr = query_rows(qo_indptr, query, rows.get());
  Options options;
  set_rules(&options.core, scale, softcap, causal, window, sink_tokens, chunk, partial,
            reproducible);
  options.set_alibi_slopes(alibi_slopes, query.raw().shape[1]);
  options.set_sinks(sinks, query.raw().shape[1]);
  options.set_mask(mask);
  options.set_backend(backend);
  const ExecContext context = context_from(executor);
  const Results results(out, lse, query, view.v_head_dim, partial);
  const MutableTensorView out_view = results.out_view();
  const MutableTensorView lse_view = results.lse_view();
  Status status;
  {
    const Unlocked unlocked(rows.get().elements() + query.raw().num_elements());
    status = kvcache::attend(query.raw(), indptr, view, out_view, lse_view, options.core, context);
  }
  check(status);
  return results.give();
}

// For a mask that is the word "causal".
void expect_causal(const AttentionOptions& options) {
  if (options.causal) return;
  raise(PyExc_ValueError, "mask: found causal beside causal=False, expected one of the two");
}

// --- Plans. ---

struct PyPlan {
  AttentionPlan plan;
  Options options;
  std::int64_t num_heads = 0;
  std::int32_t most_queries = 0;  // of a sequence
  std::recursive_mutex mutex;
};

void plan_again(PyPlan& self, GivenKv kv, GivenIds qo_indptr, std::int64_t num_heads,
                std::int64_t layer, GivenLayout layout, std::optional<float> scale,
                std::optional<float> softcap, bool causal, std::optional<std::int32_t> window,
                std::int32_t sink_tokens, std::int32_t chunk, GivenNumbers alibi_slopes,
                GivenMask mask, GivenNumbers sinks, bool partial, bool reproducible,
                const std::optional<std::string>& backend, GivenExecutor executor) {
  const KvArgument rows(kv, layer, layout_from(layout));
  std::vector<std::int32_t> indptr = rows.get().qo_indptr;
  if (!qo_indptr.is_none()) indptr = int32_values("qo_indptr", qo_indptr);
  Options options;
  set_rules(&options.core, scale, softcap, causal, window, sink_tokens, chunk, partial,
            reproducible);
  options.set_alibi_slopes(alibi_slopes, num_heads);
  options.set_sinks(sinks, num_heads);
  options.set_mask(mask);
  options.set_backend(backend);
  options.mask_array.keep_memory();
  const ExecContext context = context_from(executor);
  Status status;
  {
    const Turn turn(self.mutex);
    status = self.plan.plan(rows.get().view, indptr, num_heads, options.core, context);
    if (status.ok()) {
      options.core.backend = nullptr;    // the plan knows
      std::swap(self.options, options);  // the old ones go without a Turn
      self.num_heads = num_heads;
      self.most_queries = 0;
      for (std::size_t i = 1; i < indptr.size(); ++i) {
        self.most_queries = std::max(self.most_queries, indptr[i] - indptr[i - 1]);
      }
    }
  }
  check(status);
}

Attended run(PyPlan& self, FirstArray q, GivenKv kv, std::int64_t layer, GivenLayout layout,
             GivenArray out, GivenLse lse, GivenMask mask, GivenExecutor executor) {
  const Array query("q", q);
  expect_query(query);
  const KvArgument rows(kv, layer, layout_from(layout));
  const KvView& view = rows.get().view;
  Options own_mask;
  own_mask.set_mask(mask);
  const ExecContext context = context_from(executor);
  const Results results(out, lse, query, view.v_head_dim, self.options.core.partial);
  const MutableTensorView out_view = results.out_view();
  const MutableTensorView lse_view = results.lse_view();
  Status status;
  {
    const Turn turn(self.mutex);
    AttentionOptions options = self.options.core;
    if (own_mask.names_causal) expect_causal(options);
    if (own_mask.core.mask.defined() || own_mask.names_causal) {
      options.mask = own_mask.core.mask;
    } else {
      self.options.mask_array.expect_memory("mask");
    }
    const Unlocked unlocked(rows.get().elements() + query.raw().num_elements());
    status = self.plan.run(query.raw(), view, out_view, lse_view, options, context);
  }
  check(status);
  return results.give();
}

constexpr char kPlanStats[] = "kvcache.typing.PlanStats";

Made<kPlanStats> stats(PyPlan& self) {
  nb::dict counters;
  const Turn turn(self.mutex);
  counters["backend"] = self.plan.backend();
  counters["path"] = self.options.core.reproducible ? "prefill" : path_name(self.most_queries);
  counters["rows_read"] = self.plan.rows_read();
  return counters;
}

// --- Partial results. ---

struct Part {
  Array out, lse;
};

Part part_of(const char* name, nb::handle pair) {
  if (!nb::isinstance<nb::sequence>(pair) || nb::len(pair) != 2) {
    raise(PyExc_TypeError, std::string(name) + ": found " + nb::type_name(pair.type()).c_str() +
                               ", expected a pair (out, lse) of arrays");
  }
  const std::string out_name = std::string(name) + "[0]";
  const std::string lse_name = std::string(name) + "[1]";
  Part part{Array(out_name.c_str(), nb::object(pair[0])),
            Array(lse_name.c_str(), nb::object(pair[1]))};
  (void)part.out.view(out_name.c_str());
  (void)part.lse.view(lse_name.c_str());
  return part;
}

PairLikeFirst merge(FirstPair a, FirstPair b, GivenArray out_given, GivenArray lse_given) {
  const Part first = part_of("a", a);
  const Part second = part_of("b", b);
  const auto result = [](nb::handle given, const Array& like) {
    if (!given.is_none()) return nb::borrow(given);
    return new_array(like.framework(), DType::kF32, like.raw().shape, like.raw().rank);
  };
  const nb::object out = result(out_given, first.out);
  const nb::object lse = result(lse_given, first.lse);
  const Array out_array("out", out);
  const Array lse_array("lse", lse);
  const MutableTensorView out_view = out_array.writable("out");
  const MutableTensorView lse_view = lse_array.writable("lse");
  Status status;
  {
    const Unlocked unlocked(out_view.num_elements());
    status = kvcache::merge(first.out.raw(), first.lse.raw(), second.out.raw(), second.lse.raw(),
                            out_view, lse_view);
  }
  check(status);
  return nb::make_tuple(out, lse);
}

LikeFirst finish(FirstArray out, GivenArray lse, GivenNumbers sinks) {
  const Array out_array("out", out);
  const Array lse_array("lse", lse);
  const MutableTensorView out_view = out_array.writable("out");
  if (out_view.rank != 3) {
    raise(PyExc_ValueError,
          "out: found " + out_array.describe() + ", expected [total_q, num_heads, v_head_dim]");
  }
  const std::vector<float> values = head_values("sinks", sinks, out_view.shape[1]);
  check(kvcache::finish(out_view, lse_array.view("lse"), values));
  return nb::borrow(out);
}

constexpr const char* kOptionsDoc =
    "scale: default 1 / sqrt(k_head_dim). softcap: c * tanh(s / c), 0 for none. causal: query i "
    "of L over S keys\nsees key j if j <= i + (S - L). window: keys less than window positions "
    "back, the query's own included,\nand the first sink_tokens positions; 0 or None for none. "
    "chunk: keys of the query's own chunk of that many\npositions, counted from the first visible "
    "one; 0 for none, goes with neither of these. "
    "alibi_slopes [num_heads]. mask: float32 [B or 1,\nnum_heads or 1, L, S] (or [L, S]) added to "
    "the scores, -inf unseen; booleans say True for seen; other\nfloating types are converted; the "
    "word \"causal\" is the rule of causal=True. "
    "sinks [num_heads]: learned sink logits, out / (1 + exp(sink - lse)). partial:\nleave sinks to "
    "finish(), because results will be merged; out is then float32. reproducible: one path for\n"
    "every query count. backend: a name of info()[\"backends\"].";

}  // namespace

void Options::set_alibi_slopes(nb::handle object, std::int64_t num_heads) {
  if (object.is_none()) return;
  alibi_slopes = head_values("alibi_slopes", object, num_heads);
  core.alibi_slopes = alibi_slopes.data();
}

void Options::set_sinks(nb::handle object, std::int64_t num_heads) {
  if (object.is_none()) return;
  sinks = head_values("sinks", object, num_heads);
  core.sinks = sinks.data();
}

void Options::set_mask(nb::handle object) {
  if (object.is_none()) return;
  if (nb::isinstance<nb::str>(object)) {
    (void)take(Mask::named(nb::cast<std::string>(object)));
    expect_causal(core);
    names_causal = true;
    return;
  }
  Array array("mask", object);
  TensorView mask = with_leading_axes(array.raw());
  if (array.raw().rank < 2) {
    raise(PyExc_ValueError, "mask: found " + array.describe() +
                                ", expected [B or 1, num_heads or 1, L, S] or its last axes");
  }
  if (array.element() != Element::kF32) {
    mask_values = additive_values(array, "mask", &mask);
  } else {
    mask_array = std::move(array);
  }
  core.mask = mask;
}

void Options::set_backend(const std::optional<std::string>& name) {
  if (!name) return;
  backend = *name;
  core.backend = backend.c_str();
}

Results::Results(nb::handle out_given, nb::handle lse_given, const Array& q,
                 std::int64_t v_head_dim, bool partial) {
  const TensorView& query = q.raw();
  std::int64_t shape[kMaxRank];
  std::copy(std::begin(query.shape), std::end(query.shape), shape);
  shape[query.rank - 1] = v_head_dim;
  const DType dtype = partial ? DType::kF32 : query.dtype;
  out = out_given.is_none() ? new_array(q.framework(), dtype, shape, query.rank)
                            : nb::borrow(out_given);
  out_array = Array("out", out);
  if (lse_given.is_none() || lse_given.ptr() == Py_False) return;
  lse = lse_given.ptr() == Py_True ? new_array(q.framework(), DType::kF32, shape, query.rank - 1)
                                   : nb::borrow(lse_given);
  lse_array = Array("lse", lse);
}

MutableTensorView Results::lse_view() const {
  return lse_array.defined() ? lse_array.writable("lse") : MutableTensorView();
}

Attended Results::give() const { return lse.is_valid() ? nb::make_tuple(out, lse) : out; }

void bind_attention(nb::module_& module) {
  static const std::string attend_doc =
      std::string(
          "Attention over rows in place.\n\n"
          "q: dense [B, num_heads, L, k_head_dim], or packed [total_q, num_heads, k_head_dim] "
          "with qo_indptr\n[num_seqs + 1], the rows of each sequence (not needed for one sequence "
          "and for the view of an open step).\nkv: a KvView, a cache (its `layer`), a LayerHandle, "
          "a CacheState, or a pair of arrays (key, value)\n[B, num_kv_heads, S, head_dim] "
          "(layout=\"nhd\": [B, S, num_kv_heads, head_dim]) with dense rows.\n"
          "Query head h reads KV head h // (num_heads // num_kv_heads).\n\n"
          "Returns out, shaped like q with v_head_dim, of q's type and library; (out, lse) if lse "
          "is True or an array:\nfloat32 natural logarithms [B, num_heads, L] or [total_q, "
          "num_heads]. `out` and `lse` may be given, and are\nwritten to: they share no memory "
          "with "
          "one another or with what is read, but `out` may be q itself. A query that\nsees no key "
          "gives 0 and -inf.\n\n") +
      kOptionsDoc +
      "\n\nErrors: ValueError for shapes, types and options; KeyError for a layer never populated; "
      "OSError for a\nbackend that is not here; TypeError for what is no array.";
  module.def("attend", &attend, "q"_a.none(), "kv"_a.none(), "qo_indptr"_a = nb::none(),
             nb::kw_only(), "layer"_a = 0, "layout"_a = "hnd", "out"_a = nb::none(),
             "lse"_a = false, "scale"_a = nb::none(), "softcap"_a = 0.0f, "causal"_a = true,
             "window"_a = 0, "sink_tokens"_a = 0, "chunk"_a = 0, "alibi_slopes"_a = nb::none(),
             "mask"_a = nb::none(), "sinks"_a = nb::none(), "partial"_a = false,
             "reproducible"_a = false, "backend"_a = nb::none(), "executor"_a = nb::none(),
             attend_doc.c_str());

  static const std::string plan_doc =
      std::string(
          "Plans again, in place, for views with the sequences, lengths, heads and formats of kv, "
          "whose rows are not\nread. qo_indptr [num_seqs + 1]: the queries of each sequence (None: "
          "those of kv, the view of an open step).\n\n") +
      kOptionsDoc + "\n\nErrors: ValueError, OSError; the plan is then as before.";
  nb::class_<PyPlan>(module, "AttentionPlan",
                     "The split of a step's attention into work, with its workspace: plan once a "
                     "step, run once a layer.\nAllocates only where a shape grew. Threads take "
                     "turns.")
      .def(nb::init<>())
      .def("plan", &plan_again, "kv"_a.none(), "qo_indptr"_a = nb::none(), nb::kw_only(),
           "num_heads"_a, "layer"_a = 0, "layout"_a = "hnd", "scale"_a = nb::none(),
           "softcap"_a = 0.0f, "causal"_a = true, "window"_a = 0, "sink_tokens"_a = 0,
           "chunk"_a = 0, "alibi_slopes"_a = nb::none(), "mask"_a = nb::none(),
           "sinks"_a = nb::none(), "partial"_a = false, "reproducible"_a = false,
           "backend"_a = nb::none(), "executor"_a = nb::none(), plan_doc.c_str())
      .def("run", &run, "q"_a.none(), "kv"_a.none(), nb::kw_only(), "layer"_a = 0,
           "layout"_a = "hnd", "out"_a = nb::none(), "lse"_a = false, "mask"_a = nb::none(),
           "executor"_a = nb::none(),
           "Attention as attend(), with the options of plan(); a mask given here goes before that "
           "of the plan.\n\nErrors: ValueError if the view or the shapes are not the planned ones.")
      .def_prop_ro(
          "rows_read", [](PyPlan& self) { return self.plan.rows_read(); },
          "K/V token rows one run reads, each counted once.")
      .def_prop_ro(
          "backend", [](PyPlan& self) { return self.plan.backend(); },
          "Name of the backend in use; \"\" before plan().")
      .def("stats", &stats, "Backend, path (\"decode\" or \"prefill\") and rows read.")
      .def("__repr__", [](PyPlan& self) {
        return std::string("AttentionPlan(backend=") + self.plan.backend() +
               ", num_heads=" + std::to_string(self.num_heads) +
               ", rows_read=" + std::to_string(self.plan.rows_read()) + ")";
      });

  module.def("merge", &merge, "a"_a.none(), "b"_a.none(), nb::kw_only(), "out"_a = nb::none(),
             "lse"_a = nb::none(),
             "Joins attention over two disjoint sets of keys, each a pair (out, lse), into "
             "attention over their union:\n(out, lse). out [..., D] and lse [...] are float32. The "
             "result may be either part itself, and shares no memory otherwise.\n\nErrors: "
             "ValueError for shapes, types and shared memory.");
  module.def("finish", &finish, "out"_a.none(), "lse"_a.none(), "sinks"_a.none(),
             "Applies learned sinks to merged parts, in place: out / (1 + exp(sink - lse)). "
             "Returns out.\n\nout [total_q, num_heads, D] float32, lse [total_q, num_heads] "
             "float32, sinks [num_heads].\nErrors: ValueError for shapes and types.");
}

}  // namespace kvcache::python
