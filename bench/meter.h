// Where measured work runs, and what it takes.
#ifndef KVCACHE_BENCH_METER_H_
#define KVCACHE_BENCH_METER_H_

#include <cstdint>
#include <ctime>
#include <type_traits>

#include "bench/case.h"
#include "kvcache/executor.h"

namespace kvcache::bench {

// What a second is. kCpu counts the time that threads of this process ran, shared among as many as
// the executor has: what the wall clock would say if each had a core of its own. It leaves out
// waiting for neighbours, and for one another.
enum class Clock : std::uint8_t { kWall, kCpu };

struct Meter {
  Executor* executor = nullptr;
  Clock clock = Clock::kWall;

  std::int32_t threads() const { return executor->concurrency(); }

  double now() const {
    if (clock == Clock::kWall) return seconds_now();
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9) /
           threads();
  }

  // Seconds of fn(task) for every task, spread over the executor.
  template <typename Fn>
  double spread(std::int64_t tasks, Fn&& fn) const {
    const double start = now();
    executor->parallel_for(
        tasks,
        [](void* context, std::int64_t task, std::int32_t) noexcept {
          (*static_cast<std::remove_reference_t<Fn>*>(context))(task);
        },
        &fn);
    return now() - start;
  }
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_METER_H_
