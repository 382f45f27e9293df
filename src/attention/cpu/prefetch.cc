#include "attention/cpu/prefetch.h"

#include <string>

#include "attention/cpu/calibrate.h"
#include "base/cpu_features.h"
#include "base/expect.h"
#include "kernels/select.h"

namespace kvcache::internal {

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
  const std::string& name = environment().prefetch;
  *named = !name.empty();
  if (!*named) return {};
  for (const Prefetch known :
       {Prefetch::kNone, Prefetch::kRuns, Prefetch::kL1, Prefetch::kL2, Prefetch::kL3}) {
    if (name != name_of(known)) continue;
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
