#include "python/bindings/hf.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/hf_attend.h"
#include "python/bindings/hf_files.h"
#include "python/bindings/hf_interface.h"
#include "python/bindings/hf_paged.h"
#include "python/bindings/hf_prefix_bind.h"
#include "python/bindings/hf_weights.h"
#include "python/bindings/memory.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

constexpr std::int64_t kMostTokens = 1 << 30;  // of a page

using PyMoment = nb::typed<nb::tuple, std::int64_t, std::int64_t>;

PyMoment as_tuple(const Moment& moment) { return nb::make_tuple(moment.length, moment.epoch); }

Moment append(PagedLayer& self, const GivenRows& key, const GivenRows& value) {
  const Turn turn(self.turn());
  Status status;
  {
    const Unlocked unlocked(key.view().num_elements() + value.view().num_elements());
    status = self.append(key.view(), value.view());
  }
  check(status);
  return self.now();
}

// Whether the attention of that config is ours. None has none.
bool attends_in_place(nb::handle config) {
  static const nb::handle name =
      nb::steal(PyUnicode_InternFromString("_attn_implementation_internal")).release();
  if (config.is_none()) return false;
  // Not by the config's own __getattribute__, which is Python: a third of all its calls here.
  const nb::object chosen = nb::steal(PyObject_GenericGetAttr(config.ptr(), name.ptr()));
  if (!chosen.is_valid()) throw nb::python_error();
  return PyUnicode_Check(chosen.ptr()) &&
         PyUnicode_CompareWithASCIIString(chosen.ptr(), "kvcache") == 0;
}

