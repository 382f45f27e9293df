// Version, backends and processor, and what stats() says of them.
#ifndef KVCACHE_PYTHON_BINDINGS_INFO_H_
#define KVCACHE_PYTHON_BINDINGS_INFO_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

namespace kvcache::python {

// The backend that runs when a call names none.
std::string backend_name();

// The path of attention for so many new tokens: see docs/architecture.md, "Determinism".
inline const char* path_name(std::int64_t new_tokens) {
  return new_tokens == 0 ? "none" : new_tokens <= 8 ? "decode" : "prefill";
}

// version, backends, processor.
void bind_info(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_INFO_H_
