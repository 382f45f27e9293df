// What a processor can do at most: loops that do one thing, compiled per instruction set.
#ifndef KVCACHE_BENCH_ROOF_KERNELS_H_
#define KVCACHE_BENCH_ROOF_KERNELS_H_

#include <cstdint>

namespace kvcache::bench {

// All run on the calling thread and on what they are given.
struct RoofKernels {
  const char* name = nullptr;  // that of the attention backend with the same instructions
  int bits = 0;                // of a vector

  // Loads every byte once, each quarter in order. `bytes` is a multiple of 512.
  void (*read)(const void* from, std::int64_t bytes);

  // Multiply-adds in registers alone, rounds times; returns the operations done (2 each).
  std::int64_t (*fma)(std::int64_t rounds);

  // Widening loads of `count` 16-bit floats to float32; `count` is a multiple of 64.
  void (*widen_f16)(const std::uint16_t* from, std::int64_t count);
  void (*widen_bf16)(const std::uint16_t* from, std::int64_t count);

  // Dot products of bf16 pairs and of int8 fours, into 32-bit sums, in registers alone; null where
  // the processor has no such instruction. Return the operations done (4 and 8 a lane).
  std::int64_t (*dot_bf16)(std::int64_t rounds) = nullptr;
  std::int64_t (*dot_int8)(std::int64_t rounds) = nullptr;
};

// The kernels of an attention backend; those of the widest vectors for a name that has none of its
// own ("reference"), or none at all (null).
const RoofKernels& roof_kernels(const char* backend);

// Every set this processor runs, widest first. Returns how many.
int all_roof_kernels(const RoofKernels* (&sets)[3]);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_ROOF_KERNELS_H_
