#include "kernels/absent.h"

namespace kvcache::internal {

const RowKernels& absent_rows() noexcept {
  static constexpr auto nothing = [](const RowCopy&) {};
  static constexpr auto none = [](const CodedBlock&) {};
  static constexpr RowKernels kernels = {nothing,
                                         nothing,
                                         nothing,
                                         [](const CodedBlock&) { return std::int64_t{-1}; },
                                         none,
                                         none,
                                         [](float*, std::int64_t, std::int64_t, std::int64_t) {}};
  return kernels;
}

}  // namespace kvcache::internal
