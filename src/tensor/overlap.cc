#include "tensor/overlap.h"

#include <algorithm>
#include <string>

#include "base/checked_math.h"
#include "base/expect.h"

namespace kvcache::internal {
namespace {

// sum_k x_k * step_k = target, for whole x_k in 0 .. count_k and steps above 0: is there a
// solution?
//
// Steps are tried from the largest on. What the smaller ones can add bounds each x_k, to one or two
// values where the larger axis does not interleave with the smaller ones.
class Equation {
 public:
  // A term coefficient * x with low <= x <= high.
  void add(std::int64_t coefficient, std::int64_t low, std::int64_t high) noexcept {
    // x = low + y, or high - y for a coefficient below 0.
    target_ -= coefficient * (coefficient < 0 ? high : low);
    const std::int64_t step = coefficient < 0 ? -coefficient : coefficient;
    const std::int64_t count = high - low;
    if (step == 0 || count == 0) return;
    int at = 0;
    while (at < size_ && terms_[at].step > step) ++at;
    if (at < size_ && terms_[at].step == step) {
      terms_[at].count += count;
      return;
    }
    std::copy_backward(terms_ + at, terms_ + size_, terms_ + size_ + 1);
    terms_[at] = {step, count};
    ++size_;
  }

  // REQUIRES: no further add().
  bool solvable(std::int64_t target) noexcept {
    reach_[size_] = 0;
    for (int at = size_ - 1; at >= 0; --at) {
      reach_[at] = reach_[at + 1] + terms_[at].step * terms_[at].count;
    }
    tries_ = 0;
    return solvable_from(0, target_ + target);
  }

 private:
  static constexpr int kMaxTerms = 2 * kMaxRank + 2;
  static constexpr int kMaxTries = 1 << 14;

  struct Term {
    std::int64_t step, count;
  };

  bool solvable_from(int at, std::int64_t target) noexcept {
    if (target < 0 || target > reach_[at]) return false;
    if (target == 0) return true;
    if (++tries_ > kMaxTries) return true;
    const Term& term = terms_[at];
    const std::int64_t rest = target - reach_[at + 1];
    const std::int64_t least = rest <= 0 ? 0 : ceil_div(rest, term.step);
    const std::int64_t most = std::min(term.count, target / term.step);
    for (std::int64_t x = most; x >= least; --x) {
      if (solvable_from(at + 1, target - x * term.step)) return true;
    }
    return false;
  }

  Term terms_[kMaxTerms] = {};              // by falling step
  std::int64_t reach_[kMaxTerms + 1] = {};  // what terms from here on can add up to
  int size_ = 0;
  int tries_ = 0;
  std::int64_t target_ = 0;
};

// Sums of the spans of two tensors must fit.
constexpr std::uint64_t kMaxSpan = std::uint64_t{1} << 61;

std::uint64_t distance(std::uintptr_t from, std::uintptr_t to) noexcept {
  return std::uint64_t{to} - std::uint64_t{from};  // wraps where `to` lies before `from`
}

}  // namespace

ByteSpan byte_span(const TensorView& view) noexcept {
  if (!view.defined()) return {};
  const std::int64_t size = size_of(view.dtype);
  std::int64_t before = 0;
  std::int64_t behind = 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] == 0) return {};
    const std::int64_t reach = (view.shape[axis] - 1) * view.strides[axis] * size;
    (reach < 0 ? before : behind) += reach;
  }
  return {reinterpret_cast<std::uintptr_t>(view.data) + static_cast<std::uintptr_t>(before),
          static_cast<std::uint64_t>(behind) - static_cast<std::uint64_t>(before) +
              static_cast<std::uint64_t>(size)};
}

bool overlap(const TensorView& a, const TensorView& b) noexcept {
  const ByteSpan span_a = byte_span(a);
  const ByteSpan span_b = byte_span(b);
  if (!intersect(span_a, span_b)) return false;
  if (span_a.bytes > kMaxSpan || span_b.bytes > kMaxSpan) return true;
  // A byte of a, from a's first on, less one of b is how far b begins from a.
  Equation bytes;
  const auto add = [&bytes](const TensorView& view, std::int64_t sign) {
    const std::int64_t size = size_of(view.dtype);
    for (int axis = 0; axis < view.rank; ++axis) {
      bytes.add(sign * view.strides[axis] * size, 0, view.shape[axis] - 1);
    }
    bytes.add(sign, 0, size - 1);
  };
  add(a, 1);
  add(b, -1);
  return bytes.solvable(static_cast<std::int64_t>(distance(
      reinterpret_cast<std::uintptr_t>(a.data), reinterpret_cast<std::uintptr_t>(b.data))));
}

bool overlaps_itself(const TensorView& view) noexcept {
  const ByteSpan span = byte_span(view);
  if (span.bytes == 0) return false;
  const std::int64_t size = size_of(view.dtype);
  struct Axis {
    std::int64_t step, count;
  } axes[kMaxRank];  // by their steps
  int size_of_axes = 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] == 1) continue;
    const std::int64_t stride = view.strides[axis] < 0 ? -view.strides[axis] : view.strides[axis];
    const std::int64_t step = stride * size;
    int at = size_of_axes++;
    for (; at > 0 && axes[at - 1].step > step; --at) axes[at] = axes[at - 1];
    axes[at] = {step, view.shape[axis] - 1};
  }
  // As a rule each axis steps over all that the smaller ones reach.
  std::int64_t reach = size;
  bool nested = true;
  for (int axis = 0; axis < size_of_axes; ++axis) {
    if (axes[axis].step == 0) return true;
    nested = nested && axes[axis].step >= reach;
    reach += axes[axis].step * axes[axis].count;
  }
  if (nested) return false;
  if (span.bytes > kMaxSpan) return true;
  // Two indices that differ first in this axis, and whose elements meet.
  for (int first = 0; first < size_of_axes; ++first) {
    Equation bytes;
    bytes.add(axes[first].step, 1, axes[first].count);
    for (int axis = first + 1; axis < size_of_axes; ++axis) {
      bytes.add(axes[axis].step, -axes[axis].count, axes[axis].count);
    }
    bytes.add(1, 1 - size, size - 1);
    if (bytes.solvable(0)) return true;
  }
  return false;
}

Status expect_apart(const char* first_name, const TensorView& first, const char* second_name,
                    const TensorView& second) {
  for (const TensorView* each : {&first, &second}) {
    if (!overlaps_itself(*each)) continue;
    return refusal(each == &first ? first_name : second_name, "elements that share memory",
                   "each in its own");
  }
  if (!overlap(first, second)) return {};
  return refusal(second_name, std::string("memory of ") + first_name, "memory of its own");
}

}  // namespace kvcache::internal
