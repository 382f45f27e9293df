// What decode asks for ahead, by the bytes of a row: a table of processors, and a measurement that
// overrules it.
#ifndef KVCACHE_SRC_ATTENTION_CPU_CALIBRATE_H_
#define KVCACHE_SRC_ATTENTION_CPU_CALIBRATE_H_

#include <cstdint>
#include <string>

#include "kernels/backend.h"
#include "kernels/cpu/cut.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// The candidates. On rows that follow one another the first asks for nothing.
inline constexpr Prefetch kPrefetchLevels[] = {Prefetch::kRuns, Prefetch::kL1, Prefetch::kL2};
inline constexpr int kNumPrefetchLevels = 3;

// Rows of up to so many bytes share a choice.
inline constexpr std::int64_t kPrefetchRowBytes[] = {128, 256, 512};
inline constexpr int kNumPrefetchRows = 3;
int prefetch_row(std::int64_t row_bytes) noexcept;  // an index of the above

// A wrong choice costs for the life of a process, and a measurement of a millisecond is noisy: it
// must win by so much against the table.
inline constexpr double kPrefetchMargin = 1.15;

struct PrefetchTrial {
  double gb_per_s[kNumPrefetchLevels] = {};  // best of the turns; zeros: not measured
  Prefetch table = Prefetch::kRuns;          // what measured best on processors of this family
  Prefetch level = Prefetch::kRuns;          // the choice

  // The best of both, and the choice by these.
  void add(const PrefetchTrial& other) noexcept;
};

// Of processors of `family` and `model` (0: not AMD, or unknown).
Prefetch prefetch_table(std::uint32_t amd_family, std::uint32_t model) noexcept;

// The choice by these figures. A level that was not measured does not win.
Prefetch choose_prefetch(const double (&gb_per_s)[kNumPrefetchLevels], Prefetch table) noexcept;

// One query of four heads over a MiB of rows that are in no cache, level after level, `turns` times
// over, about 0.3 ms each: the kernel of `backend` itself, on the calling thread. Without memory
// for it, or without a kernel, nothing is measured and the table stands.
PrefetchTrial try_prefetch(const Backend& backend, int row, int turns) noexcept;

// The trial that decides in this process, made at the first call for a backend and row; where it
// goes against the table up to five are added, within a tenth of a second, until it no longer does.
// Thread safety: may be called from any thread; while one measures, the table stands for others.
const PrefetchTrial& decided_prefetch(const Backend& backend, int row) noexcept;

// "as its family; measured runs 11.9, l1 10.2, l2 14.1 GB/s".
std::string reason_of(const PrefetchTrial& trial);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_CPU_CALIBRATE_H_