// The last of `ahead` if it stands for these rows at that moment; it then leaves the list.
nb::object take_ahead(nb::list ahead, nb::handle rows, const Moment& now) {
  const Py_ssize_t last = PyList_GET_SIZE(ahead.ptr()) - 1;
  if (last < 0) return {};
  nb::object pair = nb::borrow(PyList_GET_ITEM(ahead.ptr(), last));
  Handed handed;
  if (!PyTuple_CheckExact(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2 ||
      !read_handed(PyTuple_GET_ITEM(pair.ptr(), 0), &handed) || !handed.rows.is(rows) ||
      handed.moment != now) {
    return {};
  }
  if (PyList_SetSlice(ahead.ptr(), last, last + 1, nullptr) != 0) throw nb::python_error();
  return pair;
}

using TensorPair = nb::typed<nb::tuple, LikeTensor, LikeTensor>;

TensorPair update(nb::pointer_and_handle<PagedLayer> self, GivenTensor key, GivenTensor value,
                  nb::typed<nb::list, TensorPair> ahead, nb::handle config, nb::callable hand_out) {
  const Moment now = append(*self.p, GivenRows("key", "key_states", key),
                            GivenRows("value", "value_states", value));
  if (attends_in_place(config)) {
    nb::object pair = take_ahead(ahead, self.h, now);
    if (pair.is_valid()) return nb::borrow<TensorPair>(pair);
  }
  return nb::borrow<TensorPair>(hand_out(key, value, now.length, now.epoch));
}

AnyPair gather(PagedLayer& self, std::int64_t epoch, std::int64_t length) {
  const Turn turn(self.turn());
  if (epoch >= 0 && epoch != self.now().epoch) {
    raise(PyExc_RuntimeError,
          "rows of a paged layer: found rows that were cropped, reordered or reset since, expected "
          "to be read before that");
  }
  if (length >= 0 && self.lets_go() && length != self.length()) {
    raise(PyExc_RuntimeError,
          "rows of a paged layer: found rows of a window that has moved on since, expected to be "
          "read before that");
  }
  const LayerSpec& spec = self.spec();
  MutableTensorView key_rows;
  MutableTensorView value_rows;
  const auto rows = [&](DType dtype, std::int64_t dim, MutableTensorView* view) {
    const std::int64_t shape[] = {self.batch(), spec.key().heads, self.length(), dim};
    return new_tensor(dtype, shape, 4, view);
  };
  nb::object key = rows(spec.key().format.dtype, spec.key().dim, &key_rows);
  nb::object value = rows(spec.value().format.dtype, spec.value().dim, &value_rows);
  Status status;
  {
    const Unlocked unlocked(self.elements());
    status = self.gather(key_rows, value_rows);
  }
  check(status);
  return nb::make_tuple(key, value);
}

// `call` of a layer, in turn.
template <typename Call>
auto in_turn(Call call) {
  return [call](PagedLayer& self) {
    const Turn turn(self.turn());
    return call(self);
  };
}

using Shape = nb::typed<nb::tuple, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

nb::typed<nb::tuple, Shape, Shape> shapes(const PagedLayer& self) {
  const LayerSpec& spec = self.spec();
  const auto shape = [&](std::int64_t dim) {
    return nb::make_tuple(self.batch(), spec.key().heads, self.length(), dim);
  };
  return nb::make_tuple(shape(spec.key().dim), shape(spec.value().dim));
}

nb::typed<nb::tuple, nb::str, nb::str> dtypes(const PagedLayer& self) {
  return nb::make_tuple(python_name(self.spec().key().format.dtype),
                        python_name(self.spec().value().format.dtype));
}

nb::typed<nb::dict, nb::str, nb::int_> stats(const PagedLayer& self) {
  const PagedStats counted = self.stats();
  nb::dict counters;
  counters["pages_held"] = counted.pages_held;
  counters["pages_copied"] = counted.pages_copied;
  counters["rows_copied"] = counted.rows_copied;
  counters["rows_encoded"] = counted.rows_encoded;
  counters["sequences"] = counted.sequences;
  return counters;
}

void bind_paged_layer(nb::module_& module) {
  nb::class_<PagedLayer> layer(
      module, "PagedLayer", "A PagedCache of one layer whose sequences are the rows of a batch.");
  bind_hf_files(module, layer);
  layer
      .def(
          "__init__",
          [](PagedLayer* self, std::int64_t page_size, std::int64_t max_tokens, GivenDType dtype,
             std::int64_t window, std::int64_t chunk, std::int64_t rewind_tokens,
             const std::optional<std::string>& k_format, const std::optional<std::string>& v_format,
             std::optional<bool> rotate, std::int64_t residual_tokens) {
            if (page_size < 1 || page_size > kMostTokens || max_tokens < 1) {
              raise(PyExc_ValueError, "page_size and max_tokens: found " +
                                          std::to_string(page_size) + " and " +
                                          std::to_string(max_tokens) +
                                          ", expected at least 1, and pages of at most " +
                                          std::to_string(kMostTokens));
            }
            Life life;
            life.window = window;
            life.chunk = chunk;
            new (self) PagedLayer({page_size, max_tokens, dtype_from(dtype), life, rewind_tokens,
                                   format_from("k_format", k_format, DType::kF32, rotate),
                                   format_from("v_format", v_format, DType::kF32, rotate),
                                   residual_tokens});
          },
          "page_size"_a, "max_tokens"_a, "dtype"_a = nb::none(), "window"_a = 0, "chunk"_a = 0,
          "rewind_tokens"_a = 0, "k_format"_a = nb::none(), "v_format"_a = nb::none(),
          "rotate"_a = nb::none(), "residual_tokens"_a = 0)
      .def(
          "append",
          [](PagedLayer& self, GivenArray key, GivenArray value) {
            return as_tuple(append(self, GivenRows("key", "key_states", key),
                                   GivenRows("value", "value_states", value)));
          },
          "key"_a, "value"_a,
          "Appends key [B, H, T, Dk] and value [B, H, T, Dv]; the first rows fix all but T.\n"
          "(S, epoch) comes back: epochs end when rows do more than to be appended to.\n\n"
          "Errors: ValueError for other shapes; RetryLater and NeverFits past max_tokens, "
          "MemoryError.")
      .def("update", &update, "key"_a, "value"_a, "ahead"_a, "config"_a.none(), "hand_out"_a,
           "append(), and (keys, values) of all rows: the last pair of `ahead` where that stands "
           "for "
           "these\nrows as they are now and the attention of `config` is ours, else hand_out(key, "
           "value, S, epoch).")
      .def(
          "attend",
          [](PagedLayer& self, GivenTensor query, std::int64_t length, std::int64_t epoch,
             float scale, bool causal, float softcap, std::int32_t window, std::int32_t chunk,
             GivenArray first_visible, GivenArray mask, GivenArray sinks,
             GivenArray lse) -> TensorOrNone {
            return attend_at(self, {length, epoch},
                             HfAttend(query, scale, causal, softcap, window, chunk, first_visible,
                                      mask, sinks, lse));
          },
          "query"_a, "length"_a, "epoch"_a, "scale"_a, "causal"_a, "softcap"_a, "window"_a,
          "chunk"_a, "first_visible"_a = nb::none(), "mask"_a = nb::none(), "sinks"_a = nb::none(),
          "lse"_a = nb::none(),
          "Attention over all rows: see attend, without key and value. None where these are not "
          "the first\n`length` rows of that epoch.")
      .def("gather", &gather, "epoch"_a = -1, "length"_a = -1,
           "Copies of all rows: key [B, H, S, Dk] and value [B, H, S, Dv]; zeros for what was let "
           "go.\n\nErrors: RuntimeError once that epoch has ended, and once rows that are let go "
           "have another length; -1:\nwhichever it is.")
      .def(
          "select",
          [](PagedLayer& self, GivenIds indices) {
            const std::vector<std::int64_t> values = int64_values("indices", indices);
            const Turn turn(self.turn());
            check(self.select(values));
          },
          "indices"_a,
          "Row i becomes what row indices[i] was; no row is copied.\n\nErrors: IndexError, and "
          "ValueError for none.")
      .def(
          "rewind",
          [](PagedLayer& self, std::int64_t n) {
            const Turn turn(self.turn());
            check(self.rewind(n));
          },
          "n"_a,
          "Drops the newest n rows.\n\nErrors: IndexError for more than there are, and where "
          "queries "
          "would then see what is gone.")
      .def(
          "reaches",
          [](PagedLayer& self, std::int64_t n) {
            const Turn turn(self.turn());
            return self.reaches(n).ok();
          },
          "n"_a, "Whether rewind(n) would find all that it needs.")
      .def(
          "record",
          [](PagedLayer& self, bool on) {
            const Turn turn(self.turn());
            check(self.record(on));
          },
          "on"_a, "Whether no row is let go from here on; False: those that may go, go.")
      .def(
          "loaded", in_turn([](PagedLayer& self) { self.loaded(); }),
          "What was appended came from elsewhere, zeros for what no later query sees: rewind() and "
          "reaches() go\nback to this length at most, where rows are let go.")
      .def("reset", in_turn([](PagedLayer& self) { self.reset(); }),
           "Length 0; the next rows may have any shape.")
      .def("fork", in_turn([](PagedLayer& self) { return take(self.fork()); }),
           "A layer of the same rows, in the same pages until either side writes to them.")
      .def_prop_ro("batch", in_turn([](PagedLayer& self) { return self.batch(); }),
                   "B; 0 before the first rows.")
      .def_prop_ro("records", in_turn([](PagedLayer& self) { return self.records(); }),
                   "Whether no row is let go.")
      .def_prop_ro("lets_go", in_turn([](PagedLayer& self) { return self.lets_go(); }),
                   "Whether it lets rows go that no later query sees.")
      .def_prop_ro("first", in_turn([](PagedLayer& self) { return self.first(); }),
                   "The first position of which rows are there.")
      .def_prop_ro("length", in_turn([](PagedLayer& self) { return self.length(); }),
                   "S, in tokens.")
      .def_prop_ro("now", in_turn([](PagedLayer& self) { return as_tuple(self.now()); }),
                   "(S, epoch).")
      .def_prop_ro("shapes", in_turn(shapes), "([B, H, S, Dk], [B, H, S, Dv]).")
      .def_prop_ro("dtypes", in_turn(dtypes), "Names of the element types of keys and values.")
      .def("nbytes", in_turn([](PagedLayer& self) { return self.nbytes(); }),
           "Bytes of the rows stored, those of forks included.")
      .def("reserved_bytes", in_turn([](PagedLayer& self) { return self.reserved_bytes(); }),
           "Bytes held for them.")
      .def("stats", in_turn(stats), "Counters, those of forks included.");
}

}  // namespace

