// Work over a range of independent units, in pieces on an executor where it is much.
#ifndef KVCACHE_SRC_BASE_PARALLEL_H_
#define KVCACHE_SRC_BASE_PARALLEL_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "base/checked_math.h"
#include "kvcache/executor.h"

namespace kvcache::internal {

// Below this many bytes waking a thread costs more than it saves; a decode step stays below it.
inline constexpr std::int64_t kParallelBytes = std::int64_t{256} * 1024;
// The least worth a task of its own.
inline constexpr std::int64_t kTaskBytes = std::int64_t{128} * 1024;

// fn(begin, end) noexcept over 0 .. units, which move `bytes` in all; in ranges on the executor if
// that is much. REQUIRES: units are independent.
template <typename Fn>
void for_each_range(const ExecContext& context, std::int64_t units, std::int64_t bytes, Fn&& fn) {
  const std::int64_t tasks = std::min(units, ceil_div(bytes, kTaskBytes));
  if (bytes < kParallelBytes || tasks < 2) {
    fn(std::int64_t{0}, units);
    return;
  }
  struct Work {
    std::remove_reference_t<Fn>& fn;
    std::int64_t units, tasks;
    std::int64_t start_of(std::int64_t task) const noexcept {
      const std::int64_t each = units / tasks;
      return task * each + std::min(task, units % tasks);
    }
  } work{fn, units, tasks};
  context.get().parallel_for(
      tasks,
      [](void* data, std::int64_t task, std::int32_t) noexcept {
        const Work& w = *static_cast<const Work*>(data);
        w.fn(w.start_of(task), w.start_of(task + 1));
      },
      &work);
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_PARALLEL_H_
