#include "tensor/strides.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvcache::internal {
namespace {

using Values = std::vector<std::int64_t>;

float g_data[2 * 8 * 64];

TensorView key() { return TensorView(g_data, DType::kF32, {2, 8, 1, 64}); }

TEST(Describe, ShapeAndType) {
  EXPECT_EQ(describe(key()), "[2, 8, 1, 64] f32");
  EXPECT_EQ(describe(TensorView()), "none");
  EXPECT_EQ(describe(TensorView(g_data, DType::kI64, {})), "[] i64");
  const std::int64_t shape[] = {2, 8, kAnyExtent, 64};
  EXPECT_EQ(describe_shape(shape, 4), "[2, 8, *, 64]");
}

TEST(Expect, MessagesNameTensorFoundAndExpected) {
  EXPECT_TRUE(expect_shape("key", key(), {2, 8, kAnyExtent, 64}).ok());
  EXPECT_EQ(expect_shape("key", key(), {2, 4, kAnyExtent, 64}).to_string(),
            "invalid argument: key: found [2, 8, 1, 64], expected [2, 4, *, 64]");
  EXPECT_EQ(expect_shape("key", key(), {2, 8, 64}).message(),
            "key: found [2, 8, 1, 64], expected [2, 8, 64]");
  EXPECT_EQ(expect_shape("key", TensorView(), {1}).message(), "key: found none, expected [1]");
  EXPECT_EQ(expect_rank("key", key(), 3).message(),
            "key: found [2, 8, 1, 64] f32, expected rank 3");
  EXPECT_TRUE(expect_rank("key", key(), 4).ok());
  EXPECT_TRUE(expect_dtype_floating("key", key()).ok());
  EXPECT_EQ(expect_dtype_floating("key", TensorView(g_data, DType::kI32, {3})).message(),
            "key: found [3] i32, expected f32, f16 or bf16");
  EXPECT_EQ(expect_dtype("lse", TensorView(g_data, DType::kF16, {3}), DType::kF32).message(),
            "lse: found [3] f16, expected f32");
}

TEST(ExpectTensor, AcceptsEveryUsableShape) {
  EXPECT_TRUE(expect_tensor("key", key()).ok());
  EXPECT_TRUE(expect_tensor("key", TensorView(g_data, DType::kF32, {})).ok());
  // Empty: no data needed, and extents whose product overflows do no harm.
  EXPECT_TRUE(expect_tensor("key", TensorView(nullptr, DType::kF32, {2, 0, 4})).ok());
  EXPECT_TRUE(expect_tensor("key", TensorView(nullptr, DType::kF32, {INT64_MAX, 0})).ok());
  TensorView flipped = key();
  flipped.strides[3] = -1;
  EXPECT_TRUE(expect_tensor("key", flipped).ok());
}

TEST(ExpectTensor, RefusesWhatCannotBeRead) {
  EXPECT_EQ(expect_tensor("key", TensorView()).message(), "key: found none, expected a tensor");
  EXPECT_EQ(expect_tensor("key", TensorView(nullptr, DType::kF32, {2})).message(),
            "key: found [2] f32 without data, expected data");
  TensorView view = key();
  view.shape[2] = -1;
  EXPECT_EQ(expect_tensor("key", view).message(),
            "key: found [2, 8, -1, 64] f32, expected extents of at least 0");
  view = key();
  view.dtype = static_cast<DType>(9);
  EXPECT_EQ(expect_tensor("key", view).code(), StatusCode::kInvalidArgument);
  view = key();
  view.rank = 5;
  EXPECT_EQ(expect_tensor("key", view).message(), "key: found rank 5, expected rank 0 .. 4");
  view = key();
  view.device.kind = DeviceKind::kCuda;
  view.device.index = 3;
  EXPECT_EQ(expect_tensor("key", view).code(), StatusCode::kUnavailable);
  EXPECT_EQ(expect_tensor("key", view).message(),
            "key: found cuda:3, expected a tensor of the CPU");
  // Sizes and strides whose bytes do not fit 64 bits.
  view = key();
  view.shape[0] = std::int64_t{1} << 60;
  EXPECT_EQ(expect_tensor("key", view).code(), StatusCode::kInvalidArgument);
  for (const std::int64_t stride : {INT64_MAX, INT64_MIN, INT64_MIN + 1, INT64_MAX / 4}) {
    view = key();
    view.strides[0] = stride;
    EXPECT_EQ(expect_tensor("key", view).code(), StatusCode::kInvalidArgument) << stride;
  }
}

TEST(KvAxes, LayoutsDifferInHeadAndSequence) {
  EXPECT_EQ(axes_of(Layout::kHND).head, 1);
  EXPECT_EQ(axes_of(Layout::kHND).seq, 2);
  EXPECT_EQ(axes_of(Layout::kNHD).head, 2);
  EXPECT_EQ(axes_of(Layout::kNHD).seq, 1);
  const KvExtents extents{2, 3, 5, 7};
  const KvExtents strides{1000, 100, 10, 1};
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    const MutableTensorView view = kv_tensor(g_data, DType::kF32, layout, extents, strides);
    EXPECT_EQ(kv_extents(view, layout), extents);
    EXPECT_EQ(kv_strides(view, layout), strides);
  }
  const TensorView nhd =
      kv_tensor(static_cast<const void*>(g_data), DType::kF32, Layout::kNHD, extents, strides);
  EXPECT_EQ(describe(nhd), "[2, 5, 3, 7] f32");
  EXPECT_EQ(element_at(nhd, 1, 4, 2, 6) - static_cast<const std::byte*>(nhd.data),
            4 * (1000 + 40 + 200 + 6));
}

