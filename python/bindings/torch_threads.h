// PyTorch's own threads as an executor.
#ifndef KVCACHE_PYTHON_BINDINGS_TORCH_THREADS_H_
#define KVCACHE_PYTHON_BINDINGS_TORCH_THREADS_H_

#include "kvcache/executor.h"

namespace kvcache::python {

// Runs on the OpenMP threads of the PyTorch that the process has loaded, as many as
// torch.set_num_threads says: between PyTorch's operations they wait by spinning, and threads of
// ours would have to take the processors from them. default_executor() where PyTorch is not loaded
// or has no OpenMP of GNU's interface. Thread safety: may be called from any thread.
Executor& torch_threads() noexcept;

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_TORCH_THREADS_H_
