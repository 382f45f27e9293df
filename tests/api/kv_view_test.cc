#include "kvcache/kv_view.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kvcache/attention.h"

namespace kvcache {
namespace {

// B sequences of S rows, [B, H, S, D], all elements being 1 / 8 of their index modulo 5.
struct Rows {
  std::vector<float> k, v;
  Layout layout;
  std::int64_t batch = 2, heads = 3, length = 70, k_dim = 8, v_dim = 16;

  explicit Rows(Layout layout_in = Layout::kHND) : layout(layout_in) {
    for (std::int64_t i = 0; i < batch * heads * length * k_dim; ++i) k.push_back(value(i));
    for (std::int64_t i = 0; i < batch * heads * length * v_dim; ++i) v.push_back(value(i + 1));
  }
  static float value(std::int64_t i) { return static_cast<float>(i * 7 % 5) / 8; }

  TensorView tensor(const std::vector<float>& data, std::int64_t dim) const {
    if (layout == Layout::kHND) return {data.data(), DType::kF32, {batch, heads, length, dim}};
    return {data.data(), DType::kF32, {batch, length, heads, dim}};
  }
  KeyValueView view() const { return {tensor(k, k_dim), tensor(v, v_dim)}; }
};

TEST(DenseView, IsOneSequenceABatchRow) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    const Rows rows(layout);
    const OwnedKvView view = dense_view(rows.view(), layout, 11).value();
    const KvView& kv = view;
    EXPECT_EQ(kv.num_seqs, 2);
    EXPECT_EQ(kv.num_kv_heads, 3);
    EXPECT_EQ(kv.k_head_dim, 8);
    EXPECT_EQ(kv.v_head_dim, 16);
    ASSERT_EQ(kv.num_parts, 1);
    for (std::int32_t seq = 0; seq < 2; ++seq) {
      EXPECT_EQ(total_length(kv, seq), 70);
      EXPECT_EQ(kv.parts[0].first_position[seq], 11);
    }
  }
}

TEST(DenseView, BothLayoutsOfTheSameRowsAttendAlike) {
  const Rows hnd;
  // The rows of `hnd` in the order of `nhd`.
  Rows moved(Layout::kNHD);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t h = 0; h < 3; ++h) {
      for (std::int64_t s = 0; s < 70; ++s) {
        for (std::int64_t d = 0; d < 16; ++d) {
          const auto from = static_cast<std::size_t>((b * 3 + h) * 70 + s);
          const auto to = static_cast<std::size_t>((b * 70 + s) * 3 + h);
          if (d < 8) moved.k[to * 8 + d] = hnd.k[from * 8 + d];
          moved.v[to * 16 + d] = hnd.v[from * 16 + d];
        }
      }
    }
  }
  std::vector<float> q(2 * 6 * 8, 0.25f), out(2 * 6 * 16), other(2 * 6 * 16);
  const TensorView queries(q.data(), DType::kF32, {2, 6, 1, 8});
  const auto attended = [&](const Rows& rows, std::vector<float>& to) {
    const OwnedKvView view = dense_view(rows.view(), rows.layout).value();
    return attend(queries, {}, view, MutableTensorView(to.data(), DType::kF32, {2, 6, 1, 16}));
  };
  ASSERT_TRUE(attended(hnd, out).ok());
  ASSERT_TRUE(attended(moved, other).ok());
  EXPECT_EQ(out, other);
}

TEST(DenseView, NoRowsAreAViewToo) {
  const TensorView none(nullptr, DType::kBF16, {1, 2, 0, 4});
  const auto view = dense_view({none, none}, Layout::kHND);
  ASSERT_TRUE(view.ok()) << view.status().to_string();
  EXPECT_EQ(total_length(*view, 0), 0);
}

TEST(DenseView, WhatIsNoDenseRowsIsRefused) {
  const Rows rows;
  const auto refused = [](const KeyValueView& view, std::int64_t first = 0) {
    return dense_view(view, Layout::kHND, first).status();
  };
  KeyValueView bad = rows.view();
  bad.value.shape[2] = 69;
  EXPECT_EQ(refused(bad).message(), "value: found [2, 3, 69, 16], expected [2, 3, 70, *]");
  bad = rows.view();
  bad.key.strides[3] = 2;
  bad.key.shape[2] = bad.value.shape[2] = 1;
  EXPECT_EQ(refused(bad).message(),
            "key: found elements 2 apart, expected dense rows of head_dim elements");
  bad = rows.view();
  bad.key.dtype = DType::kI32;
  EXPECT_EQ(refused(bad).code(), StatusCode::kInvalidArgument);
  bad = rows.view();
  bad.key.device.kind = DeviceKind::kCuda;
  EXPECT_EQ(refused(bad).code(), StatusCode::kUnavailable);
  EXPECT_EQ(refused({}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(rows.view(), -1).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(refused(rows.view(), INT32_MAX).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(refused(rows.view(), INT64_MAX).code(), StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace kvcache
