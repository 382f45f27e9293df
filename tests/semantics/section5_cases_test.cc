// docs/semantics.md, section 5: its printed cases, one test each, on every backend that runs here.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/attention.h"
#include "kvcache/backend.h"
#include "support/backends.h"
#include "support/kv_fixture.h"
#include "support/tensors.h"

namespace kvcache {
namespace {

using testing::available_backends;
using testing::HostTensor;
using testing::KvRowsData;
using testing::KvStorage;
using testing::KvStorageOptions;
using testing::tensor_of;
using testing::values;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kLn3 = std::log(3.0f);

class Section5 : public ::testing::TestWithParam<std::string> {
 protected:
  struct Answer {
    std::vector<float> out;
    std::vector<float> lse;
  };

  AttentionOptions options() const {
    AttentionOptions options;
    options.backend = GetParam().c_str();
    return options;
  }

  // One sequence, heads of one element: q[query][head], k and v[head][row].
  static KvRowsData keys(const std::vector<std::vector<float>>& k,
                         const std::vector<std::vector<float>>& v) {
    const auto heads = static_cast<std::int32_t>(k.size());
    KvRowsData data({static_cast<std::int32_t>(k[0].size())}, heads, 1, 1);
    for (std::int32_t head = 0; head < heads; ++head) {
      for (std::size_t row = 0; row < k[0].size(); ++row) {
        *data.k_row(0, static_cast<std::int64_t>(row), head) = k[head][row];
        *data.v_row(0, static_cast<std::int64_t>(row), head) = v[head][row];
      }
    }
    return data;
  }

  Answer ask(const std::vector<float>& q, std::int32_t num_heads, const KvRowsData& data,
             const AttentionOptions& options) const {
    const KvStorage storage(data);
    const auto queries = static_cast<std::int32_t>(q.size()) / num_heads;
    const HostTensor q_tensor = tensor_of<float>({queries, num_heads, 1}, q);
    HostTensor out(DType::kF32, {queries, num_heads, 1});
    HostTensor lse(DType::kF32, {queries, num_heads});
    const std::vector<std::int32_t> indptr = {0, queries};
    const Status status =
        attend(q_tensor, indptr, storage.view(), out.mutable_view(), lse.mutable_view(), options);
    EXPECT_TRUE(status.ok()) << status.to_string();
    return {values(out), values(lse)};
  }

