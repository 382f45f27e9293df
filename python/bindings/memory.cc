#include "python/bindings/memory.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/layer_spec.h"
#include "kvcache/memory.h"
#include "kvcache/memory_plan.h"
#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/signatures.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

struct PyThreadPool {
  std::unique_ptr<Executor> executor;
};

CacheKind kind_from(const std::string& name) {
  if (name == "dynamic") return CacheKind::kDynamic;
  if (name == "static") return CacheKind::kStatic;
  if (name == "paged") return CacheKind::kPaged;
  raise(PyExc_ValueError, "kind: found " + name + ", expected dynamic, static or paged");
}

PlannedBytes plan(const std::string& kind, const std::vector<LayerSpec>& layers,
                  std::int64_t batch_size, std::int64_t seq_length, std::int64_t max_length,
                  std::int64_t page_size, std::int64_t num_pages, GivenLayout layout,
                  std::int64_t step_tokens, std::int64_t rewind_tokens,
                  std::int64_t residual_tokens) {
  MemoryPlanRequest request;
  request.layers = layers;
  request.batch_size = batch_size;
  request.seq_length = seq_length;
  request.max_length = max_length;
  request.page_size = page_size;
  request.num_pages = num_pages;
  request.layout = layout_from(layout);
  request.step_tokens = step_tokens;
  request.rewind_tokens = rewind_tokens;
  request.residual_tokens = residual_tokens;
  return take(plan_memory(kind_from(kind), request));
}

DType floating(nb::handle object, const char* name) {
  const auto dtype = dtype_from(object, name);
  return dtype.value_or(DType::kF32);
}

std::optional<std::string> form_name(const RowFormat& format) {
  if (!format.is_coded()) return std::nullopt;
  return kvcache::name_of(format.kind);
}

// ", k_format='int8'" of a coded buffer, and whether its rows are turned where its form leaves that
// open.
std::string coded_repr(const std::string& letter, const RowFormat& format) {
  if (!format.is_coded()) return "";
  std::string text = ", " + letter + "_format='" + kvcache::name_of(format.kind) + "'";
  if (format.rotate != coded(format.kind).rotate) {
    text += ", " + letter + "_rotate=" + (format.rotate ? "True" : "False");
  }
  return text;
}

std::int64_t token_bytes(const LayerSpec& spec) {
  const LayerSpec all = spec.living(Life());
  MemoryPlanRequest request;
  request.layers = std::span(&all, 1);
  request.seq_length = 1;
  const bool codes = spec.key().format.is_coded() || spec.value().format.is_coded();
  (void)take(plan_memory(codes ? CacheKind::kPaged : CacheKind::kDynamic, request));
  return bytes_per_token(spec);
}

