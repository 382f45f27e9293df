// Roofs of this machine, measured: how fast memory can be read, and how fast the processor computes
// when it waits for nothing.
#ifndef KVCACHE_BENCH_ROOFS_H_
#define KVCACHE_BENCH_ROOFS_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "bench/case.h"
#include "bench/meter.h"
#include "bench/roof_kernels.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/types.h"

namespace kvcache::bench {

// Bytes of the last level of cache, and of one core's second level; of a common processor where the
// system does not say.
std::int64_t last_level_bytes();
std::int64_t second_level_bytes();

// Memory as caches have it for their pages (huge ones, unless KVCACHE_HUGE_PAGES=0): zeros that are
// already touched.
class Pages {
 public:
  static Result<Pages> create(std::int64_t bytes);
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  ~Pages();

  std::byte* data() const { return region_.data; }
  std::int64_t bytes() const { return region_.bytes; }

 private:
  explicit Pages(const Region& region) : region_(region) {}
  Region region_;
};

// Seconds to load each byte of `memory` once, in pieces over all threads.
double read_seconds(const RoofKernels& kernels, std::span<const std::byte> memory,
                    const Meter& meter);

// Operations a second with all threads, for about `seconds`. Memory is not touched.
double fma_rate(const RoofKernels& kernels, const Meter& meter, double seconds);
double dot_bf16_rate(const RoofKernels& kernels, const Meter& meter, double seconds);
double dot_int8_rate(const RoofKernels& kernels, const Meter& meter, double seconds);

// Elements a second widened to float32 from rows in the first level of cache; infinite for kF32.
// REQUIRES: `dtype` is floating.
double widen_rate(const RoofKernels& kernels, DType dtype, const Meter& meter, double seconds);

struct RoofOptions {
  std::vector<std::int32_t> threads = {1, 2};
  int repeats = 7;
  Clock clock = Clock::kWall;
};

// Every roof, for each number of threads: DRAM, L3, L2 and L1 read, copy, multiply-add, dot
// products, conversions, and the cost of one parallel_for. `achieved` is the median and `roof` the
// best of the repeats. Errors: kInvalidArgument, kOutOfMemory.
Result<std::vector<Case>> run_roofs(const RoofOptions& options,
                                    const std::function<void(int, int)>& on_progress);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_ROOFS_H_
