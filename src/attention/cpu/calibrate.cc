#include "attention/cpu/calibrate.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>

#include "attention/cpu/prefetch.h"
#include "base/aligned_buffer.h"
#include "base/cpu_features.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kBytes = 1 << 20;
constexpr std::int32_t kHeads = 4;
constexpr int kTurns = 3;  // of a look that a process takes by itself
// Neighbours of a processor hold one level back, not the others, for milliseconds to tens of them:
// what goes against the table must do so by the best of each level in so many looks, the second
// after this pause, each later one after twice that of the one before. 62 ms in all.
constexpr int kLooks = 6;
constexpr std::chrono::milliseconds kPause(2);

// Takes memory out of the caches, where the processor lets a program do so; without, rows come from
// the last cache that holds them, the same for all levels.
void forget(const void* memory, std::int64_t bytes) noexcept {
#if defined(__x86_64__)
  const auto* at = static_cast<const char*>(memory);
  for (std::int64_t byte = 0; byte < bytes; byte += 64) __builtin_ia32_clflush(at + byte);
  __builtin_ia32_mfence();
#else
  (void)memory;
  (void)bytes;
#endif
}

// A sequence of one KV head whose rows fill kBytes, and what a kernel needs to attend to it.
class Rows {
 public:
  Status init(const Backend& backend, std::int64_t row_bytes) noexcept {
    // Rows of 512 bytes are those of f32, of fewer those of 16 bits.
    const DType dtype = row_bytes >= 512 ? DType::kF32 : DType::kBF16;
    const std::int64_t dim = row_bytes / size_of(dtype);
    const std::int64_t padded = (dim + kRowPadding - 1) / kRowPadding * kRowPadding;
    KVC_RETURN_IF_ERROR(stored_.reserve(kBytes));
    KVC_RETURN_IF_ERROR(floats_.reserve((2 * padded + 2) * kHeads * 4));
    KVC_RETURN_IF_ERROR(scratch_.reserve(backend.cuts->scratch_bytes(kHeads, dim, dim)));
    std::memset(stored_.data(), 0, static_cast<std::size_t>(kBytes));
    std::memset(floats_.data(), 0, static_cast<std::size_t>(floats_.bytes()));
    auto* floats = floats_.as<float>();
    tile_.num_queries = 1;
    tile_.group = kHeads;
    tile_.k_dim = tile_.v_dim = static_cast<std::int32_t>(dim);
    tile_.path = Path::kDecode;
    tile_.q = floats;
    tile_.position = &position_;
    partial_ = {floats + kHeads * padded, floats + kHeads * (padded + 1),
                floats + kHeads * (padded + 2)};
    rows_.num_rows = kBytes / 2 / row_bytes;
    const auto* const stored = static_cast<const std::byte*>(stored_.data());
    rows_.k = strided_rows(stored, dtype, 0, 0, dim);
    rows_.v = strided_rows(stored + kBytes / 2, dtype, 0, 0, dim);
    rows_.page_size = rows_.num_rows;
    position_ = rows_.num_rows;
    return {};
  }

