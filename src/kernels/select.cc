#include "kernels/select.h"

#include <cstdlib>
#include <string>

#include "base/expect.h"
#include "tensor/strides.h"

namespace kvcache::internal {

Environment& environment() {
  const auto read = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  // Never destroyed: threads may plan to the very end.
  static Environment& once = *new Environment{read("KVCACHE_BACKEND"), read("KVCACHE_PREFETCH")};
  return once;
}

namespace {

// The first, and so the best, that runs here over memory of `device`; null if none does.
const Backend* best_of(DeviceKind device) noexcept {
  std::int32_t count = 0;
  const Backend* backends = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    if (backends[i].availability.here && backends[i].device.kind == device) return &backends[i];
  }
  return nullptr;
}

const RowKernels& rows_by_environment() noexcept {
  const Backend* backend = nullptr;
  try {
    backend = find_backend(environment().backend.c_str());
  } catch (...) {  // no memory for the environment's words
  }
  const bool runs =
      backend != nullptr && backend->availability.here && backend->device.kind == DeviceKind::kCpu;
  return *(runs ? backend : best_of(DeviceKind::kCpu))->rows;
}

}  // namespace

Status expect_backend(const char* name, const Device& device) {
  if (best_of(device.kind) != nullptr) return {};
  std::int32_t count = 0;
  const Backend* backends = all_backends(&count);
  std::string expected = "the CPU";
  for (std::int32_t i = 0; i < count; ++i) {
    if (backends[i].device.kind != device.kind) continue;
    expected += std::string(" (") + backends[i].name + ": " + backends[i].availability.reason + ")";
  }
  return refusal(StatusCode::kUnavailable, name, describe(device), expected);
}

Status select_backend(const char* name, const Device& device, const Backend** backend) {
  std::int32_t count = 0;
  const Backend* backends = all_backends(&count);

  const char* asked_by = "options.backend";
  if (name == nullptr) {
    name = environment().backend.c_str();
    asked_by = "KVCACHE_BACKEND";
  }
  if (*name == '\0') {
    const Backend* best = best_of(device.kind);
    if (best == nullptr) return expect_backend("device", device);
    *backend = best;
    return {};
  }

  const Backend* found = find_backend(name);
  if (found == nullptr) {
    std::string names;
    for (std::int32_t i = 0; i < count; ++i) {
      if (i > 0) names += ", ";
      names += backends[i].name;
    }
    return refusal(StatusCode::kUnavailable, asked_by, std::string("\"") + name + "\"",
                   "one of " + names);
  }
  if (!found->availability.here) {
    return refusal(StatusCode::kUnavailable, asked_by, std::string("\"") + name + "\"",
                   std::string("a backend that runs here (") + found->availability.reason + ")");
  }
  if (found->device.kind != device.kind) {
    return refusal(StatusCode::kUnavailable, asked_by, std::string("\"") + name + "\"",
                   "a backend of " + describe(device));
  }
  *backend = found;
  return {};
}

const RowKernels& selected_rows() noexcept {
  static const RowKernels& once = rows_by_environment();
  return once;
}

}  // namespace kvcache::internal
