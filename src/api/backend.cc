// The list of backends, and what is known of the machine.
#include "kvcache/backend.h"

#include "attention/cpu/calibrate.h"
#include "attention/cpu/prefetch.h"
#include "base/cpu_features.h"
#include "base/door.h"
#include "kernels/backend.h"
#include "kernels/select.h"

namespace kvcache {
inline namespace v1 {
namespace {

// "32 KiB", "1 MiB".
std::string size_in_words(std::int64_t bytes) {
  constexpr std::int64_t kMiB = 1 << 20;
  if (bytes >= kMiB && bytes % kMiB == 0) return std::to_string(bytes / kMiB) + " MiB";
  return std::to_string(bytes >> 10) + " KiB";
}

}  // namespace

Result<std::vector<BackendInfo>> backends() {
  return internal::at_door([]() -> Result<std::vector<BackendInfo>> {
    const internal::Backend* selected = nullptr;
    // A KVCACHE_BACKEND that names none is reported by selected_backend(); the list is as it is.
    if (!internal::select_backend(nullptr, {}, &selected).ok()) selected = nullptr;
    std::int32_t count = 0;
    const internal::Backend* all = internal::all_backends(&count);
    std::vector<BackendInfo> list;
    for (std::int32_t i = 0; i < count; ++i) {
      BackendInfo info;
      info.name = all[i].name;
      info.description = all[i].description;
      info.device = all[i].device;
      info.available = all[i].availability.here;
      info.reason = all[i].availability.reason;
      info.selected = &all[i] == selected;
      list.push_back(std::move(info));
    }
    return list;
  });
}

Result<std::string> selected_backend() {
  return internal::at_door([]() -> Result<std::string> {
    const internal::Backend* selected = nullptr;
    KVC_RETURN_IF_ERROR(internal::select_backend(nullptr, {}, &selected));
    return std::string(selected->name);
  });
}

Result<std::vector<PrefetchChoice>> prefetch_choices(std::int32_t turns) {
  return internal::at_door([&]() -> Result<std::vector<PrefetchChoice>> {
    const internal::Backend* backend = nullptr;
    KVC_RETURN_IF_ERROR(internal::select_backend(nullptr, {}, &backend));
    internal::Prefetch level = internal::Prefetch::kNone;
    bool named = false;
    KVC_RETURN_IF_ERROR(internal::named_prefetch(&level, &named));
    std::vector<PrefetchChoice> choices;
    for (int row = 0; row < internal::kNumPrefetchRows; ++row) {
      PrefetchChoice choice;
      choice.row_bytes = internal::kPrefetchRowBytes[row];
      if (named && turns <= 0) {
        choice.level = internal::name_of(level);
        choice.reason = "KVCACHE_PREFETCH";
      } else {
        const internal::PrefetchTrial trial = turns > 0
                                                  ? internal::try_prefetch(*backend, row, turns)
                                                  : internal::decided_prefetch(*backend, row);
        choice.level = internal::name_of(trial.level);
        choice.reason = internal::reason_of(trial);
      }
      choices.push_back(std::move(choice));
    }
    return choices;
  });
}

Result<std::string> cpu_description() {
  return internal::at_door([]() -> Result<std::string> {
    const internal::CpuFeatures& cpu = internal::cpu_features();
    std::string features;
    const auto add = [&](bool present, const char* name) {
      if (present) features += std::string(features.empty() ? "" : " ") + name;
    };
    add(cpu.avx2, "avx2");
    add(cpu.avx512, "avx512");
    add(cpu.avx512_bf16, "avx512bf16");
    add(cpu.avx512_vnni, "avx512vnni");
    add(cpu.neon, "neon");
    std::string caches;
    const auto add_cache = [&](const char* name, std::int64_t bytes) {
      if (bytes <= 0) return;
      caches += std::string(caches.empty() ? "" : ", ") + name + " " + size_in_words(bytes);
    };
    add_cache("L1", cpu.l1_bytes);
    add_cache("L2", cpu.l2_bytes);
    add_cache("L3", cpu.l3_bytes);
    std::string text = cpu.name;
    if (!features.empty()) text += "; " + features;
    if (!caches.empty()) text += "; " + caches;
    return text;
  });
}

}  // namespace v1
}  // namespace kvcache
