#include "python/bindings/hf_interface.h"

#include <cmath>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

// A word that attributes and keywords are looked up by, for as long as the process lives.
nb::handle word(const char* text) { return nb::steal(PyUnicode_InternFromString(text)).release(); }

struct Attributes {
  nb::handle kv_source = word("kv_source");  // of PagedRows
  nb::handle kv_index = word("kv_index");    // likewise
  nb::handle rule = word("rule");            // of a Mask
  nb::handle eager = word("eager");          // likewise
  nb::handle num_keys = word("num_keys");    // likewise
  nb::handle is_causal = word("is_causal");  // of a module
  nb::handle compiling = word("compiling");  // of what records attention weights
};

const Attributes& attributes() {
  static const Attributes once;
  return once;
}

// Keywords that are read; others must be inert.
enum Keyword { kDropout, kScaling, kIsCausal, kSoftcap, kWindow, kFirstUnread, kKeywords = 9 };

struct Words {
  nb::handle of[kKeywords] = {word("dropout"),       word("scaling"),        word("is_causal"),
                              word("softcap"),       word("sliding_window"), word("s_aux"),
                              word("position_bias"), word("sinks"),          word("indices")};
};

bool is_given(PyObject* value) noexcept { return value != nullptr && value != Py_None; }

// Readers of what is of the very type that is expected; false for anything else.

bool read_bool(PyObject* value, bool* to) noexcept {
  *to = value == Py_True;
  return *to || value == Py_False;
}

bool read_float(PyObject* value, double* to) noexcept {
  if (!PyFloat_CheckExact(value)) return false;
  *to = PyFloat_AS_DOUBLE(value);
  return true;
}

bool read_int64(PyObject* value, std::int64_t* to) noexcept {
  if (!PyLong_CheckExact(value)) return false;
  int overflow = 0;
  *to = PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow == 0;
}

// Tokens of a window or chunk, at least `least`.
bool read_tokens(PyObject* value, std::int64_t least, std::int32_t* to) noexcept {
  std::int64_t tokens = 0;
  if (!read_int64(value, &tokens) || tokens < least ||
      tokens > std::numeric_limits<std::int32_t>::max()) {
    return false;
  }
  *to = static_cast<std::int32_t>(tokens);
  return true;
}

// Dense int32 [batch].
bool read_positions(nb::handle tensor, std::int64_t batch, const std::int32_t** to) {
  const std::optional<TensorView> view = plain_tensor(tensor);
  if (!view.has_value() || view->dtype != DType::kI32 || view->rank != 1 ||
      view->shape[0] != batch || (batch > 1 && view->strides[0] != 1)) {
    return false;
  }
  *to = static_cast<const std::int32_t*>(view->data);
  return true;
}

// One call, as far as it is of the common kind. Each reader is false for anything else, with no
// error set.
struct Call {
  PyObject* module;
  nb::handle query, key, value, mask;
  PyObject* keywords[kKeywords] = {};

  nb::object rule;  // holds first_visible
  std::int64_t window_or_chunk() const noexcept { return options.window + options.chunk; }
  AttentionOptions options;
  const std::int32_t* first_visible = nullptr;

