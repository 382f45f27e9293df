#include "base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvcache::internal {
namespace {

// Runs tasks one by one, and counts them.
class CountingExecutor final : public Executor {
 public:
  void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept override {
    tasks += num_tasks;
    for (std::int64_t task = 0; task < num_tasks; ++task) fn(context, task, 0);
  }
  std::int32_t concurrency() const noexcept override { return 3; }

  std::int64_t tasks = 0;
};

TEST(ForEachRange, EveryUnitIsVisitedOnceWhateverTheCut) {
  for (const std::int64_t units : {0, 1, 2, 7, 64, 1000}) {
    for (const std::int64_t bytes : {std::int64_t{0}, kParallelBytes, 5 * kParallelBytes + 1}) {
      CountingExecutor executor;
      std::vector<int> visits(static_cast<std::size_t>(units));
      const ExecContext context{&executor, nullptr};
      for_each_range(context, units, bytes, [&](std::int64_t begin, std::int64_t end) noexcept {
        for (; begin < end; ++begin) ++visits[static_cast<std::size_t>(begin)];
      });
      EXPECT_EQ(visits, std::vector<int>(static_cast<std::size_t>(units), 1))
          << units << " units, " << bytes << " bytes";
    }
  }
}

TEST(ForEachRange, LittleWorkLeavesTheExecutorAlone) {
  CountingExecutor executor;
  const ExecContext context{&executor, nullptr};
  const auto nothing = [](std::int64_t, std::int64_t) noexcept {};
  for_each_range(context, 1000, kParallelBytes - 1, nothing);
  for_each_range(context, 1, std::int64_t{1} << 40, nothing);
  EXPECT_EQ(executor.tasks, 0);
  for_each_range(context, 1000, kParallelBytes, nothing);
  EXPECT_EQ(executor.tasks, kParallelBytes / kTaskBytes);
}

TEST(ExecContext, GetIsTheExecutorGivenElseTheDefault) {
  EXPECT_EQ(&ExecContext().get(), &default_executor());
  const ExecContext context{&serial_executor(), nullptr};
  EXPECT_EQ(&context.get(), &serial_executor());
}

}  // namespace
}  // namespace kvcache::internal
