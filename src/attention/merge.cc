#include "attention/merge.h"

#include <cmath>
#include <limits>
#include <string>

#include "base/expect.h"
#include "tensor/overlap.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

// The address of row `index` of a tensor with `axes` leading axes.
template <typename Float, typename View>
Float* row_at(const View& view, const std::int64_t* index, int axes) {
  std::int64_t offset = 0;
  for (int axis = 0; axis < axes; ++axis) offset += index[axis] * view.strides[axis];
  return static_cast<Float*>(view.data) + offset;
}

// Steps through the leading axes of `lse` in row-major order.
bool next_row(const TensorView& lse, std::int64_t* index) {
  for (int axis = lse.rank - 1; axis >= 0; --axis) {
    if (++index[axis] < lse.shape[axis]) return true;
    index[axis] = 0;
  }
  return false;
}

// out [..., D] and lse [...]: both float32, with the same leading axes.
Status expect_part(const char* out_name, const TensorView& out, const char* lse_name,
                   const TensorView& lse) {
  KVC_RETURN_IF_ERROR(expect_tensor(out_name, out));
  KVC_RETURN_IF_ERROR(expect_tensor(lse_name, lse));
  KVC_RETURN_IF_ERROR(expect_dtype(out_name, out, DType::kF32));
  KVC_RETURN_IF_ERROR(expect_dtype(lse_name, lse, DType::kF32));
  if (out.rank < 1) {
    return refusal(out_name, describe(out), "[..., D]");
  }
  return expect_shape(lse_name, lse, out.shape, out.rank - 1);
}

// One tensor, row on row.
bool is_same(const TensorView& a, const TensorView& b) {
  if (a.data != b.data) return false;
  for (int axis = 0; axis < a.rank; ++axis) {
    if (a.strides[axis] != b.strides[axis] && a.shape[axis] > 1) return false;
  }
  return true;
}

struct Named {
  const char* name;
  const TensorView& tensor;
};

// A result shares no memory with what is read, but may be it.
Status expect_apart(const Named& result, const Named& read, bool may_be_same) {
  if ((may_be_same && is_same(result.tensor, read.tensor)) ||
      !overlap(result.tensor, read.tensor)) {
    return {};
  }
  return refusal(result.name, std::string("memory of ") + read.name,
                 (may_be_same ? std::string(read.name) + " itself or " : "") + "memory of its own");
}

Status expect_single(const Named& result) {
  if (!overlaps_itself(result.tensor)) return {};
  return refusal(result.name, "elements that share memory", "each in its own");
}

}  // namespace

Status merge_parts(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                   const TensorView& lse_b, const MutableTensorView& out,
                   const MutableTensorView& lse) {
  KVC_RETURN_IF_ERROR(expect_part("out_a", out_a, "lse_a", lse_a));
  KVC_RETURN_IF_ERROR(expect_part("out_b", out_b, "lse_b", lse_b));
  KVC_RETURN_IF_ERROR(expect_part("out", out, "lse", lse));
  KVC_RETURN_IF_ERROR(expect_shape("out_b", out_b, out_a.shape, out_a.rank));
  KVC_RETURN_IF_ERROR(expect_shape("out", out, out_a.shape, out_a.rank));
  const Named outs[] = {{"out_a", out_a}, {"out_b", out_b}};
  const Named lses[] = {{"lse_a", lse_a}, {"lse_b", lse_b}};
  KVC_RETURN_IF_ERROR(expect_single({"out", out}));
  KVC_RETURN_IF_ERROR(expect_single({"lse", lse}));
  KVC_RETURN_IF_ERROR(expect_apart({"lse", lse}, {"out", out}, false));
  for (int i = 0; i < 2; ++i) {
    KVC_RETURN_IF_ERROR(expect_apart({"out", out}, outs[i], true));
    KVC_RETURN_IF_ERROR(expect_apart({"out", out}, lses[i], false));
    KVC_RETURN_IF_ERROR(expect_apart({"lse", lse}, lses[i], true));
    KVC_RETURN_IF_ERROR(expect_apart({"lse", lse}, outs[i], false));
  }
  if (lse_a.num_elements() == 0) return {};

  const int axes = lse_a.rank;
  const std::int64_t dim = out_a.shape[axes];
  std::int64_t index[kMaxRank] = {0, 0, 0, 0};
  do {
    const double a = *row_at<const float>(lse_a, index, axes);
    const double b = *row_at<const float>(lse_b, index, axes);
    const double max = a > b ? a : b;
    const bool a_empty = a == -std::numeric_limits<double>::infinity();
    const bool b_empty = b == -std::numeric_limits<double>::infinity();
    // An empty part has weight 0 whatever its rows hold.
    const double weight_a = a_empty ? 0 : std::exp(a - max);
    const double weight_b = b_empty ? 0 : std::exp(b - max);
    const double sum = weight_a + weight_b;

    const float* from_a = row_at<const float>(out_a, index, axes);
    const float* from_b = row_at<const float>(out_b, index, axes);
    float* to = row_at<float>(out, index, axes);
    for (std::int64_t d = 0; d < dim; ++d) {
      double value = 0;
      if (!a_empty) value += weight_a / sum * from_a[d * out_a.strides[axes]];
      if (!b_empty) value += weight_b / sum * from_b[d * out_b.strides[axes]];
      to[d * out.strides[axes]] = static_cast<float>(value);
    }
    *row_at<float>(lse, index, axes) =
        static_cast<float>(a_empty && b_empty ? max : max + std::log(sum));
  } while (next_row(lse_a, index));
  return {};
}

Status finish_parts(const MutableTensorView& out, const TensorView& lse,
                    std::span<const float> sinks) {
  KVC_RETURN_IF_ERROR(expect_part("out", out, "lse", lse));
  KVC_RETURN_IF_ERROR(expect_rank("out", out, 3));
  if (static_cast<std::int64_t>(sinks.size()) != out.shape[1]) {
    return refusal("sinks", sinks.size(), std::to_string(out.shape[1]) + " (one per head)");
  }
  const TensorView given(sinks.data(), DType::kF32, {out.shape[1]});
  KVC_RETURN_IF_ERROR(expect_single({"out", out}));
  KVC_RETURN_IF_ERROR(expect_apart({"out", out}, {"lse", lse}, false));
  KVC_RETURN_IF_ERROR(expect_apart({"out", out}, {"sinks", given}, false));
  if (lse.num_elements() == 0) return {};
  std::int64_t index[kMaxRank] = {0, 0, 0, 0};
  do {
    const double z = sinks[static_cast<std::size_t>(index[1])];
    const double seen = *row_at<const float>(lse, index, 2);
    // A row that saw nothing is 0 and stays 0.
    if (seen == -std::numeric_limits<double>::infinity()) continue;
    float* row = row_at<float>(out, index, 2);
    const double denominator = 1 + std::exp(z - seen);
    for (std::int64_t d = 0; d < out.shape[2]; ++d) {
      row[d * out.strides[2]] = static_cast<float>(row[d * out.strides[2]] / denominator);
    }
  } while (next_row(lse, index));
  return {};
}

}  // namespace kvcache::internal