  bool read_keywords(PyObject* const* values, PyObject* names, nb::handle inert) {
    static const Words words;
    const Py_ssize_t count = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* const name = PyTuple_GET_ITEM(names, i);
      int keyword = 0;
      while (keyword < kKeywords && words.of[keyword].ptr() != name) ++keyword;
      if (keyword < kKeywords) {
        keywords[keyword] = values[i];
      } else if (PySet_Contains(inert.ptr(), name) != 1) {
        PyErr_Clear();
        return false;
      }
    }
    for (int keyword = kFirstUnread; keyword < kKeywords; ++keyword) {
      if (is_given(keywords[keyword])) return false;
    }
    return true;
  }

  // What the keywords say, but for who sees whom.
  bool read_numbers(std::int64_t head_dim) {
    double number = 0;
    if (keywords[kDropout] != nullptr &&
        (!read_float(keywords[kDropout], &number) || number != 0)) {
      return false;
    }
    double scale = std::pow(static_cast<double>(head_dim), -0.5);
    if (is_given(keywords[kScaling]) && !read_float(keywords[kScaling], &scale)) return false;
    options.scale = static_cast<float>(scale);
    if (is_given(keywords[kSoftcap])) {
      if (!read_float(keywords[kSoftcap], &number)) return false;
      options.softcap = static_cast<float>(number);
    }
    return true;
  }

  // Who sees whom, of a module's word and the keywords, where there is no mask.
  bool read_module() {
    if (is_given(keywords[kWindow]) && !read_tokens(keywords[kWindow], 1, &options.window)) {
      return false;
    }
    if (is_given(keywords[kIsCausal])) return read_bool(keywords[kIsCausal], &options.causal);
    const nb::object said =
        nb::getattr(nb::handle(module), attributes().is_causal, nb::handle(Py_True));
    return read_bool(said.ptr(), &options.causal);
  }

  // The same of a mask of ours to which nobody has written.
  bool read_rule(std::int64_t keys, std::int64_t batch) {
    const Attributes& names = attributes();
    std::int64_t num_keys = 0;
    const nb::object said = mask.attr(names.num_keys);
    if (!nb::object(mask.attr(names.eager)).is_none() || !read_int64(said.ptr(), &num_keys) ||
        num_keys != keys) {
      return false;
    }
    rule = mask.attr(names.rule);
    if (!PyTuple_Check(rule.ptr()) || PyTuple_GET_SIZE(rule.ptr()) != 5) return false;
    const auto field = [&](int index) { return PyTuple_GET_ITEM(rule.ptr(), index); };
    return read_bool(field(0), &options.causal) && read_tokens(field(1), 0, &options.window) &&
           read_tokens(field(2), 0, &options.chunk) && field(4) == Py_None &&
           (field(3) == Py_None || read_positions(field(3), batch, &first_visible));
  }
};

// What stands behind the function that is given to transformers.
struct Interface {
  PyMethodDef method = {};
  std::string doc;
  nb::object in_full;     // takes all calls that are not of the common kind
  nb::object paged_rows;  // types
  nb::object mask;
  nb::object inert;     // names of keywords that change nothing
  nb::object recorder;  // of transformers, what asks for attention weights, ...
  nb::object recorded;  // ... its context variable
  nb::object calls;     // the context variable of a probe

  // Whether a call is to be recorded or counted.
  bool is_watched() const {
    if (!recorder.is(recorded)) {
      const nb::object compiling =
          nb::getattr(recorder, attributes().compiling, nb::handle(Py_None));
      if (compiling.ptr() != Py_False) return true;
    }
    for (const nb::object* variable : {&recorded, &calls}) {
      PyObject* found = nullptr;
      if (PyContextVar_Get(variable->ptr(), Py_None, &found) != 0) throw nb::python_error();
      if (!nb::steal(found).is_none()) return true;
    }
    return false;
  }

  // The result, or nothing, and no error set, for a call of another kind.
  nb::object attend(PyObject* const* arguments, Py_ssize_t count, PyObject* names) const {
    if (count != 5) return {};
    Call call{arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], {}, {}, {}, {}};
    if (!call.key.type().is(paged_rows) || !call.value.type().is(paged_rows) ||
        !call.read_keywords(arguments + count, names, inert) || is_watched()) {
      return {};
    }
    Handed handed;
    const nb::object values = call.value.attr(attributes().kv_source);
    if (!read_handed(call.key, &handed) || !handed.source.is(values)) return {};
    std::int64_t key_index = 0, value_index = 0;
    if (!read_int64(nb::object(call.key.attr(attributes().kv_index)).ptr(), &key_index) ||
        !read_int64(nb::object(call.value.attr(attributes().kv_index)).ptr(), &value_index) ||
        key_index != 0 || value_index != 1) {
      return {};
    }
    const std::optional<TensorView> query = plain_tensor(call.query);
    if (!query.has_value() || query->rank != 4 || !is_floating(query->dtype)) return {};
    if (!call.read_numbers(query->shape[3])) return {};
    if (!(call.mask.is_none()         ? call.read_module()
          : call.mask.type().is(mask) ? call.read_rule(handed.moment.length, query->shape[0])
                                      : false)) {
      return {};
    }
    auto& layer = nb::cast<PagedLayer&>(handed.rows);
    if (layer.lets_go() && call.window_or_chunk() == 0) return {};
    nb::object out = attend_at(layer, handed.moment,
                               HfAttend(GivenRows(*query), call.options, call.first_visible));
    return out.is_none() ? nb::object() : out;
  }
};