  // Seconds of attending to all rows, cut by cut.
  double attend(const AttentionKernels& kernels, Prefetch level) noexcept {
    using Clock = std::chrono::steady_clock;
    tile_.prefetch = level;
    forget(stored_.data(), kBytes);
    const Clock::time_point start = Clock::now();
    for (std::int64_t begin = 0; begin < rows_.num_rows; begin += kLongCutKeys) {
      CutTask task;
      task.tile = &tile_;
      task.rows = &rows_;
      task.begin = begin;
      task.end = std::min(begin + kLongCutKeys, rows_.num_rows);
      task.cut = {begin, kLongCutKeys};
      if (task.end < rows_.num_rows) task.next = {begin + kLongCutKeys, kLongCutKeys};
      task.causal_end = rows_.num_rows;
      task.partial = partial_;
      task.scratch = scratch_.data();
      kernels.attend_cut(task);
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

 private:
  AlignedBuffer stored_, floats_, scratch_;
  QueryTile tile_;
  KvRows rows_;
  PartialRows partial_;
  std::int64_t position_ = 0;
};

struct Decided {
  std::atomic<const PrefetchTrial*> ready{nullptr};
  std::mutex measuring;
  PrefetchTrial trial;
};

// What the table says.
PrefetchTrial untried() noexcept {
  PrefetchTrial trial;
  trial.table = trial.level = prefetch_table(cpu_features().amd_family, cpu_features().model);
  return trial;
}

}  // namespace

int prefetch_row(std::int64_t row_bytes) noexcept {
  int row = 0;
  while (row + 1 < kNumPrefetchRows && kPrefetchRowBytes[row] < row_bytes) ++row;
  return row;
}

Prefetch prefetch_table(std::uint32_t amd_family, std::uint32_t model) noexcept {
  if (amd_family == 0x19) {
    // Zen 3 reads four streams of rows at the speed of memory by itself; so did a Zen 4 those of
    // rows of 512 bytes, another one did not.
    const bool zen3 = model < 0x10 || (model >= 0x20 && model < 0x60);
    return zen3 ? Prefetch::kRuns : Prefetch::kL2;
  }
  if (amd_family == 0x1a) return Prefetch::kL1;  // Zen 5
  return Prefetch::kL2;
}

Prefetch choose_prefetch(const double (&gb_per_s)[kNumPrefetchLevels], Prefetch table) noexcept {
  double to_beat = 0;
  int best = 0;
  for (int i = 0; i < kNumPrefetchLevels; ++i) {
    if (kPrefetchLevels[i] == table) to_beat = gb_per_s[i];
    if (gb_per_s[i] > gb_per_s[best]) best = i;
  }
  return to_beat > 0 && gb_per_s[best] > kPrefetchMargin * to_beat ? kPrefetchLevels[best] : table;
}

void PrefetchTrial::add(const PrefetchTrial& other) noexcept {
  for (int i = 0; i < kNumPrefetchLevels; ++i) {
    gb_per_s[i] = std::max(gb_per_s[i], other.gb_per_s[i]);
  }
  level = choose_prefetch(gb_per_s, table);
}

PrefetchTrial try_prefetch(const Backend& backend, int row, int turns) noexcept {
  PrefetchTrial trial = untried();
  Rows rows;
  if (backend.attends != Attends::kByCuts || !rows.init(backend, kPrefetchRowBytes[row]).ok()) {
    return trial;
  }
  rows.attend(*backend.cuts, Prefetch::kRuns);  // finds code, pages and the clock awake
  for (int turn = 0; turn < turns; ++turn) {
    for (int i = 0; i < kNumPrefetchLevels; ++i) {
      const double seconds = rows.attend(*backend.cuts, kPrefetchLevels[i]);
      const double rate = static_cast<double>(kBytes) / std::max(seconds, 1e-9) / 1e9;
      trial.gb_per_s[i] = std::max(trial.gb_per_s[i], rate);
    }
  }
  trial.level = choose_prefetch(trial.gb_per_s, trial.table);
  return trial;
}

const PrefetchTrial& decided_prefetch(const Backend& backend, int row) noexcept {
  constexpr int kBackends = 16;
  static Decided decided[kBackends][kNumPrefetchRows];
  static const PrefetchTrial table = untried();
  std::int32_t count = 0;
  const auto index = std::min<std::ptrdiff_t>(&backend - all_backends(&count), kBackends - 1);
  Decided& here = decided[index][row];
  const PrefetchTrial* ready = here.ready.load(std::memory_order_acquire);
  if (ready != nullptr) return *ready;
  const std::unique_lock<std::mutex> lock(here.measuring, std::try_to_lock);
  if (!lock.owns_lock()) return table;
  if (here.ready.load(std::memory_order_relaxed) == nullptr) {
    here.trial = try_prefetch(backend, row, kTurns);
    for (int look = 1; look < kLooks && here.trial.level != here.trial.table; ++look) {
      std::this_thread::sleep_for(kPause * (1 << (look - 1)));
      here.trial.add(try_prefetch(backend, row, kTurns));
    }
    here.ready.store(&here.trial, std::memory_order_release);
  }
  return here.trial;
}

std::string reason_of(const PrefetchTrial& trial) {
  std::string text = trial.level == trial.table ? "as its family" : "against its family";
  if (trial.gb_per_s[0] <= 0) return text + ", not measured";
  text += "; measured";
  for (int i = 0; i < kNumPrefetchLevels; ++i) {
    char rate[48];
    std::snprintf(rate, sizeof(rate), "%s %s %.1f", i == 0 ? "" : ",", name_of(kPrefetchLevels[i]),
                  trial.gb_per_s[i]);
    text += rate;
  }
  return text + " GB/s";
}

}  // namespace kvcache::internal