TEST(ExpectKv, ShapesAreShownInTheLayoutOfTheCaller) {
  const KvExtents any_length{2, 1, kAnyExtent, 64};
  EXPECT_TRUE(expect_kv("key", key(), Layout::kNHD, any_length).ok());
  EXPECT_EQ(expect_kv("key", key(), Layout::kHND, any_length).message(),
            "key: found [2, 8, 1, 64], expected [2, 1, *, 64]");
  EXPECT_EQ(expect_kv("value", key(), Layout::kNHD, KvExtents{2, 3, kAnyExtent, 64}).message(),
            "value: found [2, 8, 1, 64], expected [2, *, 3, 64]");
  EXPECT_EQ(expect_kv("key", TensorView(g_data, DType::kI32, {1, 1, 1, 1}), Layout::kHND,
                      KvExtents{kAnyExtent, kAnyExtent, kAnyExtent, kAnyExtent})
                .message(),
            "key: found [1, 1, 1, 1] i32, expected f32, f16 or bf16");
}

TEST(Contiguous, KnowsDenseFromStrided) {
  EXPECT_TRUE(is_contiguous(key()));
  TensorView view = key();
  view.strides[2] = 777;  // an axis of one
  EXPECT_TRUE(is_contiguous(view));
  view.strides[1] = 65;
  EXPECT_FALSE(is_contiguous(view));
  EXPECT_TRUE(is_contiguous(TensorView(nullptr, DType::kF32, {3, 0})));
  EXPECT_FALSE(is_contiguous(TensorView()));
}

TEST(ReadIndices, BothWidthsAnyStridesRowMajor) {
  const std::int32_t narrow[] = {3, -1, 4, 1, 5, 9};
  const std::int64_t wide[] = {3, -1, 4, 1, 5, INT64_MAX};
  EXPECT_EQ(*read_indices("i", TensorView(narrow, DType::kI32, {6})), (Values{3, -1, 4, 1, 5, 9}));
  EXPECT_EQ(*read_indices("i", TensorView(wide, DType::kI64, {2, 3})),
            (Values{3, -1, 4, 1, 5, INT64_MAX}));
  TensorView transposed(narrow, DType::kI32, {3, 2});
  transposed.strides[0] = 1;
  transposed.strides[1] = 3;
  EXPECT_EQ(*read_indices("i", transposed), (Values{3, 1, -1, 5, 4, 9}));
  TensorView backwards(narrow + 5, DType::kI32, {3});
  backwards.strides[0] = -2;
  EXPECT_EQ(*read_indices("i", backwards), (Values{9, 1, -1}));
  EXPECT_EQ(*read_indices("i", TensorView(narrow, DType::kI32, {})), (Values{3}));
  EXPECT_EQ(*read_indices("i", TensorView(nullptr, DType::kI64, {0})), Values{});
  EXPECT_EQ(*read_indices("i", TensorView(nullptr, DType::kI64, {0, 5})), Values{});
}

TEST(ReadIndices, RefusesFloatsAndDeepTensors) {
  EXPECT_EQ(read_indices("cache_position", TensorView(g_data, DType::kF32, {2})).status().message(),
            "cache_position: found [2] f32, expected i32 or i64");
  EXPECT_EQ(
      read_indices("cache_position", TensorView(g_data, DType::kI32, {1, 1, 2})).status().message(),
      "cache_position: found [1, 1, 2] i32, expected rank 0, 1 or 2");
  EXPECT_EQ(read_indices("beam_idx", TensorView()).status().message(),
            "beam_idx: found none, expected a tensor");
}

}  // namespace
}  // namespace kvcache::internal
