// A host that runs OpenMP already lends its threads, so that no second pool competes with it.
#include <omp.h>

#include <atomic>
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

class OpenMpExecutor final : public kvcache::Executor {
 public:
  void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept override {
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t task = 0; task < num_tasks; ++task) {
      fn(context, task, omp_get_thread_num());
      ++tasks;
    }
  }
  std::int32_t concurrency() const noexcept override { return omp_get_max_threads(); }

  std::atomic<std::int64_t> tasks = 0;
};

kvcache::Status run() {
  using kvcache::DType;
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create());
  const std::vector<float> rows(8 * 2000 * 64, 0.5f);
  std::vector<float> out(8 * 64);
  OpenMpExecutor openmp;
  const kvcache::ExecContext context{&openmp, nullptr};
  const kvcache::TensorView text(rows.data(), DType::kF32, {1, 8, 2000, 64});
  KVC_RETURN_IF_ERROR(cache.update(text, text, 0, {}, context).status());
  KVC_ASSIGN_OR_RETURN(const auto view, cache.view(0));
  KVC_RETURN_IF_ERROR(kvcache::attend({rows.data(), DType::kF32, {1, 8, 1, 64}}, {}, view,
                                      {out.data(), DType::kF32, {1, 8, 1, 64}}, {}, {}, context));
  std::printf("%d OpenMP threads ran %lld tasks; out %.2f\n", openmp.concurrency(),
              static_cast<long long>(openmp.tasks), static_cast<double>(out[0]));
  return {};
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
