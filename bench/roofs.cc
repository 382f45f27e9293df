#include "bench/roofs.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <utility>

namespace kvcache::bench {
namespace {

constexpr std::int64_t kReadUnit = 512;  // what RoofKernels::read takes a multiple of

// Bytes of the data or unified cache of a level, as the first core sees it. The system's own list
// goes before sysconf(), which on some processors adds up the caches of a whole package.
std::int64_t cache_bytes(int level, int name, std::int64_t otherwise) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    int found_level = 0;
    std::string type;
    std::int64_t kib = 0;  // "32768K"
    std::ifstream(folder + "level") >> found_level;
    std::ifstream(folder + "type") >> type;
    std::ifstream(folder + "size") >> kib;
    if (found_level == level && type != "Instruction" && kib > 0) return kib * 1024;
  }
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}

// Operations a second of `burst(rounds)`, which returns those of one task, over about `seconds`:
// a round of any kernel takes about kRoundSeconds at 3 GHz.
template <typename Burst>
double rate(const Meter& meter, double seconds, Burst&& burst) {
  constexpr double kRoundSeconds = 1.5e-7;
  constexpr std::int64_t kTasks = 4;  // of a thread
  const std::int64_t tasks = meter.threads() * kTasks;
  const auto rounds = static_cast<std::int64_t>(seconds / kTasks / kRoundSeconds) + 1;
  std::int64_t operations = 0;  // of any task: all do the same
  const double seconds_spent = meter.spread(tasks, [&](std::int64_t task) {
    const std::int64_t done = burst(rounds);
    if (task == 0) operations = done;
  });
  return static_cast<double>(operations * tasks) / seconds_spent;
}

}  // namespace

std::int64_t last_level_bytes() {
  return std::max(cache_bytes(3, _SC_LEVEL3_CACHE_SIZE, 32 << 20), second_level_bytes());
}
std::int64_t second_level_bytes() { return cache_bytes(2, _SC_LEVEL2_CACHE_SIZE, 512 << 10); }

Result<Pages> Pages::create(std::int64_t bytes) {
  const Result<Region> region = system_memory().reserve(bytes);
  if (!region.ok() || !system_memory().commit(*region, bytes).ok()) {
    return Status(StatusCode::kOutOfMemory,
                  "bench: found no memory for " + std::to_string(bytes) + " bytes");
  }
  system_memory().will_fill(*region, 0, bytes);
  std::memset(region->data, 0, static_cast<std::size_t>(bytes));
  return Pages(*region);
}

Pages::Pages(Pages&& other) noexcept : region_(std::exchange(other.region_, {})) {}
Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(region_, other.region_);
  return *this;
}
Pages::~Pages() {
  if (region_.data != nullptr) system_memory().release(region_, region_.bytes);
}

double read_seconds(const RoofKernels& kernels, std::span<const std::byte> memory,
                    const Meter& meter) {
  const auto units = static_cast<std::int64_t>(memory.size()) / kReadUnit;
  // Pieces small enough to balance, large enough for the hardware's prefetching.
  const std::int64_t threads = meter.threads();
  const std::int64_t piece =
      threads == 1 ? units : std::clamp<std::int64_t>(units / (8 * threads), 256, 2048);
  const std::int64_t tasks = (units + piece - 1) / piece;
  return meter.spread(tasks, [&](std::int64_t task) {
    const std::int64_t begin = task * piece;
    kernels.read(memory.data() + begin * kReadUnit, std::min(piece, units - begin) * kReadUnit);
  });
}

double fma_rate(const RoofKernels& kernels, const Meter& meter, double seconds) {
  return rate(meter, seconds, [&](std::int64_t rounds) { return kernels.fma(rounds); });
}
double dot_bf16_rate(const RoofKernels& kernels, const Meter& meter, double seconds) {
  return rate(meter, seconds, [&](std::int64_t rounds) { return kernels.dot_bf16(rounds); });
}
double dot_int8_rate(const RoofKernels& kernels, const Meter& meter, double seconds) {
  return rate(meter, seconds, [&](std::int64_t rounds) { return kernels.dot_int8(rounds); });
}

double widen_rate(const RoofKernels& kernels, DType dtype, const Meter& meter, double seconds) {
  if (dtype == DType::kF32) return std::numeric_limits<double>::infinity();
  const auto widen = dtype == DType::kF16 ? kernels.widen_f16 : kernels.widen_bf16;
  constexpr std::int64_t kElements = 4096;  // 8 KiB
  static const std::vector<std::uint16_t> row(kElements, 0x3c01);
  return rate(meter, seconds, [&](std::int64_t rounds) {
    for (std::int64_t round = 0; round < rounds; ++round) widen(row.data(), kElements);
    return rounds * kElements;
  });
}