PyObject* attend(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                 PyObject* names) noexcept {
  const auto& interface = *static_cast<Interface*>(PyCapsule_GetPointer(self, nullptr));
  try {
    const nb::object out = interface.attend(arguments, count, names);
    if (out.is_valid()) return PyTuple_Pack(2, out.ptr(), Py_None);
  } catch (nb::python_error& error) {
    error.restore();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return PyObject_Vectorcall(interface.in_full.ptr(), arguments, static_cast<std::size_t>(count),
                             names);
}

nb::callable new_interface(nb::callable in_full, nb::type_object paged_rows, nb::type_object mask,
                           nb::frozenset inert, nb::object recorder, nb::object calls) {
  auto made = std::make_unique<Interface>();
  made->doc = "attention(module, query, key, value, attention_mask, **keywords)\n--\n\n" +
              nb::cast<std::string>(nb::str(nb::object(in_full.attr("__doc__"))));
  made->method.ml_name = "attention";
  made->method.ml_meth = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&attend));
  made->method.ml_flags = METH_FASTCALL | METH_KEYWORDS;
  made->method.ml_doc = made->doc.c_str();
  made->in_full = in_full;
  made->paged_rows = paged_rows;
  made->mask = mask;
  made->inert = inert;
  made->recorder = recorder;
  made->recorded = nb::getattr(recorder, "context_var", recorder);
  made->calls = calls;
  for (const nb::object* variable : {&made->recorded, &made->calls}) {
    if (PyContextVar_CheckExact(variable->ptr())) continue;
    raise(PyExc_TypeError, "attention_interface: found no context variable, expected two");
  }
  PyMethodDef* const method = &made->method;
  const nb::capsule self(made.get(),
                         [](void* held) noexcept { delete static_cast<Interface*>(held); });
  (void)made.release();
  nb::object module_name = in_full.attr("__module__");
  PyObject* const function = PyCFunction_NewEx(method, self.ptr(), module_name.ptr());
  if (function == nullptr) throw nb::python_error();
  return nb::steal<nb::callable>(function);
}

}  // namespace

bool read_handed(nb::handle tensor, Handed* handed) {
  handed->source = nb::getattr(tensor, attributes().kv_source, nb::none());
  PyObject* const source = handed->source.ptr();
  if (!PyTuple_CheckExact(source) || PyTuple_GET_SIZE(source) != 3) return false;
  handed->rows = PyTuple_GET_ITEM(source, 0);
  return read_int64(PyTuple_GET_ITEM(source, 1), &handed->moment.length) &&
         read_int64(PyTuple_GET_ITEM(source, 2), &handed->moment.epoch) &&
         nb::isinstance<PagedLayer>(handed->rows);
}

nb::object attend_at(PagedLayer& layer, const Moment& moment, HfAttend call) {
  const Turn turn(layer.turn());
  if (layer.now() != moment) return nb::none();
  nb::object out = call.new_out(layer.spec().value().dim);
  Status status;
  {
    const Unlocked unlocked(times(layer.elements(), call.query.shape[2]));
    status = layer.attend(call);
  }
  // A mask over rows of two parts that it does not count alike: the caller gathers them.
  if (status.code() == StatusCode::kUnsupported) return nb::none();
  check(status);
  return out;
}

void bind_attention_interface(nb::module_& hf) {
  hf.def(
      "attention_interface", &new_interface, "in_full"_a, "paged_rows"_a, "mask"_a, "inert"_a,
      "recorder"_a, "calls"_a,
      "The attention to register with transformers. It does itself what has nothing to refuse or "
      "to convert: rows of a\npaged layer (`paged_rows`) under no mask or a rule (`mask`), other "
      "keywords being `inert`, while nobody\nasks for attention weights (`recorder`) or counts "
      "`calls`. in_full(...) is called for everything else.");
}

}  // namespace kvcache::python
