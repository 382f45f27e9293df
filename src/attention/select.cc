#include "attention/select.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "attention/calibrate.h"
#include "base/cpu_features.h"
#include "base/expect.h"

namespace kvcache::internal {

Status select_backend(const char* name, const Backend** backend) {
  std::int32_t count = 0;
  const Backend* backends = all_backends(&count);

  const char* asked_by = "options.backend";
  if (name == nullptr) {
    name = std::getenv("KVCACHE_BACKEND");
    asked_by = "KVCACHE_BACKEND";
  }
  if (name == nullptr || *name == '\0') {
    for (std::int32_t i = 0; i < count; ++i) {
      if (backends[i].available) {
        *backend = &backends[i];
        return {};
      }
    }
    return refusal(StatusCode::kInternal, "backends", "none available", "one that runs here");
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
  if (!found->available) {
    return refusal(StatusCode::kUnavailable, asked_by, std::string("\"") + name + "\"",
                   std::string("a backend that runs here (") + found->reason + ")");
  }
  *backend = found;
  return {};
}

const char* name_of(Prefetch level) noexcept {
  switch (level) {
    case Prefetch::kRuns:
      return "runs";
    case Prefetch::kL1:
      return "l1";
    case Prefetch::kL2:
      return "l2";
    case Prefetch::kL3:
      return "l3";
    default:
      return "none";
  }
}

Status named_prefetch(Prefetch* level, bool* named) {
  const char* name = std::getenv("KVCACHE_PREFETCH");
  *named = name != nullptr && *name != '\0';
  if (!*named) return {};
  for (const Prefetch known :
       {Prefetch::kNone, Prefetch::kRuns, Prefetch::kL1, Prefetch::kL2, Prefetch::kL3}) {
    if (std::strcmp(name, name_of(known)) != 0) continue;
    *level = known;
    return {};
  }
  return refusal(StatusCode::kUnavailable, "KVCACHE_PREFETCH", std::string("\"") + name + "\"",
                 "one of none, runs, l1, l2, l3");
}

Status select_prefetch(const Backend& backend, std::int64_t row_bytes, std::int64_t bytes,
                       Prefetch* level) {
  bool named = false;
  KVC_RETURN_IF_ERROR(named_prefetch(level, &named));
  if (named) return {};
  const CpuFeatures& cpu = cpu_features();
  const int row = prefetch_row(row_bytes);
  constexpr std::int64_t kWorthMeasuring = 8 << 20;
  *level = bytes < kWorthMeasuring ? prefetch_table(cpu.amd_family, cpu.model, row)
                                   : decided_prefetch(backend, row).level;
  return {};
}

}  // namespace kvcache::internal
