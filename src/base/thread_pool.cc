#include "base/thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "base/cpu_count.h"
#include "base/door.h"
#include "base/expect.h"
#include "base/immortal.h"

namespace kvcache {
namespace internal {
namespace {

constexpr std::chrono::microseconds kSpin{50};
constexpr int kPausesPerLook = 32;  // between looks at the clock

inline void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until `done()` or for kSpin. True if done.
template <typename Done>
bool spin(Done done) noexcept {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

// Counts the forks on the way to this process.
std::atomic<std::uint64_t> g_generation{0};

std::uint64_t generation() noexcept {
  static const bool watched [[maybe_unused]] = [] {
    return pthread_atfork(nullptr, nullptr,
                          [] { g_generation.fetch_add(1, std::memory_order_relaxed); }) == 0;
  }();
  return g_generation.load(std::memory_order_relaxed);
}

}  // namespace

struct ThreadPool::Job {
  TaskFn fn;
  void* context;
  std::int64_t num_tasks;
  std::atomic<std::int64_t> next_task{0};
  // Pool threads inside. Changes under the mutex; the caller spins on it without.
  std::atomic<std::int32_t> inside{0};
  std::int32_t next_worker = 1;  // under the mutex; a thread joins a job at most once
  Job* next = nullptr;           // in the list of jobs, under the mutex

  bool has_tasks() const noexcept { return next_task.load(std::memory_order_relaxed) < num_tasks; }

  void work(std::int32_t worker) noexcept {
    while (true) {
      const std::int64_t task = next_task.fetch_add(1, std::memory_order_relaxed);
      if (task >= num_tasks) return;
      fn(context, task, worker);
    }
  }
};

struct ThreadPool::State {
  explicit State(std::uint64_t generation_in) noexcept : generation(generation_in) {}

  const std::uint64_t generation;
  State* before_fork = nullptr;  // kept reachable, never used
  std::mutex mutex;
  std::condition_variable wake;  // threads without a job
  std::condition_variable done;  // callers waiting for threads inside their jobs
  // Moves with every job that is listed; idle threads spin on it.
  std::atomic<std::uint64_t> jobs_listed{0};
  std::atomic<bool> started{false};  // changes under the mutex

  // Under the mutex.
  Job* first = nullptr;
  std::int32_t sleeping = 0;
  bool stopping = false;
  std::vector<std::thread> threads;

  Job* find_job() noexcept {
    for (Job* job = first; job != nullptr; job = job->next) {
      if (job->has_tasks()) return job;
    }
    return nullptr;
  }

  void list_job(Job* job) noexcept {
    bool anyone_asleep = false;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      Job** end = &first;
      while (*end != nullptr) end = &(*end)->next;
      *end = job;
      jobs_listed.fetch_add(1, std::memory_order_release);
      anyone_asleep = sleeping > 0;
    }
    if (!anyone_asleep) return;
    if (job->num_tasks > 2) {
      wake.notify_all();
    } else {
      wake.notify_one();
    }
  }

  void unlist_job(Job* job) noexcept {
    Job** link = &first;
    while (*link != job) link = &(*link)->next;
    *link = job->next;
  }

  // Returns when no thread is inside any more, with the job out of the list.
  void finish_job(Job* job) noexcept {
    std::unique_lock<std::mutex> lock(mutex);
    unlist_job(job);
    if (job->inside.load(std::memory_order_relaxed) == 0) return;
    lock.unlock();
    spin([&] { return job->inside.load(std::memory_order_acquire) == 0; });
    // Also after a successful spin: the last thread lets go of the job when it lets go of the
    // mutex.
    lock.lock();
    done.wait(lock, [&] { return job->inside.load(std::memory_order_relaxed) == 0; });
  }

  void thread_main() noexcept {
    std::unique_lock<std::mutex> lock(mutex);
    while (!stopping) {
      Job* job = find_job();
      if (job != nullptr) {
        const std::int32_t worker = job->next_worker++;
        job->inside.fetch_add(1, std::memory_order_relaxed);
        lock.unlock();
        job->work(worker);
        lock.lock();
        if (job->inside.fetch_sub(1, std::memory_order_release) == 1) done.notify_all();
        continue;
      }
      const std::uint64_t seen = jobs_listed.load(std::memory_order_relaxed);
      lock.unlock();
      spin([&] { return jobs_listed.load(std::memory_order_acquire) != seen; });
      lock.lock();
      if (stopping || jobs_listed.load(std::memory_order_relaxed) != seen) continue;
      ++sleeping;
      wake.wait(lock);
      --sleeping;
    }
  }

