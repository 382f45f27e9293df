// Products of one slice of a weight matrix, per instruction set.
#ifndef KVCACHE_RUNNER_OPS_PRODUCT_H_
#define KVCACHE_RUNNER_OPS_PRODUCT_H_

#include <cstdint>

namespace kvcache::runner {

// A sum over the inputs is taken in cuts of so many, added in ascending order.
inline constexpr std::int64_t kSumCut = 512;
constexpr std::int64_t cuts_of(std::int64_t in) { return (in + kSumCut - 1) / kSumCut; }

// Inputs are staged before they are multiplied: rounded as the weights ask for, in rows of
// staged_size(in) elements of which those past `in` are 0, staged_stride(in) elements apart (an odd
// number of lines, so that rows do not meet in the same sets of a cache). For f32, f16 and bf16
// weights an element is a float of the weights' precision. For int8 weights it is an integer of 16
// bits, the input in units of its cut's scale, which is the largest magnitude of the cut /
// kLargest:
//   int16: round(x / scale);
//   int8:  m * round(x / (m * scale)), where the m of each 32 inputs is their largest magnitude /
//          (127 * scale), rounded up to 1 .. 257: so 8 bits of a scale of their own.
// A cut whose largest is below 1e-30 is zeros, one with a NaN or an infinity has a NaN for its
// scale. The bytes an integer is staged as are for the instruction set to choose.
constexpr std::int64_t staged_size(std::int64_t in) { return (in + 63) / 64 * 64; }
constexpr std::int64_t staged_stride(std::int64_t in) { return staged_size(in) + 32; }
// Both bytes of such an integer, high * 256 + low, are signed.
inline constexpr int kLargest = 32639;  // 127 * 257

// Up to so many rows are a matter of memory: they read each quarter of a slice as a stream of its
// own, which should be long.
inline constexpr std::int64_t kStreamedRows = 2;

// What is kept of each cut of a row for int8 weights.
struct InputCut {
  float scale;
  std::uint32_t sum;  // of the integers, modulo 2^32; for product_vnni.inl alone
};
inline constexpr std::int64_t kStagedAlignment = 64;  // bytes, of the first row

// y[r * y_stride + o] = sum over k of x[r][k] * weight[o * in + k]; of int8 weights each cut, an
// exact sum, times its scale and then the output's. Rows of weights are dense.
struct SliceProduct {
  const void* x = nullptr;         // [rows, staged_stride(in)], staged
  const InputCut* cuts = nullptr;  // [rows, cuts_of(in)], of int8 weights
  std::int64_t rows = 0;
  std::int64_t in = 0;
  const void* weight = nullptr;  // [outs, in]
  std::int64_t outs = 0;
  const float* scales = nullptr;  // [outs], of int8 weights
  float* y = nullptr;
  std::int64_t y_stride = 0;  // elements
  float* panel = nullptr;     // [kPanelFloats], any content, aligned to kStagedAlignment
};
inline constexpr std::int64_t kPanelFloats = 64 * kSumCut;

// For weights of one type. Every row of y depends on its row of x and the weights alone, whatever
// the number of rows.
struct TypedProduct {
  // One row [in]; `cuts` [cuts_of(in)] are written for int8 weights only.
  void (*stage)(const float* x, std::int64_t in, void* staged, InputCut* cuts) noexcept;
  void (*product)(const SliceProduct&) noexcept;
};

// One row in the order of sums that oneDNN 2.6 has on AVX-512 (measured, f32 and bf16), so that one
// row by us and many by it are the same bits. x [in] as it stands, or as rounded bits; y [outs].
struct LibraryOrder {
  void (*f32)(const float* x, const float* weight, std::int64_t in, std::int64_t outs,
              float* y) noexcept;
  void (*bf16)(const std::uint16_t* x, const std::uint16_t* weight, std::int64_t in,
               std::int64_t outs, float* y) noexcept;  // by the dot instruction
};

struct Products {
  const char* name;
  TypedProduct f32, bf16, f16;
  TypedProduct int8, int8_by_int8;  // inputs of 16 bits, of 8 bits
  // gate[i] = silu(gate[i]) * up[i], see ops.h.
  void (*silu_multiply)(float* gate, const float* up, std::int64_t count) noexcept;
  LibraryOrder library_order;  // null where the library is not used
};

extern const Products kPortableProducts;
#if KVC_ARM64
extern const Products kNeonProducts;
#endif
#if KVC_X86_64
extern const Products kAvx2Products;
extern const Products kAvx512Products;      // without dot instructions
extern const Products kAvx512VnniProducts;  // with that of int8
extern const Products kAvx512Bf16Products;  // and that of bf16
#endif

// The best that this processor runs.
const Products& products();

// Whether this processor runs it.
bool available(const Products& products);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_OPS_PRODUCT_H_
