#include "python/bindings/paged_config.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/memory.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

constexpr std::pair<const char*, Operation> kOperations[] = {
    {"fork", Operation::kFork},     {"truncate", Operation::kTruncate},
    {"rewind", Operation::kRewind}, {"reorder", Operation::kReorder},
    {"gather", Operation::kGather}, {"remove", Operation::kRemove},
    {"shift", Operation::kShift},   {"parents", Operation::kParents},
};

PyConfig make_config(std::vector<LayerSpec> layers, std::int64_t page_size, std::int64_t num_pages,
                     std::int64_t budget_bytes, nb::handle layout,
                     std::shared_ptr<LimitedMemory> memory,
                     const std::vector<std::string>& required, std::int64_t rewind_tokens,
                     std::int64_t residual_tokens, bool prefixes) {
  PyConfig config;
  config.core.layers = std::move(layers);
  config.core.page_size = page_size;
  config.core.num_pages = num_pages;
  config.core.budget_bytes = budget_bytes;
  config.core.rewind_tokens = rewind_tokens;
  config.core.residual_tokens = residual_tokens;
  config.core.prefixes = prefixes;
  config.core.layout = layout_from(layout);
  config.memory = std::move(memory);
  config.core.memory = config.memory.get();
  for (const std::string& name : required) config.core.required.push_back(operation_from(name));
  return config;
}

PyConfig uniform(std::int64_t num_layers, std::int64_t num_kv_heads, std::int64_t head_dim,
                 GivenDType dtype, std::int64_t page_size, std::int64_t num_pages,
                 std::int64_t budget_bytes, GivenLayout layout,
                 std::shared_ptr<LimitedMemory> memory, const std::vector<std::string>& required,
                 std::int64_t rewind_tokens, const std::optional<std::string>& k_format,
                 const std::optional<std::string>& v_format, std::optional<bool> rotate,
                 std::int64_t residual_tokens, bool prefixes) {
  if (num_layers < 1) {
    raise(PyExc_ValueError,
          "num_layers: found " + std::to_string(num_layers) + ", expected at least 1");
  }
  const DType element = dtype_from(dtype).value_or(DType::kF32);
  const LayerSpec spec = LayerSpec::kv(num_kv_heads, head_dim, head_dim,
                                       format_from("k_format", k_format, element, rotate),
                                       format_from("v_format", v_format, element, rotate));
  return make_config(std::vector<LayerSpec>(static_cast<std::size_t>(num_layers), spec), page_size,
                     num_pages, budget_bytes, layout, std::move(memory), required, rewind_tokens,
                     residual_tokens, prefixes);
}

std::vector<std::string> required_of(const PyConfig& self) {
  std::vector<std::string> names;
  for (const Operation required : self.core.required) {
    for (const auto& [word, operation] : kOperations) {
      if (operation == required) names.emplace_back(word);
    }
  }
  return names;
}

std::string repr_config(const PyConfig& self) {
  return "CacheConfig(layers=" + std::to_string(self.core.layers.size()) +
         ", page_size=" + std::to_string(self.core.page_size) +
         ", num_pages=" + std::to_string(self.core.num_pages) +
         ", budget_bytes=" + std::to_string(self.core.budget_bytes) +
         ", layout=" + kvcache::name_of(self.core.layout) + ")";
}

}  // namespace

Operation operation_from(const std::string& name) {
  for (const auto& [word, operation] : kOperations) {
    if (name == word) return operation;
  }
  raise(PyExc_ValueError, "operation: found " + name +
                              ", expected fork, truncate, rewind, reorder, gather, remove, shift "
                              "or parents");
}