namespace {

// One roof: what to measure, in `unit`, once.
struct Probe {
  std::string name;
  std::string unit;
  bool less_is_better = false;
  std::function<double()> measure;
};

// GB/s of reading `bytes` a thread over and over; each thread keeps to its own.
double cached_read_rate(const RoofKernels& kernels, const Pages& pages, std::int64_t bytes,
                        const Meter& meter) {
  const std::int64_t threads = meter.threads();
  const std::int64_t rounds = std::max<std::int64_t>(1, (std::int64_t{64} << 20) / bytes);
  const double seconds = meter.spread(threads, [&](std::int64_t task) {
    for (std::int64_t i = 0; i < rounds; ++i) kernels.read(pages.data() + task * bytes, bytes);
  });
  return static_cast<double>(threads * rounds * bytes) / seconds / 1e9;
}

// GB/s copied from one half to the other: each byte is read once and written once, counted once.
double copy_rate(const Pages& pages, const Meter& meter) {
  constexpr std::int64_t kPiece = 1 << 20;
  const std::int64_t half = pages.bytes() / 2 / kPiece * kPiece;
  const double seconds = meter.spread(half / kPiece, [&](std::int64_t task) {
    std::memcpy(pages.data() + half + task * kPiece, pages.data() + task * kPiece, kPiece);
  });
  return static_cast<double>(half) / seconds / 1e9;
}

double parallel_for_microseconds(const Meter& meter) {
  constexpr int kCalls = 1000;
  const double start = meter.now();
  for (int i = 0; i < kCalls; ++i) {
    meter.executor->parallel_for(
        meter.threads(), [](void*, std::int64_t, std::int32_t) noexcept {}, nullptr);
  }
  return (meter.now() - start) / kCalls * 1e6;
}

std::vector<Probe> probes_of(const Pages& pages, const Meter& meter) {
  constexpr double kBurst = 0.01;  // seconds
  const std::string suffix =
      ", " + std::to_string(meter.threads()) + (meter.threads() == 1 ? " thread" : " threads");
  const RoofKernels* sets[3];
  const int count = all_roof_kernels(sets);
  const RoofKernels& widest = *sets[0];
  const std::int64_t threads = meter.threads();
  std::vector<Probe> probes;
  const auto add = [&](const std::string& name, const char* unit, std::function<double()> measure) {
    probes.push_back({name + suffix, unit, false, std::move(measure)});
  };
  add("DRAM read", "GB/s", [=, &pages] {
    const auto bytes = static_cast<std::size_t>(pages.bytes());
    return static_cast<double>(bytes) / read_seconds(widest, {pages.data(), bytes}, meter) / 1e9;
  });
  // A part of what is there: the rest belongs to code, tables and neighbours.
  for (const auto& [name, bytes] : {std::pair("L3 read", last_level_bytes() / 4 / threads),
                                    std::pair("L2 read", second_level_bytes() / 2),
                                    std::pair("L1 read", std::int64_t{16384})}) {
    add(name, "GB/s", [=, &pages, size = bytes / kReadUnit * kReadUnit] {
      return cached_read_rate(widest, pages, size, meter);
    });
  }
  add("copy", "GB/s", [=, &pages] { return copy_rate(pages, meter); });
  for (int i = 0; i < count; ++i) {
    const RoofKernels& set = *sets[i];
    const std::string of = std::string(" ") + set.name + " (" + std::to_string(set.bits) + " bits)";
    add("f32 multiply-add" + of, "GFLOP/s", [=] { return fma_rate(set, meter, kBurst) / 1e9; });
    if (set.dot_bf16 != nullptr) {
      add("bf16 dot" + of, "GFLOP/s", [=] { return dot_bf16_rate(set, meter, kBurst) / 1e9; });
    }
    if (set.dot_int8 != nullptr) {
      add("int8 dot" + of, "GOP/s", [=] { return dot_int8_rate(set, meter, kBurst) / 1e9; });
    }
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      add(std::string(name_of(dtype)) + " to f32" + of, "Gelem/s",
          [=] { return widen_rate(set, dtype, meter, kBurst) / 1e9; });
    }
  }
  probes.push_back(
      {"parallel_for" + suffix, "us", true, [=] { return parallel_for_microseconds(meter); }});
  return probes;
}

}  // namespace

Result<std::vector<Case>> run_roofs(const RoofOptions& options,
                                    const std::function<void(int, int)>& on_progress) {
  if (options.repeats < 1) {
    return Status(StatusCode::kInvalidArgument,
                  "repeats: found " + std::to_string(options.repeats) + ", expected at least 1");
  }
  KVC_ASSIGN_OR_RETURN(const Pages pages, Pages::create(8 * last_level_bytes()));
  std::vector<std::unique_ptr<Executor>> executors;
  std::vector<Probe> probes;
  for (const std::int32_t threads : options.threads) {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Executor> executor, make_thread_pool(threads));
    executors.push_back(std::move(executor));
    for (Probe& probe : probes_of(pages, {executors.back().get(), options.clock}))
      probes.push_back(std::move(probe));
  }
  std::vector<std::vector<double>> found(probes.size());
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (std::size_t i = 0; i < probes.size(); ++i) found[i].push_back(probes[i].measure());
    if (on_progress) on_progress(repeat + 1, options.repeats);
  }
  std::vector<Case> cases;
  for (std::size_t i = 0; i < probes.size(); ++i) {
    const auto [least, most] = std::minmax_element(found[i].begin(), found[i].end());
    Case result;
    result.name = probes[i].name;
    result.unit = probes[i].unit;
    result.achieved = median(found[i]);
    result.roof = probes[i].less_is_better ? *least : *most;
    result.ratio =
        probes[i].less_is_better ? result.roof / result.achieved : result.achieved / result.roof;
    result.details = {{"least", *least}, {"most", *most}};
    cases.push_back(std::move(result));
  }
  return cases;
}

}  // namespace kvcache::bench