  static void expect_near(const std::vector<float>& found, const std::vector<float>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (std::isinf(expected[i])) {
        EXPECT_EQ(found[i], expected[i]) << "at " << i;
      } else {
        EXPECT_NEAR(found[i], expected[i], 1e-5f * (1 + std::abs(expected[i]))) << "at " << i;
      }
    }
  }
};

TEST_P(Section5, GroupedQueryHeadsReadTheirKvHead) {
  const Answer answer =
      ask({1, 1, 1, 1}, 4, keys({{0, kLn3}, {kLn3, 0}}, {{4, 8}, {4, 8}}), options());
  expect_near(answer.out, {7, 7, 5, 5});
}

TEST_P(Section5, TheDefaultScaleIsOneOverTheRootOfTheKeysHeadSize) {
  KvRowsData data({2}, 1, 4, 1);
  for (std::int64_t row = 0; row < 2; ++row) {
    for (int d = 0; d < 4; ++d) data.k_row(0, row, 0)[d] = 0;
    *data.v_row(0, row, 0) = row == 0 ? 4 : 8;
  }
  *data.k_row(0, 1, 0) = kLn3;
  const KvStorage storage(data);
  const HostTensor q = tensor_of<float>({1, 1, 4}, {2, 0, 0, 0});
  HostTensor out(DType::kF32, {1, 1, 1});
  const std::vector<std::int32_t> indptr = {0, 1};
  const Status status = attend(q, indptr, storage.view(), out.mutable_view(), {}, options());
  ASSERT_TRUE(status.ok()) << status.to_string();
  expect_near(values(out), {7});
}

TEST_P(Section5, SoftcapComesBeforeAlibiAndAlibiBeforeTheMask) {
  // Scores 0 and ln 3 after the softcap, -ln 3 and ln 3 after ALiBi, equal after the mask.
  const float slopes[] = {kLn3};
  const HostTensor mask = tensor_of<float>({1, 1, 1, 2}, {2 * kLn3, 0});
  AttentionOptions all = options();
  all.softcap = kLn3;
  all.alibi_slopes = slopes;
  all.mask = mask;
  const Answer answer = ask({1}, 1, keys({{0, 1e6f}}, {{4, 8}}), all);
  expect_near(answer.out, {6});
}

TEST_P(Section5, AnInfiniteRowReachesOnlyTheQueriesThatSeeIt) {
  const Answer key = ask({1, 1}, 1, keys({{0, kInfinity}}, {{4, 8}}), options());
  EXPECT_EQ(key.out[0], 4);
  EXPECT_TRUE(std::isnan(key.out[1]));
  const Answer value = ask({1, 1}, 1, keys({{0, 0}}, {{4, kInfinity}}), options());
  expect_near(value.out, {4, kInfinity});
}

TEST_P(Section5, CausalIsBottomRight) {
  const Answer answer = ask({1, 1}, 1, keys({{0, kLn3, 0}}, {{4, 8, 20}}), options());
  expect_near(answer.out, {7.0f, 9.6f});
}

TEST_P(Section5, WithoutCausalEveryQuerySeesAll) {
  AttentionOptions all = options();
  all.causal = false;
  const Answer answer = ask({1, 1}, 1, keys({{0, kLn3, 0}}, {{4, 8, 20}}), all);
  expect_near(answer.out, {9.6f, 9.6f});
}

TEST_P(Section5, WindowCountsTheQuerysOwnKey) {
  AttentionOptions window = options();
  window.scale = 1;
  window.window = 2;
  const Answer answer = ask({1}, 1, keys({{0, kLn3, 0}}, {{4, 8, 20}}), window);
  expect_near(answer.out, {11});
}

TEST_P(Section5, SinkTokensStayInSight) {
  AttentionOptions window = options();
  window.scale = 1;
  window.window = 1;
  window.sink_tokens = 1;
  const Answer answer = ask({1}, 1, keys({{0, kLn3, 0}}, {{4, 8, 20}}), window);
  expect_near(answer.out, {12});
}

TEST_P(Section5, LearnedSinkEntersTheDenominatorOnceAndNotLse) {
  const float sinks[] = {std::log(5.0f)};
  AttentionOptions sink = options();
  sink.scale = 1;
  sink.sinks = sinks;
  const Answer answer = ask({1}, 1, keys({{0, kLn3, 0}}, {{4, 8, 20}}), sink);
  expect_near(answer.out, {4.8f});
  expect_near(answer.lse, {std::log(5.0f)});
}

TEST_P(Section5, PartialResultsLeaveTheSinkToFinish) {
  const float sinks[] = {std::log(5.0f)};
  AttentionOptions partial = options();
  partial.scale = 1;
  partial.sinks = sinks;
  partial.partial = true;
  const Answer answer = ask({1}, 1, keys({{0, kLn3, 0}}, {{4, 8, 20}}), partial);
  expect_near(answer.out, {9.6f});
  HostTensor out = tensor_of<float>({1, 1, 1}, answer.out);
  const HostTensor lse = tensor_of<float>({1, 1}, answer.lse);
  ASSERT_TRUE(finish(out.mutable_view(), lse, sinks).ok());
  expect_near(values(out), {4.8f});
}

TEST_P(Section5, AlibiSlopeActsOnTheDistance) {
  const float slopes[] = {kLn3};
  AttentionOptions alibi = options();
  alibi.alibi_slopes = slopes;
  const Answer answer = ask({1}, 1, keys({{0, 0}}, {{4, 8}}), alibi);
  expect_near(answer.out, {7});
}

TEST_P(Section5, SoftcapBoundsTheScore) {
  AttentionOptions softcap = options();
  softcap.softcap = kLn3;
  const Answer answer = ask({1}, 1, keys({{0, 1e6f}}, {{4, 8}}), softcap);
  expect_near(answer.out, {7});
}

TEST_P(Section5, AQueryThatSeesNoKeyGivesZero) {
  // Two queries over one key: the first stands before it.
  const Answer answer = ask({1, 1}, 1, keys({{2}}, {{4}}), options());
  expect_near(answer.out, {0, 4});
  expect_near(answer.lse, {-kInfinity, 2});
}

TEST_P(Section5, AMaskOfMinusInfinityHidesANaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const HostTensor mask = tensor_of<float>({1, 1, 1, 3}, {0, -kInfinity, 0});
  AttentionOptions masked = options();
  masked.mask = mask;
  const Answer answer = ask({1}, 1, keys({{0, nan, 0}}, {{4, nan, 20}}), masked);
  expect_near(answer.out, {12});
}

TEST_P(Section5, AdditiveMaskIsAdded) {
  const HostTensor mask = tensor_of<float>({1, 1, 1, 2}, {0, kLn3});
  AttentionOptions masked = options();
  masked.mask = mask;
  const Answer answer = ask({1}, 1, keys({{0, 0}}, {{4, 8}}), masked);
  expect_near(answer.out, {7});
}

TEST_P(Section5, KeysBeforeTheFirstVisibleDoNotExist) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const KvRowsData data = keys({{nan, 0, kLn3}}, {{nan, 4, 8}});
  KvStorageOptions hidden;
  hidden.first_visible = {1};
  const KvStorage storage(data, hidden);
  const HostTensor q = tensor_of<float>({1, 1, 1}, {1});
  HostTensor out(DType::kF32, {1, 1, 1});
  const std::vector<std::int32_t> indptr = {0, 1};
  const Status status = attend(q, indptr, storage.view(), out.mutable_view(), {}, options());
  ASSERT_TRUE(status.ok()) << status.to_string();
  expect_near(values(out), {7});
}

