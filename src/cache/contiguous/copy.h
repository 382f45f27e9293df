// Copies of rows that use the executor once they are large enough to pay for it.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "base/checked_math.h"
#include "kvcache/executor.h"
#include "tensor/convert.h"

namespace kvcache::internal {

// Below this many bytes waking a thread costs more than it saves; a decode step stays below it.
inline constexpr std::int64_t kParallelBytes = std::int64_t{256} * 1024;
inline constexpr std::int64_t kTaskBytes =
    std::int64_t{128} * 1024;  // the least worth a task of its own

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
  Executor& executor = context.executor != nullptr ? *context.executor : default_executor();
  executor.parallel_for(
      tasks,
      [](void* data, std::int64_t task, std::int32_t) noexcept {
        const Work& w = *static_cast<const Work*>(data);
        w.fn(w.start_of(task), w.start_of(task + 1));
      },
      &work);
}

// copy_rows, cut over its three outer axes.
void copy_rows_on(const ExecContext& context, const RowCopy& copy) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_
