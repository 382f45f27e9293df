#include "python/bindings/torch_threads.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace kvcache::python {
namespace {

// GNU's interface of OpenMP, which LLVM's and Intel's runtimes have too.
struct OpenMp {
  void (*parallel)(void (*body)(void*), void* context, unsigned num_threads, unsigned flags);
  int (*thread_num)();
  int (*max_threads)();
};

template <typename Function>
bool find(void* library, const char* name, Function* function) noexcept {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

class TorchThreads final : public Executor {
 public:
  explicit TorchThreads(const OpenMp& openmp) noexcept : openmp_(openmp) {}

  void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept override {
    struct Loop {
      const OpenMp& openmp;
      std::int64_t num_tasks;
      TaskFn fn;
      void* context;
      std::atomic<std::int64_t> next = 0;
    } loop{openmp_, num_tasks, fn, context};
    const auto body = [](void* shared) {
      Loop& all = *static_cast<Loop*>(shared);
      const std::int32_t worker = all.openmp.thread_num();
      for (;;) {
        const std::int64_t task = all.next.fetch_add(1, std::memory_order_relaxed);
        if (task >= all.num_tasks) return;
        all.fn(all.context, task, worker);
      }
    };
    const std::int64_t threads = std::min<std::int64_t>(num_tasks, concurrency());
    if (threads > 0) openmp_.parallel(body, &loop, static_cast<unsigned>(threads), 0);
  }

  std::int32_t concurrency() const noexcept override { return std::max(1, openmp_.max_threads()); }

 private:
  OpenMp openmp_;
};

// Null while PyTorch is not loaded. Its library's handle is kept, as its threads are never done.
Executor* find_torch_threads() noexcept {
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (torch == nullptr) return nullptr;
  // A name is looked for in the library and those that it needs.
  OpenMp openmp = {};
  if (!find(torch, "GOMP_parallel", &openmp.parallel) ||
      !find(torch, "omp_get_thread_num", &openmp.thread_num) ||
      !find(torch, "omp_get_max_threads", &openmp.max_threads)) {
    return &default_executor();
  }
  static TorchThreads threads(openmp);
  return &threads;
}

}  // namespace

Executor& torch_threads() noexcept {
  static std::atomic<Executor*> found = nullptr;
  Executor* executor = found.load(std::memory_order_acquire);
  if (executor == nullptr) {
    executor = find_torch_threads();
    if (executor == nullptr) return default_executor();
    found.store(executor, std::memory_order_release);
  }
  return *executor;
}

}  // namespace kvcache::python
