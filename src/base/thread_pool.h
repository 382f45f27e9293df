// The library's own threads behind default_executor() and make_thread_pool().
#ifndef KVCACHE_SRC_BASE_THREAD_POOL_H_
#define KVCACHE_SRC_BASE_THREAD_POOL_H_

#include <atomic>
#include <cstdint>

#include "kvcache/executor.h"

namespace kvcache::internal {

// A pool of `num_threads` - 1 threads; whoever calls parallel_for is the remaining one.
//
// Every call is a job with a counter of its own, on the caller's stack and in the pool's list while
// tasks are left. Idle threads join the first such job; a job that finds none is done by its caller
// alone. A task may call parallel_for: its thread is then the caller of another job. Nobody waits
// but for threads that already run tasks, so nesting and concurrent callers cannot lock up.
//
// Threads spin for at most 50 microseconds before they sleep. After fork() the child has none of
// them: it finds the state of another generation, leaves it alone (its mutex may be held for ever)
// and starts threads of its own. A fork from inside a task is not supported.
class ThreadPool final : public Executor {
 public:
  // Threads start with the first job. REQUIRES: 1 <= num_threads <= kMaxThreads.
  explicit ThreadPool(std::int32_t num_threads) noexcept : num_threads_(num_threads) {}
  // REQUIRES: no job is running.
  ~ThreadPool() override;

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Starts the threads now. Errors: kOutOfMemory if the system refuses one; the others work.
  Status start() noexcept;

  void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept override;
  std::int32_t concurrency() const noexcept override { return num_threads_; }

 private:
  struct Job;
  struct State;

  // The state of this process with its threads started; null if there is no memory for it.
  State* state() noexcept;

  const std::int32_t num_threads_;
  std::atomic<State*> state_{nullptr};
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_THREAD_POOL_H_
