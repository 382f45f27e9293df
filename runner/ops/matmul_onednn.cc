#include "runner/ops/matmul.h"

#if KVC_HAVE_ONEDNN

#include <exception>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>

// Declared by hand: clang cannot read the omp.h of g++, whose runtime oneDNN uses.
extern "C" void omp_set_num_threads(int) noexcept;
extern "C" int omp_get_max_threads() noexcept;

namespace kvcache::runner {
namespace {

using dnnl::memory;

// One OpenMP thread per call, because the slices already run on our executor: one pool, no second
// runtime spinning. The setting is of the calling thread, which may be the host's: it is put back.
class OneOpenMpThread {
 public:
  OneOpenMpThread() noexcept : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(before_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  int before_;
};

// Primitives are cheap to ask for again: oneDNN caches them by shape.
struct Queue {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
};

Queue& this_thread() {
  thread_local Queue queue;
  return queue;
}

// False where oneDNN refuses the product (its errors are exceptions).
bool multiply(memory::data_type type, const void* x, std::int64_t rows, const void* weight,
              std::int64_t out, std::int64_t in, float* y) try {
  const OneOpenMpThread one_thread;
  Queue& queue = this_thread();
  const memory::desc x_desc({rows, in}, type, memory::dims{in, 1});
  const memory::desc w_desc({in, out}, type, memory::dims{1, in});
  const memory::desc y_desc({rows, out}, memory::data_type::f32, memory::dims{out, 1});
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x_desc, w_desc, y_desc),
                                                 queue.engine);
  const dnnl::matmul product(description);
  product.execute(queue.stream,
                  {{DNNL_ARG_SRC, memory(x_desc, queue.engine, const_cast<void*>(x))},
                   {DNNL_ARG_WEIGHTS, memory(w_desc, queue.engine, const_cast<void*>(weight))},
                   {DNNL_ARG_DST, memory(y_desc, queue.engine, y)}});
  queue.stream.wait();
  return true;
} catch (const std::exception&) {
  return false;
}

// Only where its sums have the order of ours (LibraryOrder in product.h): measured on AVX-512.
// Elsewhere one token and many would differ by roundings that 16-bit weights and caches then
// magnify.
bool has_f32_product() {
  const auto isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core || isa == dnnl::cpu_isa::avx512_core_vnni ||
         isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

// Not with AMX, whose tiles add pairs in another order: logits of one token and of many were .03
// apart there. (To hold oneDNN to AVX-512 would be a setting of the whole process.)
bool has_bf16_product() { return dnnl::get_effective_cpu_isa() == dnnl::cpu_isa::avx512_core_bf16; }

}  // namespace

bool matmul(const float* x, std::int64_t rows, const float* weight, std::int64_t out,
            std::int64_t in, float* y) {
  return matmul_has_f32() && multiply(memory::data_type::f32, x, rows, weight, out, in, y);
}

bool matmul_bf16(const std::uint16_t* x, std::int64_t rows, const std::uint16_t* weight,
                 std::int64_t out, std::int64_t in, float* y) {
  return matmul_has_bf16() && multiply(memory::data_type::bf16, x, rows, weight, out, in, y);
}

bool matmul_has_f32() {
  static const bool available = has_f32_product();
  return available;
}

bool matmul_has_bf16() {
  static const bool available = has_bf16_product();
  return available;
}

const char* matmul_backend() {
  static const std::string name = []() -> std::string {
    if (!matmul_has_f32()) return "ours";
    const dnnl_version_t* version = dnnl_version();
    return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
           std::to_string(version->patch);
  }();
  return name.c_str();
}

}  // namespace kvcache::runner

#endif  // KVC_HAVE_ONEDNN
