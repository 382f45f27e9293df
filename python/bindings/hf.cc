#include "python/bindings/hf.h"

#include <nanobind/stl/unique_ptr.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/hf_attend.h"
#include "python/bindings/hf_paged.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

constexpr std::int64_t kMostTokens = 1 << 30;  // of a page

using PyMoment = nb::typed<nb::tuple, std::int64_t, std::int64_t>;

PyMoment as_tuple(const Moment& moment) { return nb::make_tuple(moment.length, moment.epoch); }

PyMoment append(PagedLayer& self, GivenArray key, GivenArray value) {
  const Array k("key", without_gradient("key_states", key));
  const Array v("value", without_gradient("value_states", value));
  const TensorView& key_rows = k.view("key");
  const TensorView& value_rows = v.view("value");
  const Turn turn(self.turn());
  Status status;
  {
    const Unlocked unlocked(key_rows.num_elements() + value_rows.num_elements());
    status = self.append(key_rows, value_rows);
  }
  check(status);
  return as_tuple(self.now());
}

TensorOrNone attend(PagedLayer& self, GivenTensor query, std::int64_t length, std::int64_t epoch,
                    float scale, bool causal, float softcap, std::int32_t window,
                    GivenArray first_visible, GivenArray mask, GivenArray sinks) {
  HfAttend call(query, scale, causal, softcap, window, first_visible, mask, sinks);
  const Turn turn(self.turn());
  if (self.now() != Moment{length, epoch}) return nb::none();
  nb::object out = call.new_out(self.spec().value().dim);
  Status status;
  {
    const Unlocked unlocked(times(self.elements(), call.query.shape[2]));
    status = self.attend(call);
  }
  check(status);
  return out;
}

AnyPair gather(PagedLayer& self, std::int64_t epoch) {
  const Turn turn(self.turn());
  if (epoch >= 0 && epoch != self.now().epoch) {
    raise(PyExc_RuntimeError,
          "rows of a paged layer: found rows that were cropped, reordered or reset since, expected "
          "to be read before that");
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
  counters["sequences"] = counted.sequences;
  return counters;
}

void bind_paged_layer(nb::module_& module) {
  nb::class_<PagedLayer>(module, "PagedLayer",
                         "A PagedCache of one layer whose sequences are the rows of a batch.")
      .def(
          "__init__",
          [](PagedLayer* self, std::int64_t page_size, std::int64_t max_tokens, GivenDType dtype) {
            if (page_size < 1 || page_size > kMostTokens || max_tokens < 1) {
              raise(PyExc_ValueError, "page_size and max_tokens: found " +
                                          std::to_string(page_size) + " and " +
                                          std::to_string(max_tokens) +
                                          ", expected at least 1, and pages of at most " +
                                          std::to_string(kMostTokens));
            }
            new (self) PagedLayer({page_size, max_tokens, dtype_from(dtype)});
          },
          "page_size"_a, "max_tokens"_a, "dtype"_a = nb::none())
      .def("append", &append, "key"_a, "value"_a,
           "Appends key [B, H, T, Dk] and value [B, H, T, Dv]; the first rows fix all but T.\n"
           "(S, epoch) comes back: epochs end when rows do more than to be appended to.\n\n"
           "Errors: ValueError for other shapes; RetryLater and NeverFits past max_tokens, "
           "MemoryError.")
      .def("attend", &attend, "query"_a, "length"_a, "epoch"_a, "scale"_a, "causal"_a, "softcap"_a,
           "window"_a, "first_visible"_a = nb::none(), "mask"_a = nb::none(),
           "sinks"_a = nb::none(),
           "Attention over all rows: see attend, without key and value. None where these are not "
           "the first\n`length` rows of that epoch.")
      .def("gather", &gather, "epoch"_a = -1,
           "Copies of all rows: key [B, H, S, Dk] and value [B, H, S, Dv].\n\n"
           "Errors: RuntimeError once that epoch has ended; -1: whichever it is.")
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
          "n"_a, "Drops the newest n rows.\n\nErrors: IndexError for more than there are.")
      .def("reset", in_turn([](PagedLayer& self) { self.reset(); }),
           "Length 0; the next rows may have any shape.")
      .def("fork", in_turn([](PagedLayer& self) { return take(self.fork()); }),
           "A layer of the same rows, in the same pages until either side writes to them.")
      .def_prop_ro("batch", in_turn([](PagedLayer& self) { return self.batch(); }),
                   "B; 0 before the first rows.")
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
  hf.def(
      "without_gradient",
      [](const char* name, GivenTensor tensor) -> LikeTensor {
        return LikeTensor(without_gradient(name, tensor));
      },
      "name"_a, "tensor"_a,
      "The tensor, without what autograd knows of it.\n\n"
      "Errors: TypeError for what is no torch.Tensor, NotImplementedError for one that autograd "
      "would follow.");
  hf.def(
      "attend", &hf_attend, "query"_a, "key"_a, "value"_a, "scale"_a, "causal"_a, "softcap"_a,
      "window"_a, "first_visible"_a = nb::none(), "mask"_a = nb::none(), "sinks"_a = nb::none(),
      "Attention of query [B, num_heads, L, Dk] over key [B, H, S, Dk] and value [B, H, S, Dv]: "
      "a new tensor\n[B, L, num_heads, Dv]. first_visible: int32 [B], rows before it do not exist; "
      "mask: float32\n[B or 1, num_heads or 1, L, S], added; sinks: float32 [num_heads].\n\n"
      "Errors: ValueError for shapes and types.");
}

}  // namespace kvcache::python
