#include "kernels/no_cuda/cuda.h"

#include "kernels/absent.h"

namespace kvcache::internal {

Backend cuda_backend() noexcept {
  Backend backend;
  backend.name = "cuda";
  backend.description = "rows and attention on an NVIDIA GPU";
  backend.device = {DeviceKind::kCuda, 0};
  backend.availability = {false, "this version has no CUDA kernels"};
  backend.rows = &absent_rows();
  return backend;
}

}  // namespace kvcache::internal