void bind_paged_config(nb::module_& module) {
  nb::class_<PyConfig>(
      module, "CacheConfig",
      "What a PagedCache is made of.\n\n"
      "layers: a list of LayerSpec; those of equal life form a group with one block table. "
      "page_size: tokens.\nnum_pages: of each group at most; 0: as many as budget_bytes allows "
      "one. "
      "budget_bytes: bound on reserved_bytes(), one over all groups; 0:\nas much as num_pages "
      "needs. layout: of the "
      "tokens within a page. required: operations that must be there\n(see supports()). "
      "rewind_tokens: how "
      "far below the longest it has been a sequence can be taken back in layers\nwith a window or "
      "chunk: they hold that many more. residual_tokens: the newest ones that stay plain in coded "
      "layers, of their\nformat's dtype; those before are coded in whole "
      "pages. prefixes: room for the index of a PrefixCache;\nnot beside residual_tokens.")
      .def(
          "__init__",
          [](PyConfig* self, std::vector<LayerSpec> layers, std::int64_t page_size,
             std::int64_t num_pages, std::int64_t budget_bytes, GivenLayout layout,
             std::shared_ptr<LimitedMemory> memory, const std::vector<std::string>& required,
             std::int64_t rewind_tokens, std::int64_t residual_tokens, bool prefixes) {
            new (self) PyConfig(make_config(std::move(layers), page_size, num_pages, budget_bytes,
                                            layout, std::move(memory), required, rewind_tokens,
                                            residual_tokens, prefixes));
          },
          "layers"_a, nb::kw_only(), "page_size"_a = 16, "num_pages"_a = 0, "budget_bytes"_a = 0,
          "layout"_a = "hnd", "memory"_a.none() = nb::none(),
          "required"_a = std::vector<std::string>(), "rewind_tokens"_a = 0, "residual_tokens"_a = 0,
          "prefixes"_a = false)
      .def_static("uniform", &uniform, "num_layers"_a, "num_kv_heads"_a, "head_dim"_a,
                  "dtype"_a = "float32", nb::kw_only(), "page_size"_a = 16, "num_pages"_a = 0,
                  "budget_bytes"_a = 0, "layout"_a = "hnd", "memory"_a.none() = nb::none(),
                  "required"_a = std::vector<std::string>(), "rewind_tokens"_a = 0,
                  "k_format"_a = nb::none(), "v_format"_a = nb::none(), "rotate"_a = nb::none(),
                  "residual_tokens"_a = 0, "prefixes"_a = false,
                  "num_layers equal layers, K and V of the same head size. k_format, v_format and "
                  "rotate: see LayerSpec.")
      .def_prop_ro("layers", [](const PyConfig& self) { return self.core.layers; })
      .def_prop_ro("page_size", [](const PyConfig& self) { return self.core.page_size; })
      .def_prop_ro("num_pages", [](const PyConfig& self) { return self.core.num_pages; })
      .def_prop_ro("budget_bytes", [](const PyConfig& self) { return self.core.budget_bytes; })
      .def_prop_ro("rewind_tokens", [](const PyConfig& self) { return self.core.rewind_tokens; })
      .def_prop_ro("residual_tokens",
                   [](const PyConfig& self) { return self.core.residual_tokens; })
      .def_prop_ro("prefixes", [](const PyConfig& self) { return self.core.prefixes; })
      .def_prop_ro("required", &required_of)
      .def_prop_ro("memory", [](const PyConfig& self) { return self.memory; })
      .def_prop_ro("layout",
                   [](const PyConfig& self) { return kvcache::name_of(self.core.layout); })
      .def("__repr__", &repr_config);
  nb::class_<PyAppend>(module, "Append",
                       "New tokens of one sequence: count of them, with their ids, [count] int32, "
                       "or none.")
      .def(
          "__init__",
          [](PyAppend* self, std::int64_t seq, std::int64_t count, GivenIds tokens,
             GivenIds parents) {
            PyAppend append;
            append.seq = id_of(seq);
            append.count = count;
            if (!tokens.is_none()) append.tokens = int32_values("tokens", tokens);
            if (!parents.is_none()) append.parents = int32_values("parents", parents);
            new (self) PyAppend(std::move(append));
          },
          "seq"_a, "count"_a, "tokens"_a = nb::none(), "parents"_a = nb::none())
      .def_prop_ro("seq", [](const PyAppend& a) { return static_cast<std::int64_t>(a.seq); })
      .def_ro("count", &PyAppend::count)
      .def("__repr__", [](const PyAppend& a) {
        return "Append(seq=" + std::to_string(static_cast<std::int64_t>(a.seq)) +
               ", count=" + std::to_string(a.count) + ")";
      });
  nb::class_<PageIndices>(module, "PageIndices",
                          "The pages of committed rows as one list, int32: those of sequence i are "
                          "kv_indices[kv_indptr[i] :\nkv_indptr[i + 1]].")
      .def_prop_ro(
          "kv_indptr", [](const PageIndices& p) { return array_of(p.kv_indptr); }, "[num_seqs + 1]")
      .def_prop_ro(
          "kv_indices", [](const PageIndices& p) { return array_of(p.kv_indices); }, "Page ids.")
      .def_prop_ro(
          "kv_last_page_len", [](const PageIndices& p) { return array_of(p.kv_last_page_len); },
          "[num_seqs] tokens, 1 .. page_size; 0 for an empty sequence.");
}

}  // namespace kvcache::python
