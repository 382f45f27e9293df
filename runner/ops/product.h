// Products of one slice of a weight matrix, per instruction set.
#ifndef KVCACHE_RUNNER_OPS_PRODUCT_H_
#define KVCACHE_RUNNER_OPS_PRODUCT_H_

#include <cstdint>

namespace kvcache::runner {

// y[r * y_stride + o] = sum over k of x[r * in + k] * weight[o * in + k]. Rows of x and of the
// weights are dense.
struct SliceProduct {
  const float* x = nullptr;  // [rows, in]
  std::int64_t rows = 0;
  std::int64_t in = 0;
  const void* weight = nullptr;  // [outs, in]
  std::int64_t outs = 0;
  float* y = nullptr;
  std::int64_t y_stride = 0;  // elements
  float* panel = nullptr;     // [kPanelFloats], any content; not needed for one row
};
inline constexpr std::int64_t kPanelFloats = 1024 * 32;

// A sum runs over k in ascending order, one multiply-add at a time, from zero anew at multiples of
// this; the pieces are added in order. It is the order oneDNN 2.6 has on AVX-512 (measured, f32
// and bf16), so that one row by us and many by it are the same bits there.
constexpr std::int64_t sum_cut(std::int64_t in) { return in <= 1024 ? 512 : 1024; }

// Every row of y depends on its row of x and the weights alone, whatever the number of rows.
struct Products {
  const char* name;
  void (*f32)(const SliceProduct&) noexcept;   // weight: float
  void (*bf16)(const SliceProduct&) noexcept;  // weight: bf16, widened
  void (*f16)(const SliceProduct&) noexcept;   // weight: f16, widened
  // One row: bf16 by bf16 (x_bf16 [in] in place of x) with the dot instruction, which adds two
  // products at a time; null where there is none.
  void (*bf16_dot)(const SliceProduct&, const std::uint16_t* x_bf16) noexcept;
};

extern const Products kPortableProducts;
#if KVC_ARM64
extern const Products kNeonProducts;
#endif
#if KVC_X86_64
extern const Products kAvx2Products;
extern const Products kAvx512Products;      // without the dot instruction
extern const Products kAvx512Bf16Products;  // with it
#endif

// The best that this processor runs.
const Products& products();

// Whether this processor runs it.
bool available(const Products& products);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_OPS_PRODUCT_H_
