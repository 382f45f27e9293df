// What tests of attend_cut share: the kernels, and rows in pages.
#ifndef KVCACHE_TESTS_KERNELS_CPU_CUT_ROWS_H_
#define KVCACHE_TESTS_KERNELS_CPU_CUT_ROWS_H_

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cut.h"
#include "kernels/cpu/vector_widths.h"
#include "kvcache/types.h"

namespace kvcache::internal {

struct Kernels {
  std::string name;
  const AttentionKernels* functions;

  // Whether inexact prefill over bf16 rows rounds queries and weights to bf16.
  bool rounds() const { return name == "avx512bf16" || name == "vectors_512_dot"; }
};

// Every backend that runs here, and the algorithm in vectors of 32 and 64 bytes, whatever the
// processor has.
inline std::vector<Kernels> all_kernels() {
  std::vector<Kernels> found = {{"vectors_256", &vectors_256::attention_kernels()},
                                {"vectors_512", &vectors_512::attention_kernels()},
                                {"vectors_512_dot", &vectors_512_dot::attention_kernels()}};
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    if (all[i].availability.here && all[i].attends == Attends::kByCuts) {
      found.push_back({all[i].name, all[i].cuts});
    }
  }
  return found;
}

// Rows in pages of a random order; unused slots are NaN.
struct Rows {
  DType dtype = DType::kF32;
  std::int64_t dim = 0, page_size = 0;
  std::vector<float> values;          // [num_rows, dim] as stored
  std::vector<std::uint32_t> stored;  // words, so that rows of any type are aligned

  std::byte* at(std::int64_t page, std::int64_t slot) {
    return reinterpret_cast<std::byte*>(stored.data()) +
           (page * page_size + slot) * dim * size_of(dtype);
  }
};

inline void put(DType dtype, float x, std::byte* to, float* as_stored) {
  if (dtype == DType::kF32) {
    std::memcpy(to, &x, sizeof(x));
    *as_stored = x;
  } else if (dtype == DType::kF16) {
    const Float16 half = to_float16(x);
    std::memcpy(to, &half, sizeof(half));
    *as_stored = to_float(half);
  } else {
    const BFloat16 half = to_bfloat16(x);
    std::memcpy(to, &half, sizeof(half));
    *as_stored = to_float(half);
  }
}

inline Rows random_rows(std::mt19937& random, DType dtype, std::int64_t num_rows, std::int64_t dim,
                        std::int64_t page_size, const std::vector<std::int32_t>& table) {
  Rows rows;
  rows.dtype = dtype;
  rows.dim = dim;
  rows.page_size = page_size;
  const auto slots = static_cast<std::int64_t>(table.size()) * page_size;
  rows.stored.assign(static_cast<std::size_t>(slots * dim * size_of(dtype) / 4 + 1), 0xffffffffu);
  std::normal_distribution<float> normal;
  for (std::int64_t r = 0; r < num_rows; ++r) {
    std::byte* to = rows.at(table[static_cast<std::size_t>(r / page_size)], r % page_size);
    for (std::int64_t d = 0; d < dim; ++d) {
      float stored = 0;
      put(dtype, normal(random), to + d * size_of(dtype), &stored);
      rows.values.push_back(stored);
    }
  }
  return rows;
}

}  // namespace kvcache::internal

#endif  // KVCACHE_TESTS_KERNELS_CPU_CUT_ROWS_H_
