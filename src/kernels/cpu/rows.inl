// Rows between callers and caches, between the floating types: a short file per instruction set
// includes it after its simd header; everything has internal linkage.
//
// Rows that are dense on both sides go kLanes elements at a time; strided ones are brought into a
// vector element by element. Either way an element takes the same instructions, whose bits are
// those of tensor/half.h. Equal types are moved, not converted, so that NaN payloads survive.
#include "kernels/cpu/cpu_kernels.h"

namespace kvcache::internal::KVC_SIMD {
namespace {

// How a type is stored, and how kLanes elements go to float and back.
struct RowF32 {
  using Stored = float;
  KVC_SIMD_FN F32 widen(const float* from) { return load(from); }
  KVC_SIMD_FN F32 widen_n(const float* from, int n) { return load_n(from, n); }
  KVC_SIMD_FN void narrow(float* to, F32 x) { store(to, x); }
};
struct RowF16 {
  using Stored = std::uint16_t;
  KVC_SIMD_FN F32 widen(const std::uint16_t* from) { return load_f16(from); }
  KVC_SIMD_FN F32 widen_n(const std::uint16_t* from, int n) { return load_f16_n(from, n); }
  KVC_SIMD_FN void narrow(std::uint16_t* to, F32 x) { store_f16(to, x); }
};
struct RowBF16 {
  using Stored = std::uint16_t;
  KVC_SIMD_FN F32 widen(const std::uint16_t* from) { return load_bf16(from); }
  KVC_SIMD_FN F32 widen_n(const std::uint16_t* from, int n) { return load_bf16_n(from, n); }
  KVC_SIMD_FN void narrow(std::uint16_t* to, F32 x) { store_bf16(to, x); }
};

template <typename From, typename To>
KVC_SIMD_FN void convert_dense(const char* src, char* dst, std::int64_t count) {
  using In = typename From::Stored;
  using Out = typename To::Stored;
  const In* const in = reinterpret_cast<const In*>(src);
  Out* const out = reinterpret_cast<Out*>(dst);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) To::narrow(out + i, From::widen(in + i));
  if (i == count) return;
  const int left = static_cast<int>(count - i);
  Out lanes[kLanes];
  To::narrow(lanes, From::widen_n(in + i, left));
  __builtin_memcpy(out + i, lanes, static_cast<unsigned long>(left) * sizeof(Out));
}

template <typename From, typename To>
KVC_SIMD_FN void convert_strided(const char* src, std::int64_t src_stride, char* dst,
                                 std::int64_t dst_stride, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const std::int64_t n = count - i < kLanes ? count - i : kLanes;
    typename From::Stored in[kLanes] = {};
    typename To::Stored out[kLanes];
    for (std::int64_t l = 0; l < n; ++l) {
      __builtin_memcpy(&in[l], src + (i + l) * src_stride, sizeof(in[l]));
    }
    To::narrow(out, From::widen(in));
    for (std::int64_t l = 0; l < n; ++l) {
      __builtin_memcpy(dst + (i + l) * dst_stride, &out[l], sizeof(out[l]));
    }
  }
}

template <typename From, typename To>
void convert_rows(const RowCopy& rows) {
  constexpr std::int64_t kIn = sizeof(typename From::Stored);
  constexpr std::int64_t kOut = sizeof(typename To::Stored);
  const bool dense = rows.src_strides[3] == kIn && rows.dst_strides[3] == kOut;
  for_each_row(rows, kIn, kOut,
               [dense](const char* src, std::int64_t src_stride, char* dst, std::int64_t dst_stride,
                       std::int64_t count) {
                 if (dense) {
                   convert_dense<From, To>(src, dst, count);
                 } else {
                   convert_strided<From, To>(src, src_stride, dst, dst_stride, count);
                 }
               });
}

// Equal types, by the bits of an element.
template <typename Bits>
void move_rows(const RowCopy& rows) {
  constexpr std::int64_t kSize = sizeof(Bits);
  const bool dense = rows.src_strides[3] == kSize && rows.dst_strides[3] == kSize;
  for_each_row(rows, kSize, kSize,
               [dense](const char* src, std::int64_t src_stride, char* dst, std::int64_t dst_stride,
                       std::int64_t count) {
                 if (dense) {
                   __builtin_memcpy(dst, src, static_cast<unsigned long>(count * kSize));
                   return;
                 }
                 for (std::int64_t i = 0; i < count; ++i) {
                   __builtin_memcpy(dst + i * dst_stride, src + i * src_stride, kSize);
                 }
               });
}

void copy_rows_of_one_type(const RowCopy& rows) {
  rows.src_dtype == DType::kF32 ? move_rows<std::uint32_t>(rows) : move_rows<std::uint16_t>(rows);
}

// --- The functions of the table. ---

void move(const RowCopy& rows) {
  const DType from = rows.src_dtype;
  const DType to = rows.dst_dtype;
  if (from == to) return copy_rows_of_one_type(rows);
  if (from == DType::kF32) {
    return to == DType::kF16 ? convert_rows<RowF32, RowF16>(rows)
                             : convert_rows<RowF32, RowBF16>(rows);
  }
  if (from == DType::kF16) {
    return to == DType::kF32 ? convert_rows<RowF16, RowF32>(rows)
                             : convert_rows<RowF16, RowBF16>(rows);
  }
  return to == DType::kF32 ? convert_rows<RowBF16, RowF32>(rows)
                           : convert_rows<RowBF16, RowF16>(rows);
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD

#include "kernels/cpu/rotate.inl"

#include "kernels/cpu/encode.inl"

namespace kvcache::internal::KVC_SIMD {

const RowKernels& row_kernels() {
  static constexpr RowKernels kernels = {
      move, move, copy_rows_of_one_type, refused, encode, decode_block, rotate};
  return kernels;
}

}  // namespace kvcache::internal::KVC_SIMD
