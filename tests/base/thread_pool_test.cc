#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/cpu_count.h"
#include "kvcache/executor.h"

#if defined(__SANITIZE_THREAD__)
#define KVC_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KVC_TSAN 1
#endif
#endif

#if defined(KVC_TSAN)
// A forked child that starts threads is what is tested here; ThreadSanitizer refuses it by default.
// It must see this function although the program hides its symbols.
extern "C" KVC_API const char* __tsan_default_options() { return "die_after_fork=0"; }
#endif

namespace kvcache {
namespace {

// Runs `fn(task, worker)` on `executor`.
template <typename Fn>
void parallel(Executor& executor, std::int64_t num_tasks, Fn fn) {
  executor.parallel_for(
      num_tasks,
      [](void* context, std::int64_t task, std::int32_t worker) noexcept {
        (*static_cast<Fn*>(context))(task, worker);
      },
      &fn);
}

std::unique_ptr<Executor> pool_of(std::int32_t num_threads) {
  Result<std::unique_ptr<Executor>> pool = make_thread_pool(num_threads);
  EXPECT_TRUE(pool.ok()) << pool.status().to_string();
  return pool.ok() ? std::move(pool).value() : nullptr;
}

// How many tasks of a job did not run exactly once.
std::int64_t wrong_counts(Executor& executor, std::int64_t num_tasks) {
  std::vector<std::atomic<int>> ran(static_cast<std::size_t>(num_tasks));
  parallel(executor, num_tasks, [&](std::int64_t task, std::int32_t) {
    ran[static_cast<std::size_t>(task)].fetch_add(1, std::memory_order_relaxed);
  });
  std::int64_t wrong = 0;
  for (const std::atomic<int>& count : ran) wrong += count.load() == 1 ? 0 : 1;
  return wrong;
}

class Pool : public ::testing::TestWithParam<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(Threads, Pool, ::testing::Values(1, 2, 3, 8, 33));

TEST_P(Pool, RunsEachTaskExactlyOnce) {
  const auto pool = pool_of(GetParam());
  ASSERT_NE(pool, nullptr);
  EXPECT_EQ(pool->concurrency(), GetParam());
  for (const std::int64_t tasks : {0, 1, 2, 3, 7, 64, 1000, 20000}) {
    EXPECT_EQ(wrong_counts(*pool, tasks), 0) << tasks;
  }
}

TEST_P(Pool, ResultsAreVisibleToTheCallerWithoutFurtherOrder) {
  const auto pool = pool_of(GetParam());
  std::vector<std::int64_t> plain(500);
  for (std::int64_t round = 1; round <= 200; ++round) {
    parallel(*pool, 500, [&](std::int64_t task, std::int32_t) {
      plain[static_cast<std::size_t>(task)] += task * round;
    });
  }
  for (std::int64_t task = 0; task < 500; ++task) {
    ASSERT_EQ(plain[static_cast<std::size_t>(task)], task * 200 * 201 / 2);
  }
}

TEST_P(Pool, NoTwoTasksShareAWorkerAtATime) {
  const auto pool = pool_of(GetParam());
  const std::int32_t workers = pool->concurrency();
  for (int round = 0; round < 50; ++round) {
    std::vector<std::atomic<int>> busy(static_cast<std::size_t>(workers));
    std::atomic<int> violations{0};
    parallel(*pool, 300, [&](std::int64_t, std::int32_t worker) {
      if (worker < 0 || worker >= workers) {
        violations.fetch_add(1);
        return;
      }
      if (busy[static_cast<std::size_t>(worker)].exchange(1) != 0) violations.fetch_add(1);
      for (int i = 0; i < 50; ++i) busy[static_cast<std::size_t>(worker)].load();
      busy[static_cast<std::size_t>(worker)].store(0);
    });
    ASSERT_EQ(violations.load(), 0);
  }
}

TEST_P(Pool, NestedJobsFinish) {
  const auto pool = pool_of(GetParam());
  std::atomic<std::int64_t> leaves{0};
  parallel(*pool, 12, [&](std::int64_t, std::int32_t) {
    parallel(*pool, 9, [&](std::int64_t, std::int32_t) {
      parallel(*pool, 5, [&](std::int64_t, std::int32_t) { leaves.fetch_add(1); });
    });
  });
  EXPECT_EQ(leaves.load(), 12 * 9 * 5);
}

TEST_P(Pool, ConcurrentCallersEachGetTheirOwnTasks) {
  const auto pool = pool_of(GetParam());
  std::atomic<std::int64_t> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 6; ++c) {
    callers.emplace_back([&, c] {
      for (int round = 0; round < 100; ++round) {
        wrong.fetch_add(wrong_counts(*pool, 1 + (c * 37 + round) % 90));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(ThreadPool, HundredThousandTinyJobs) {
  const auto pool = pool_of(3);
  std::atomic<std::int64_t> sum{0};
  for (int job = 0; job < 100000; ++job) {
    parallel(*pool, 3, [&](std::int64_t task, std::int32_t) {
      sum.fetch_add(task + 1, std::memory_order_relaxed);
    });
  }
  EXPECT_EQ(sum.load(), std::int64_t{100000} * 6);
}

TEST(ThreadPool, WakesThreadsThatWentToSleep) {
  const auto pool = pool_of(4);
  for (int round = 0; round < 5; ++round) {
    // Far longer than the threads spin.
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    // Every task waits for the others: this only ends if four threads take part.
    std::atomic<int> arrived{0};
    parallel(*pool, 4, [&](std::int64_t, std::int32_t) {
      arrived.fetch_add(1);
      while (arrived.load() < 4) std::this_thread::yield();
    });
    EXPECT_EQ(arrived.load(), 4);
  }
}

TEST(ThreadPool, EndsCleanlyWithoutEverWorking) {
  for (int round = 0; round < 20; ++round) {
    const auto idle = pool_of(5);
    internal::ThreadPool never_started(5);
  }
}

TEST(ThreadPool, SizeIsChecked) {
  for (const std::int32_t bad : {-1, 0, 1025}) {
    const auto pool = make_thread_pool(bad);
    EXPECT_EQ(pool.status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(pool.status().message(),
              "num_threads: found " + std::to_string(bad) + ", expected 1 .. 1024");
  }
}

TEST(Executors, DefaultHasTheDefaultCountAndSerialIsOne) {
  EXPECT_EQ(default_executor().concurrency(), internal::default_thread_count());
  EXPECT_EQ(&default_executor(), &default_executor());
  EXPECT_EQ(wrong_counts(default_executor(), 100), 0);
  EXPECT_EQ(serial_executor().concurrency(), 1);
  std::vector<std::int64_t> order;
  parallel(serial_executor(), 5, [&](std::int64_t task, std::int32_t worker) {
    EXPECT_EQ(worker, 0);
    order.push_back(task);
  });
  EXPECT_EQ(order, (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
}

// Exit code of a child that runs `fn`.
template <typename Fn>
int in_child(Fn fn) {
  const pid_t child = fork();
  if (child == 0) _exit(fn() ? 0 : 1);
  int status = -1;
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -2;
}

TEST(ThreadPool, ChildOfAForkHasThreadsOfItsOwn) {
  const auto pool = pool_of(3);
  ASSERT_EQ(wrong_counts(*pool, 100), 0);
  const int code = in_child([&] {
    // Needs all three threads at once; the parent's two are not here.
    std::atomic<int> arrived{0};
    parallel(*pool, 3, [&](std::int64_t, std::int32_t) {
      arrived.fetch_add(1);
      while (arrived.load() < 3) std::this_thread::yield();
    });
    return arrived.load() == 3 && wrong_counts(*pool, 1000) == 0 &&
           wrong_counts(default_executor(), 1000) == 0;
  });
  EXPECT_EQ(code, 0);
  EXPECT_EQ(wrong_counts(*pool, 100), 0);
}

TEST(ThreadPool, ForkWhileOthersWorkLeavesBothSidesWorking) {
  const auto pool = pool_of(3);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop.load()) wrong_counts(*pool, 50);
  });
  for (int round = 0; round < 5; ++round) {
    // The mutex of the pool may be held at this moment, and stays so in the child.
    EXPECT_EQ(in_child([&] {
                std::atomic<std::int64_t> sum{0};
                parallel(*pool, 50, [&](std::int64_t task, std::int32_t) { sum.fetch_add(task); });
                return sum.load() == 49 * 50 / 2;
              }),
              0);
  }
  stop.store(true);
  other.join();
}

}  // namespace
}  // namespace kvcache
