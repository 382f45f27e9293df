// The list of backends of this build.
#include <cstring>

#include "base/cpu_features.h"
#include "kernels/absent.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/no_cuda/cuda.h"
#include "tensor/codecs/rotate.h"
#include "tensor/convert.h"

namespace kvcache::internal {
namespace {

Backend cuts_backend(const char* name, const char* description) noexcept {
  Backend backend;
  backend.name = name;
  backend.description = description;
  backend.rows = &absent_rows();
  backend.attends = Attends::kByCuts;
  return backend;
}

[[maybe_unused]] void fill(Backend& backend, const Availability& availability,
                           const RowKernels& rows, const AttentionKernels& cuts) noexcept {
  backend.availability = availability;
  backend.rows = &rows;
  backend.cuts = &cuts;
}

// The definition: of attention, src/attention/reference.cc; of rows, tensor/convert.h.
Backend reference_backend() noexcept {
  static constexpr RowKernels rows = {copy_rows,    copy_rows,    copy_rows,  first_refused,
                                      encode_block, decode_block, rotate_rows};
  Backend backend;
  backend.name = "reference";
  backend.description = "the definition in float64: slow, readable, the oracle of the rest";
  backend.availability = {true, "runs everywhere"};
  backend.rows = &rows;
  backend.attends = Attends::kByDefinition;
  return backend;
}

struct List {
  Backend backends[7];

  List() noexcept {
    Backend& avx512bf16 = backends[0];
    Backend& avx512 = backends[1];
    Backend& avx2 = backends[2];
    Backend& neon = backends[3];
    Backend& portable = backends[4];
    avx512bf16 = cuts_backend("avx512bf16",
                              "as avx512; prefill over bf16 rows by dot products of bf16 pairs");
    avx512 = cuts_backend("avx512", "f32 arithmetic in 512 bits");
    avx2 = cuts_backend("avx2", "f32 arithmetic in 256 bits, fused multiply-add");
    neon = cuts_backend("neon", "f32 arithmetic in 128 bits, fused multiply-add");
    portable = cuts_backend("portable", "f32 arithmetic in the vectors of the platform's baseline");
    fill(portable, {true, "runs everywhere"}, portable::row_kernels(),
         portable::attention_kernels());
    backends[5] = cuda_backend();
    backends[6] = reference_backend();
#if KVC_ARM64
    fill(neon, {true, "every arm64 processor has NEON"}, neon::row_kernels(),
         neon::attention_kernels());
#else
    neon.availability.reason = "not an arm64 build";
#endif
#if KVC_X86_64
    const CpuFeatures& cpu = cpu_features();
    fill(avx512bf16,
         {cpu.avx512_bf16 && cpu.avx512_vnni,
          cpu.avx512_bf16 && cpu.avx512_vnni
              ? "the processor has AVX-512 F, BW, VL, BF16 and VNNI"
              : "the processor lacks AVX-512 F, BW, VL, BF16 or VNNI"},
         avx512::row_kernels(), avx512bf16::attention_kernels());
    fill(avx512,
         {cpu.avx512, cpu.avx512 ? "the processor has AVX-512 F, BW and VL"
                                 : "the processor lacks AVX-512 F, BW or VL"},
         avx512::row_kernels(), avx512::attention_kernels());
    fill(avx2,
         {cpu.avx2, cpu.avx2 ? "the processor has AVX2, FMA and F16C"
                             : "the processor lacks AVX2, FMA or F16C"},
         avx2::row_kernels(), avx2::attention_kernels());
#else
    for (Backend* x86 : {&avx512bf16, &avx512, &avx2}) {
      x86->availability.reason = "not an x86-64 build";
    }
#endif
  }
};

constexpr std::int32_t kCount = sizeof(List::backends) / sizeof(Backend);

}  // namespace

const Backend* all_backends(std::int32_t* count) noexcept {
  static const List list;
  *count = kCount;
  return list.backends;
}

const Backend* find_backend(const char* name) noexcept {
  std::int32_t count = 0;
  const Backend* backends = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    if (std::strcmp(backends[i].name, name) == 0) return &backends[i];
  }
  return nullptr;
}

}  // namespace kvcache::internal