void bind_spec(nb::module_& module) {
  nb::class_<LayerSpec>(
      module, "LayerSpec",
      "What one layer stores per token: num_kv_heads rows of k_head_dim and "
      "v_head_dim elements.\n\nv_head_dim defaults to k_head_dim, v_dtype to "
      "k_dtype. k_format and v_format: how a PagedCache stores rows, None (plain, "
      "in k_dtype and v_dtype) or\n\"int8\", \"fp8_e4m3\", \"int4\", \"lm4\", "
      "\"q8_0\", \"q4_0\": codes of 8 or 4 bits, which attention reads in place. "
      "rotate: whether coded\nrows are stored turned by a Hadamard matrix; None: "
      "int4 and lm4 are. The dtypes of coded rows are those of copies.\nWhat a PagedCache keeps of "
      "them: all, or by window (tokens, the "
      "query's\nown included) with the first sink_tokens, or by chunk: what no "
      "later query sees by the same words of attend()\ngoes back.")
      .def(
          "__init__",
          [](LayerSpec* self, std::int64_t num_kv_heads, std::int64_t k_head_dim,
             std::optional<std::int64_t> v_head_dim, GivenDType k_dtype, GivenDType v_dtype,
             std::int64_t window, std::int64_t chunk, std::int32_t sink_tokens,
             const std::optional<std::string>& k_format, const std::optional<std::string>& v_format,
             std::optional<bool> rotate) {
            const DType k = floating(k_dtype, "k_dtype");
            const DType v = v_dtype.is_none() ? k : floating(v_dtype, "v_dtype");
            new (self)
                LayerSpec(LayerSpec::kv(num_kv_heads, k_head_dim, v_head_dim.value_or(k_head_dim),
                                        format_from("k_format", k_format, k, rotate),
                                        format_from("v_format", v_format, v, rotate))
                              .living({window, chunk, sink_tokens}));
          },
          "num_kv_heads"_a, "k_head_dim"_a, "v_head_dim"_a = nb::none(), "k_dtype"_a = "float32",
          "v_dtype"_a = nb::none(), nb::kw_only(), "window"_a = 0, "chunk"_a = 0,
          "sink_tokens"_a = 0, "k_format"_a = nb::none(), "v_format"_a = nb::none(),
          "rotate"_a = nb::none())
      .def_prop_ro("k_format", [](const LayerSpec& s) { return form_name(s.key().format); })
      .def_prop_ro("v_format", [](const LayerSpec& s) { return form_name(s.value().format); })
      .def_prop_ro("k_rotate", [](const LayerSpec& s) { return s.key().format.rotate; })
      .def_prop_ro("v_rotate", [](const LayerSpec& s) { return s.value().format.rotate; })
      .def_prop_ro("window", [](const LayerSpec& s) { return s.life.window; })
      .def_prop_ro("chunk", [](const LayerSpec& s) { return s.life.chunk; })
      .def_prop_ro("sink_tokens", [](const LayerSpec& s) { return s.life.sink_tokens; })
      .def_prop_ro("num_kv_heads", [](const LayerSpec& s) { return s.key().heads; })
      .def_prop_ro("k_head_dim", [](const LayerSpec& s) { return s.key().dim; })
      .def_prop_ro("v_head_dim", [](const LayerSpec& s) { return s.value().dim; })
      .def_prop_ro("k_dtype", [](const LayerSpec& s) { return python_name(s.key().format.dtype); })
      .def_prop_ro("v_dtype",
                   [](const LayerSpec& s) { return python_name(s.value().format.dtype); })
      .def_prop_ro("bytes_per_token", &token_bytes,
                   "K and V together.\n\nErrors: ValueError for sizes that no cache could have.")
      .def(
          "__eq__", [](const LayerSpec& a, const LayerSpec& b) { return a == b; },
          nb::is_operator(), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__",
           [](const LayerSpec& s) {
             return nb::hash(nb::make_tuple(
                 s.key().heads, s.key().dim, s.value().dim, static_cast<int>(s.key().format.dtype),
                 static_cast<int>(s.value().format.dtype), static_cast<int>(s.key().format.kind),
                 static_cast<int>(s.value().format.kind), s.life.window, s.life.chunk,
                 s.life.sink_tokens));
           })
      .def("__repr__", [](const LayerSpec& s) {
        return "LayerSpec(num_kv_heads=" + std::to_string(s.key().heads) +
               ", k_head_dim=" + std::to_string(s.key().dim) +
               ", v_head_dim=" + std::to_string(s.value().dim) +
               ", k_dtype=" + python_name(s.key().format.dtype) +
               ", v_dtype=" + python_name(s.value().format.dtype) +
               coded_repr("k", s.key().format) + coded_repr("v", s.value().format) +
               (s.life.window > 0 ? ", window=" + std::to_string(s.life.window) : "") +
               (s.life.chunk > 0 ? ", chunk=" + std::to_string(s.life.chunk) : "") +
               (s.life.sink_tokens > 0 ? ", sink_tokens=" + std::to_string(s.life.sink_tokens)
                                       : "") +
               ")";
      });
}

}  // namespace

