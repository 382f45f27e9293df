// Where work runs: the host lends its threads, or a small pool of ours is used.
#ifndef KVCACHE_EXECUTOR_H_
#define KVCACHE_EXECUTOR_H_

#include <cstdint>
#include <memory>

#include "kvcache/status.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v0 {

// Runs independent tasks. Implement it to lend the host's own threads.
//
// Thread safety: several threads may call parallel_for of one executor at once. No task waits for
// another, so running them one after another on the caller is always right.
class KVC_API Executor {
 public:
  // `task` is 0 .. num_tasks-1, each exactly once; `worker` is 0 .. concurrency()-1, and no two
  // tasks of one parallel_for run under the same worker at the same time.
  using TaskFn = void (*)(void* context, std::int64_t task, std::int32_t worker) noexcept;

  virtual ~Executor();

  // Returns when all tasks are done. The caller takes part.
  virtual void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept = 0;

  // The largest number of tasks that may run at once; at least 1.
  virtual std::int32_t concurrency() const noexcept = 0;
};

// The library's own pool: started at first use, sized by KVCACHE_NUM_THREADS, else by the CPU
// affinity and the cgroup's quota; rebuilt after fork(). Lives as long as the process.
KVC_API Executor& default_executor() noexcept;

// Runs everything on the calling thread.
KVC_API Executor& serial_executor() noexcept;

// A pool of `num_threads` (the caller included) owned by whoever holds it.
// Errors: kInvalidArgument if num_threads is outside 1 .. 1024; kOutOfMemory if the system
// refuses a thread.
KVC_API Result<std::unique_ptr<Executor>> make_thread_pool(std::int32_t num_threads);

// Where a call runs. Defaults: default_executor(), no device stream.
struct ExecContext {
  Executor* executor = nullptr;
  void* stream = nullptr;  // a device stream (cudaStream_t), for views that live on a device

  Executor& get() const noexcept { return executor != nullptr ? *executor : default_executor(); }
};

}  // namespace v0
}  // namespace kvcache

#endif  // KVCACHE_EXECUTOR_H_
