// The row kernels that tests compare with the definition: of every backend that runs here, and in
// vectors of 32 and 64 bytes.
#ifndef KVCACHE_TESTS_KERNELS_CPU_NAMED_ROWS_H_
#define KVCACHE_TESTS_KERNELS_CPU_NAMED_ROWS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/vector_widths.h"

namespace kvcache::internal {

struct NamedRows {
  std::string name;
  const RowKernels* kernels;
};

inline std::vector<NamedRows> all_rows() {
  std::vector<NamedRows> found = {{"vectors_256", &vectors_256::row_kernels()},
                                  {"vectors_512", &vectors_512::row_kernels()},
                                  {"vectors_512_dot", &vectors_512_dot::row_kernels()}};
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    if (all[i].availability.here) found.push_back({all[i].name, all[i].rows});
  }
  return found;
}

}  // namespace kvcache::internal

#endif  // KVCACHE_TESTS_KERNELS_CPU_NAMED_ROWS_H_