TEST_P(Section5, DenseAndPackedQueriesGiveTheSameBits) {
  KvRowsData data({5, 5}, 2, 3, 2);
  std::mt19937 rng(7);
  data.randomize(rng);
  const KvStorage storage(data);
  HostTensor packed(DType::kF32, {6, 4, 3});    // [B * L, H, D]
  HostTensor dense(DType::kF32, {2, 4, 3, 3});  // [B, H, L, D]
  std::normal_distribution<double> normal;
  for (int b = 0; b < 2; ++b) {
    for (int h = 0; h < 4; ++h) {
      for (int l = 0; l < 3; ++l) {
        for (int d = 0; d < 3; ++d) {
          const double x = normal(rng);
          packed.set(((b * 3 + l) * 4 + h) * 3 + d, x);
          dense.set(((b * 4 + h) * 3 + l) * 3 + d, x);
        }
      }
    }
  }
  HostTensor packed_out(DType::kF32, {6, 4, 2}), dense_out(DType::kF32, {2, 4, 3, 2});
  HostTensor packed_lse(DType::kF32, {6, 4}), dense_lse(DType::kF32, {2, 4, 3});
  const std::vector<std::int32_t> indptr = {0, 3, 6};
  ASSERT_TRUE(attend(packed, indptr, storage.view(), packed_out.mutable_view(),
                     packed_lse.mutable_view(), options())
                  .ok());
  ASSERT_TRUE(attend(dense, {}, storage.view(), dense_out.mutable_view(), dense_lse.mutable_view(),
                     options())
                  .ok());
  const std::vector<float> p = values(packed_out), d = values(dense_out);
  const std::vector<float> pl = values(packed_lse), dl = values(dense_lse);
  for (int b = 0; b < 2; ++b) {
    for (int h = 0; h < 4; ++h) {
      for (int l = 0; l < 3; ++l) {
        for (int e = 0; e < 2; ++e) {
          EXPECT_EQ(p[((b * 3 + l) * 4 + h) * 2 + e], d[((b * 4 + h) * 3 + l) * 2 + e]);
        }
        EXPECT_EQ(pl[(b * 3 + l) * 4 + h], dl[(b * 4 + h) * 3 + l]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Section5, ::testing::ValuesIn(available_backends()),
                         [](const auto& backend) { return backend.param; });

TEST(Section5Merge, AnyGroupingIsTheUnion) {
  // Three parts of one key each: scores 0, ln 3, 0 and values 4, 8, 20.
  const auto part = [](float value, float lse) {
    return std::pair(tensor_of<float>({1, 1, 1}, {value}), tensor_of<float>({1, 1}, {lse}));
  };
  const auto join = [](const auto& a, const auto& b) {
    auto result = std::pair(HostTensor(DType::kF32, {1, 1, 1}), HostTensor(DType::kF32, {1, 1}));
    const Status status = merge(a.first, a.second, b.first, b.second, result.first.mutable_view(),
                                result.second.mutable_view());
    EXPECT_TRUE(status.ok()) << status.to_string();
    return result;
  };
  const auto a = part(4, 0), b = part(8, kLn3), c = part(20, 0);
  const auto left = join(join(a, b), c), right = join(a, join(b, c)), other = join(join(c, a), b);
  for (const auto* result : {&left, &right, &other}) {
    EXPECT_NEAR(values(result->first)[0], 9.6f, 1e-5f);
    EXPECT_NEAR(values(result->second)[0], std::log(5.0f), 1e-6f);
  }
}

TEST(Section5Merge, TwoEmptyPartsAreEmpty) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  HostTensor out = tensor_of<float>({1, 1, 1}, {nan});
  HostTensor lse = tensor_of<float>({1, 1}, {-kInfinity});
  ASSERT_TRUE(merge(out, lse, out, lse, out.mutable_view(), lse.mutable_view()).ok());
  EXPECT_EQ(values(out)[0], 0);
  EXPECT_EQ(values(lse)[0], -kInfinity);
}

}  // namespace
}  // namespace kvcache
