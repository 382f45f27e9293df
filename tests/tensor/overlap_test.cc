#include "tensor/overlap.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace kvcache::internal {
namespace {

std::byte arena[4096];

TensorView slice(std::int64_t first_byte, DType dtype, std::vector<std::int64_t> shape,
                 std::vector<std::int64_t> strides) {
  TensorView view;
  view.data = arena + first_byte;
  view.dtype = dtype;
  view.rank = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), view.shape);
  std::copy(strides.begin(), strides.end(), view.strides);
  return view;
}

// Every byte of every element, by its address from the start of the arena.
std::vector<std::int64_t> bytes_of(const TensorView& view) {
  std::vector<std::int64_t> bytes;
  std::vector<std::int64_t> index(static_cast<std::size_t>(view.rank), 0);
  for (std::int64_t i = 0; i < view.num_elements(); ++i) {
    std::int64_t element = 0, rest = i;
    for (int axis = view.rank - 1; axis >= 0; --axis) {
      element += rest % view.shape[axis] * view.strides[axis];
      rest /= view.shape[axis];
    }
    for (std::int64_t b = 0; b < size_of(view.dtype); ++b) {
      bytes.push_back(static_cast<const std::byte*>(view.data) - arena +
                      element * size_of(view.dtype) + b);
    }
  }
  return bytes;
}

TensorView random_slice(std::mt19937& rng) {
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(rng);
  };
  std::vector<std::int64_t> shape, strides;
  for (int axis = pick(0, 4); axis > 0; --axis) {
    shape.push_back(pick(0, 9) == 0 ? 0 : pick(1, 4));
    strides.push_back(pick(-12, 24));
  }
  return slice(1024 + pick(0, 160), pick(0, 1) == 0 ? DType::kF32 : DType::kF16, shape, strides);
}

TEST(Overlap, AgreesWithTheListOfAllBytes) {
  std::mt19937 rng(5);
  int shared = 0, apart_within_the_span = 0, folded = 0;
  for (int i = 0; i < 20000; ++i) {
    const TensorView a = random_slice(rng), b = random_slice(rng);
    const std::vector<std::int64_t> of_a = bytes_of(a), of_b = bytes_of(b);
    const std::set<std::int64_t> in_a(of_a.begin(), of_a.end());
    bool expected = false;
    for (const std::int64_t byte : of_b) expected = expected || in_a.count(byte) != 0;
    ASSERT_EQ(overlap(a, b), expected) << "case " << i;
    ASSERT_EQ(overlap(b, a), expected) << "case " << i;
    ASSERT_EQ(overlaps_itself(a), in_a.size() != of_a.size()) << "case " << i;
    shared += expected;
    apart_within_the_span += !expected && intersect(byte_span(a), byte_span(b));
    folded += in_a.size() != of_a.size();
  }
  EXPECT_GT(shared, 1000);
  EXPECT_GT(apart_within_the_span, 1000);
  EXPECT_GT(folded, 1000);
}

TEST(Overlap, SpansAreOfTheFirstAndTheLastByte) {
  const TensorView view = slice(400, DType::kF16, {3, 1, 4}, {-10, 99, 2});
  EXPECT_EQ(byte_span(view).begin, reinterpret_cast<std::uintptr_t>(arena + 400 - 2 * 10 * 2));
  EXPECT_EQ(byte_span(view).bytes, 40u + 3 * 2 * 2 + 2);
  EXPECT_EQ(byte_span(slice(0, DType::kF32, {3, 0}, {1, 1})).bytes, 0u);
  EXPECT_EQ(byte_span(TensorView()).bytes, 0u);
  EXPECT_EQ(byte_span(slice(0, DType::kF32, {}, {})).bytes, 4u);
}

// q, k and v of one projection [tokens, 3, heads, dim] of any size: told apart without a search.
TEST(Overlap, SlicesOfOneProjectionAreApart) {
  const std::int64_t tokens = 1 << 20, heads = 32, dim = 128;
  std::vector<std::int64_t> strides = {heads * 3 * dim, dim, 1};
  const TensorView q = slice(0, DType::kF32, {tokens, heads, dim}, strides);
  const TensorView k = slice(heads * dim * 4, DType::kF32, {tokens, heads, dim}, strides);
  EXPECT_TRUE(intersect(byte_span(q), byte_span(k)));
  EXPECT_FALSE(overlap(q, k));
  EXPECT_TRUE(overlap(q, q));
  const std::int64_t to_the_next_q = (heads + 1) * dim;
  EXPECT_FALSE(
      overlap(q, slice(heads * dim * 4, DType::kF32, {tokens, heads, to_the_next_q}, strides)));
  const TensorView beyond =
      slice(heads * dim * 4, DType::kF32, {tokens, heads, to_the_next_q + 1}, strides);
  EXPECT_TRUE(overlap(q, beyond));
  EXPECT_TRUE(overlaps_itself(beyond));
  EXPECT_FALSE(overlaps_itself(k));
}

TEST(Overlap, TheSearchEndsWhateverTheStrides) {
  const std::int64_t n = 1 << 20;
  const TensorView a = slice(0, DType::kF16, {n, n, n}, {1009, 1013, 1019});
  const TensorView b = slice(1, DType::kF16, {n, n, n}, {997, 991, 983});
  EXPECT_TRUE(overlap(a, b));
}

}  // namespace
}  // namespace kvcache::internal