void bind_hf(nb::module_& module) {
  nb::module_ hf = module.def_submodule("hf", "What kvcache.hf needs of C++.");
  bind_paged_layer(hf);
  bind_attention_interface(hf);
  bind_model_rows(hf);
  bind_weights(hf);
  hf.def(
      "without_gradient",
      [](const char* name, GivenTensor tensor) -> LikeTensor {
        return LikeTensor(without_gradient(name, tensor));
      },
      "name"_a, "tensor"_a,
      "The tensor, without what autograd knows of it.\n\n"
      "Errors: TypeError for what is no torch.Tensor, NotImplementedError for one that autograd "
      "would follow.");
  hf.def("attend", &hf_attend, "query"_a, "key"_a, "value"_a, "scale"_a, "causal"_a, "softcap"_a,
         "window"_a, "chunk"_a, "first_visible"_a = nb::none(), "mask"_a = nb::none(),
         "sinks"_a = nb::none(), "lse"_a = nb::none(),
         "Attention of query [B, num_heads, L, Dk] over key [B, H, S, Dk] and value [B, H, S, Dv]: "
         "a new tensor\n[B, L, num_heads, Dv]. window, chunk: tokens, 0 for none, not both; "
         "first_visible: int32 [B], rows before it do not exist; "
         "mask: float32\n[B or 1, num_heads or 1, L, S], added; sinks: float32 [num_heads]; lse: "
         "float32\n"
         "[B, num_heads, L], which is written.\n\n"
         "Errors: ValueError for shapes and types.");
}

}  // namespace kvcache::python
