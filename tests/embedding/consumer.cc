// A program of somebody else: a cache, one update, attention, and threads through its own executor.
#include <cstdio>
#include <cstring>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

class CountingExecutor final : public kvcache::Executor {
 public:
  void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept override {
    for (std::int64_t task = 0; task < num_tasks; ++task) fn(context, task, 0);
    tasks += num_tasks;
  }
  std::int32_t concurrency() const noexcept override { return 1; }

  std::int64_t tasks = 0;
};

kvcache::Status run() {
  using kvcache::DType;
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create());
  const std::vector<float> rows(8, 2.0f);
  std::vector<float> out(8);
  const kvcache::TensorView token(rows.data(), DType::kF32, {1, 2, 1, 4});
  KVC_RETURN_IF_ERROR(cache.update(token, token).status());
  KVC_ASSIGN_OR_RETURN(auto view, cache.view(0));
  CountingExecutor executor;
  KVC_RETURN_IF_ERROR(kvcache::attend(token, {}, view, {out.data(), DType::kF32, {1, 2, 1, 4}}, {},
                                      {}, {&executor, nullptr}));
  if (out != rows || executor.tasks == 0) {
    return {kvcache::StatusCode::kInternal, "attention over one token is not its value"};
  }
  std::printf("kvcache %s\n", kvcache::version());
  return {};
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