RowFormat format_from(const char* name, const std::optional<std::string>& form, DType dtype,
                      std::optional<bool> rotate) {
  if (!form) return plain(dtype);
  RowFormat format = coded(take(coded_form(name, form->c_str())));
  format.dtype = dtype;
  if (rotate) format.rotate = *rotate;
  return format;
}

ExecContext context_from(nb::handle executor) {
  ExecContext context;
  if (executor.is_none()) return context;
  if (!nb::isinstance<PyThreadPool>(executor)) {
    raise(PyExc_TypeError, std::string("executor: found ") +
                               nb::type_name(executor.type()).c_str() + ", expected a ThreadPool");
  }
  context.executor = nb::cast<const PyThreadPool&>(executor).executor.get();
  return context;
}

void bind_memory(nb::module_& module) {
  bind_spec(module);
  nb::class_<LimitedMemory>(module, "LimitedMemory",
                            "Memory of the system that refuses commits past limit_bytes in total: "
                            "MemoryError in the caches\nthat use it, which stay as they were.")
      .def(nb::new_([](std::int64_t limit_bytes) {
             return std::make_shared<LimitedMemory>(limit_bytes);
           }),
           "limit_bytes"_a)
      .def_prop_ro("committed_bytes", &LimitedMemory::committed_bytes)
      .def("__repr__", [](const LimitedMemory& self) {
        return "LimitedMemory(committed_bytes=" + std::to_string(self.committed_bytes()) + ")";
      });
  nb::class_<PyThreadPool>(module, "ThreadPool",
                           "Threads of its own for the calls that take an executor, the caller "
                           "included.\n\nErrors: ValueError outside 1 .. 1024.")
      .def(
          "__init__",
          [](PyThreadPool* self, std::int32_t num_threads) {
            new (self) PyThreadPool{take(make_thread_pool(num_threads))};
          },
          "num_threads"_a)
      .def_prop_ro("concurrency",
                   [](const PyThreadPool& self) { return self.executor->concurrency(); })
      .def("__repr__", [](const PyThreadPool& self) {
        return "ThreadPool(" + std::to_string(self.executor->concurrency()) + ")";
      });
  nb::class_<PlannedBytes>(module, "PlannedBytes", "What plan_memory() found.")
      .def_ro("nbytes", &PlannedBytes::nbytes, "Rows stored.")
      .def_ro("reserved_bytes", &PlannedBytes::reserved_bytes, "Held for them.")
      .def_ro("num_pages", &PlannedBytes::num_pages,
              "Paged: the most pages taken at once, over all "
              "groups.")
      .def("__repr__", [](const PlannedBytes& self) {
        return "PlannedBytes(nbytes=" + std::to_string(self.nbytes) +
               ", reserved_bytes=" + std::to_string(self.reserved_bytes) +
               ", num_pages=" + std::to_string(self.num_pages) + ")";
      });
  module.def(
      "plan_memory", &plan, "kind"_a, "layers"_a, nb::kw_only(), "batch_size"_a = 1,
      "seq_length"_a = 0, "max_length"_a = 0, "page_size"_a = 16, "num_pages"_a = 0,
      "layout"_a = "hnd", "step_tokens"_a = 0, "rewind_tokens"_a = 0, "residual_tokens"_a = 0,
      "What a fresh cache weighs when it is filled by appends to seq_length tokens, equal "
      "to the byte to what it\nreports then.\n\nkind: \"dynamic\", \"static\" (of capacity "
      "max_length) or \"paged\"; layers: a list of LayerSpec. Paged layers with windows or "
      "chunks: how many\ntokens a step appends at most, to every sequence at once (0: all in "
      "one), and the cache's rewind_tokens; residual_tokens likewise.\nErrors: ValueError for "
      "sizes that no cache could "
      "have.");
}

}  // namespace kvcache::python
