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

Status select_prefetch(const Backend& backend, const ReadRows& rows, Prefetch* level) {
  bool named = false;
  KVC_RETURN_IF_ERROR(named_prefetch(level, &named));
  if (named) return {};
  const CpuFeatures& cpu = cpu_features();
  const int row = prefetch_row(rows.row_bytes);
  constexpr std::int64_t kWorthMeasuring = 8 << 20;
  const bool measured = rows.bytes >= kWorthMeasuring;
  *level =
      measured ? decided_prefetch(backend, row).level : prefetch_table(cpu.amd_family, cpu.model);
  if (!rows.coded || *level != Prefetch::kRuns) return {};
  *level = Prefetch::kL1;
  if (measured) {
    const auto& rates = decided_prefetch(backend, row).gb_per_s;
    double best = 0;
    for (int i = 0; i < kNumPrefetchLevels; ++i) {
      if (kPrefetchLevels[i] == Prefetch::kRuns || rates[i] <= best) continue;
      best = rates[i];
      *level = kPrefetchLevels[i];
    }
  }
  return {};
}

}  // namespace kvcache::internal
