// Few query rows over coded keys and values by dot products of bytes: where the header has one
// (KVC_SIMD_BYTE_DOT). Which rows go this way, and how: those with one scale by
// attention_few_bytes.inl, those with a scale a group by attention_few_groups.inl.
#include "kernels/cpu/attention_few_bytes.inl"

#include "kernels/cpu/attention_few_groups.inl"

namespace kvcache::internal::KVC_SIMD {
namespace {

// Forms that go in whole numbers, with these dims.
KVC_SIMD_FN bool in_whole_numbers(const RowFormat& format, int64_t dim) {
  if (dim > kMostElements) return false;
  switch (format.kind) {
    case RowFormat::kInt8:
      return format.num_scales(dim) == 1;
    case RowFormat::kLm4:
      return format.num_scales(dim) == 1 && dim % RowFormat::kGroup == 0;
    case RowFormat::kInt4:
    case RowFormat::kQ8_0:
    case RowFormat::kQ4_0:
      return dim % RowFormat::kGroup == 0;
    default:
      return false;
  }
}

template <RowFormat::Kind kKind, Prefetch kAsk>
KVC_SIMD_FN void score_few_whole(const char* q, const WholeRow* info, int rows,
                                 const RowsView& keys, int64_t dim, const Step& here,
                                 const Step& ahead, float* scores) {
  if constexpr (GroupForm<kKind>::kOwnScale) {
    score_few_groups<kKind, kAsk>(q, info, rows, keys, dim, here, ahead, scores);
  } else {
    score_few_bytes<kKind, kAsk>(q, info, rows, dim, here, ahead, scores);
  }
}

template <bool kOwnScale>
struct BlockOf {
  using Type = ByteBlock;
};
template <>
struct BlockOf<true> {
  using Type = GroupBlock;
};
template <RowFormat::Kind kKind>
using WholeBlock = typename BlockOf<GroupForm<kKind>::kOwnScale>::Type;

template <RowFormat::Kind kKind, int kRows, Prefetch kAsk>
KVC_SIMD_FN void add_block_whole(WholeBlock<kKind>* block, const float* const* weights, int64_t dim,
                                 float* acc, int64_t stride) {
  if constexpr (GroupForm<kKind>::kOwnScale) {
    add_block_groups<kKind, kRows, kAsk>(*block, weights, dim, acc, stride);
  } else {
    add_block_rounded<kKind, kRows, kAsk>(block, weights, dim, acc, stride);
  }
}

// Results [rows, stride] of add_block_whole as elements: to[row * pad(dim)].
template <RowFormat::Kind kKind>
void from_lines(const float* acc, int rows, int64_t stride, int64_t dim, float* to) {
  if constexpr (!GroupForm<kKind>::kOwnScale) {
    return elements_of_lines<kKind>(acc, rows, stride, dim, to);
  }
  for (int r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < dim; d += kLanes)
      store(to + r * pad(dim) + d, load(acc + r * stride + d));
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