  // Starts up to `count` threads, once.
  Status start_threads(std::int32_t count) noexcept {
    if (started.load(std::memory_order_acquire)) return {};
    const std::lock_guard<std::mutex> lock(mutex);
    if (started.load(std::memory_order_relaxed)) return {};
    // Signals are for the host's threads: ours inherit a mask that blocks them all.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    const bool masked = pthread_sigmask(SIG_SETMASK, &all, &before) == 0;
    Status status = at_door([&]() -> Status {
      try {
        threads.reserve(static_cast<std::size_t>(count));
        while (static_cast<std::int32_t>(threads.size()) < count) {
          threads.emplace_back([this] { thread_main(); });
        }
      } catch (const std::system_error&) {
        return internal::refusal(
            StatusCode::kOutOfMemory, "num_threads", count + 1,
            "at most the " + std::to_string(threads.size() + 1) + " that the system granted");
      }
      return {};
    });
    if (masked) (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
    started.store(true, std::memory_order_release);
    return status;
  }

  void stop() noexcept {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      stopping = true;
      jobs_listed.fetch_add(1, std::memory_order_release);
      wake.notify_all();
    }
    for (std::thread& thread : threads) thread.join();
  }
};

ThreadPool::~ThreadPool() {
  State* state = state_.load(std::memory_order_acquire);
  // A state from before a fork has threads that are not here to be joined: it is left behind.
  if (state == nullptr || state->generation != generation()) return;
  state->stop();
  delete state;
}

ThreadPool::State* ThreadPool::state() noexcept {
  const std::uint64_t now = generation();
  State* found = state_.load(std::memory_order_acquire);
  if (found == nullptr || found->generation != now) {
    State* fresh = new (std::nothrow) State(now);
    if (fresh == nullptr) return nullptr;
    fresh->before_fork = found;
    if (state_.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) {
      found = fresh;
    } else {
      delete fresh;  // another caller was first, and `found` is what it made
    }
  }
  return found;
}

Status ThreadPool::start() noexcept {
  if (num_threads_ == 1) return {};
  State* found = state();
  return found == nullptr ? out_of_memory() : found->start_threads(num_threads_ - 1);
}

void ThreadPool::parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept {
  State* pool = nullptr;
  if (num_tasks > 1 && num_threads_ > 1) {
    pool = state();
    // With fewer threads than asked for, the work is done all the same.
    if (pool != nullptr) (void)pool->start_threads(num_threads_ - 1);
  }
  if (pool == nullptr) {
    for (std::int64_t task = 0; task < num_tasks; ++task) fn(context, task, 0);
    return;
  }
  Job job{fn, context, num_tasks};
  pool->list_job(&job);
  job.work(0);
  pool->finish_job(&job);
}

}  // namespace internal

inline namespace v0 {

Executor::~Executor() = default;

namespace {

class SerialExecutor final : public Executor {
 public:
  void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept override {
    for (std::int64_t task = 0; task < num_tasks; ++task) fn(context, task, 0);
  }
  std::int32_t concurrency() const noexcept override { return 1; }
};

}  // namespace

Executor& default_executor() noexcept {
  static internal::Immortal<internal::ThreadPool> pool(internal::default_thread_count());
  return *pool;
}

Executor& serial_executor() noexcept {
  static internal::Immortal<SerialExecutor> serial;
  return *serial;
}

Result<std::unique_ptr<Executor>> make_thread_pool(std::int32_t num_threads) {
  return internal::at_door([&]() -> Result<std::unique_ptr<Executor>> {
    if (num_threads < 1 || num_threads > internal::kMaxThreads) {
      return internal::refusal("num_threads", num_threads,
                               "1 .. " + std::to_string(internal::kMaxThreads));
    }
    auto pool = std::make_unique<internal::ThreadPool>(num_threads);
    KVC_RETURN_IF_ERROR(pool->start());
    return std::unique_ptr<Executor>(std::move(pool));
  });
}

}  // namespace v0
}  // namespace kvcache
