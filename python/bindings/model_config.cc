#include "python/bindings/model_config.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "runner/config/model_config.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {

void bind_model_config(nb::module_& module) {
  using runner::ModelConfig;
  nb::class_<ModelConfig>(module, "ModelConfig", "What a model directory says about its model.")
      .def_prop_ro("family", [](const ModelConfig& self) { return name_of(self.family); })
      .def_ro("vocab_size", &ModelConfig::vocab_size)
      .def_ro("hidden_size", &ModelConfig::hidden_size)
      .def_ro("intermediate_size", &ModelConfig::intermediate_size)
      .def_ro("num_layers", &ModelConfig::num_layers)
      .def_ro("num_heads", &ModelConfig::num_heads)
      .def_ro("num_kv_heads", &ModelConfig::num_kv_heads)
      .def_ro("head_dim", &ModelConfig::head_dim)
      .def_ro("max_position_embeddings", &ModelConfig::max_position_embeddings,
              "The model's context, tokens.")
      .def_ro("eos_token_ids", &ModelConfig::eos_token_ids, "Generation stops at any of these.")
      .def("__repr__", [](const ModelConfig& self) {
        return std::string("ModelConfig(family='") + name_of(self.family) +
               "', vocab_size=" + std::to_string(self.vocab_size) +
               ", hidden_size=" + std::to_string(self.hidden_size) +
               ", num_layers=" + std::to_string(self.num_layers) +
               ", num_heads=" + std::to_string(self.num_heads) +
               ", num_kv_heads=" + std::to_string(self.num_kv_heads) +
               ", head_dim=" + std::to_string(self.head_dim) + ")";
      });
}

}  // namespace kvcache::python
