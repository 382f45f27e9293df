// The public face of attention: attend(), AttentionPlan, merge and finish at the door.
#include "kvcache/attention.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/backend.h"
#include "support/kv_fixture.h"
#include "support/tensors.h"

namespace kvcache {
namespace {

using testing::HostTensor;
using testing::KvRowsData;
using testing::KvStorage;

void expect_error(const Status& status, const std::string& text) {
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status.to_string();
  EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
}

class AttendTest : public ::testing::Test {
 protected:
  AttendTest() : storage_(filled()) {}

  static KvRowsData filled() {
    KvRowsData data({6, 6}, 2, 8, 4);
    std::mt19937 rng(1);
    data.randomize(rng);
    return data;
  }

  KvStorage storage_;
  std::vector<std::int32_t> indptr_ = {0, 1, 2};
  HostTensor q_{DType::kF32, {2, 4, 8}};
  HostTensor out_{DType::kF32, {2, 4, 4}};
};

TEST_F(AttendTest, APlanRunsManyTimesAndMoves) {
  AttentionPlan plan;
  EXPECT_STREQ(plan.backend(), "");
  EXPECT_EQ(plan.rows_read(), 0);
  expect_error(plan.run(q_, storage_.view(), out_.mutable_view()), "no plan");
  ASSERT_TRUE(plan.plan(storage_.view(), indptr_, 4).ok());
  EXPECT_EQ(plan.backend(), selected_backend().value());
  EXPECT_EQ(plan.rows_read(), 12);
  AttentionPlan moved = std::move(plan);
  for (int layer = 0; layer < 3; ++layer) {
    EXPECT_TRUE(moved.run(q_, storage_.view(), out_.mutable_view()).ok());
  }
}

TEST_F(AttendTest, TheRankOfQDecidesBetweenPackedAndDense) {
  expect_error(attend(q_, {}, storage_.view(), out_.mutable_view()), "q: found [2, 4, 8] f32");
  const HostTensor flat(DType::kF32, {2, 32});
  expect_error(attend(flat, indptr_, storage_.view(), out_.mutable_view()), "q: found [2, 32] f32");
  expect_error(attend({}, indptr_, storage_.view(), out_.mutable_view()), "q: found none");
  const HostTensor batch(DType::kF32, {3, 4, 1, 8});
  expect_error(attend(batch, {}, storage_.view(), out_.mutable_view()),
               "q: found [3, 4, 1, 8] f32, expected a batch of 2");
}

TEST_F(AttendTest, ADeviceWithoutABackendIsUnavailableByName) {
  KvView view = storage_.view();
  view.device = {DeviceKind::kCuda, 0};
  const std::string why = "expected the CPU (cuda: this version has no CUDA kernels)";
  AttentionPlan plan;
  for (const Status& status :
       {attend(q_, indptr_, view, out_.mutable_view()), plan.plan(view, indptr_, 4)}) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_EQ(status.message(), "kv.device: found cuda:0, " + why);
  }
  TensorView q = q_;
  q.device = view.device;
  const Status status = attend(q, indptr_, storage_.view(), out_.mutable_view());
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "q: found cuda:0, expected a tensor of the CPU");
}

TEST_F(AttendTest, OutIsChecked) {
  const HostTensor integers(DType::kI32, {2, 4, 4});
  expect_error(attend(q_, indptr_, storage_.view(), HostTensor(integers).mutable_view()), "out");
  expect_error(attend(q_, indptr_, storage_.view(), {}), "out: found none");
}

TEST(MergeTest, ShapesAreChecked) {
  HostTensor out(DType::kF32, {2, 3, 4}), lse(DType::kF32, {2, 3});
  const HostTensor wide(DType::kF32, {2, 3, 5}), turned(DType::kF32, {3, 2}),
      half(DType::kF16, {2, 3, 4});
  EXPECT_TRUE(merge(out, lse, out, lse, out.mutable_view(), lse.mutable_view()).ok());
  expect_error(merge(out, lse, wide, lse, out.mutable_view(), lse.mutable_view()),
               "out_b: found [2, 3, 5]");
  expect_error(merge(out, turned, out, lse, out.mutable_view(), lse.mutable_view()),
               "lse_a: found [3, 2]");
  expect_error(merge(half, lse, out, lse, out.mutable_view(), lse.mutable_view()), "out_a");
}

TEST(MergeTest, TheResultIsAPartOrApartFromBoth) {
  float memory[128] = {};
  const auto out = [&](std::int64_t at) {
    return MutableTensorView(memory + at, DType::kF32, {2, 3, 4});
  };
  const auto lse = [&](std::int64_t at) {
    return MutableTensorView(memory + at, DType::kF32, {2, 3});
  };
  const auto merged = [&](const MutableTensorView& to, const MutableTensorView& to_lse) {
    return merge(out(0), lse(24), out(30), lse(54), to, to_lse);
  };
  EXPECT_TRUE(merged(out(0), lse(24)).ok());
  EXPECT_TRUE(merged(out(30), lse(24)).ok());
  EXPECT_TRUE(merged(out(60), lse(84)).ok());
  expect_error(merged(out(4), lse(84)),
               "out: found memory of out_a, expected out_a itself or memory of its own");
  expect_error(merged(out(90), lse(55)),
               "lse: found memory of lse_b, expected lse_b itself or memory of its own");
  expect_error(merged(out(60), lse(28)), "lse: found memory of lse_a");
  expect_error(merged(out(60), lse(30)), "lse: found memory of out_b, expected memory of its own");
  expect_error(merged(out(60), lse(62)), "lse: found memory of out, expected memory of its own");
  MutableTensorView folded = out(60);
  folded.strides[0] = 4;
  expect_error(merged(folded, lse(84)), "out: found elements that share memory");
}

TEST(FinishTest, NothingReadIsWrittenTo) {
  float memory[64] = {};
  const MutableTensorView out(memory, DType::kF32, {2, 3, 4});
  const TensorView lse(memory + 24, DType::kF32, {2, 3});
  EXPECT_TRUE(finish(out, lse, std::span(memory + 30, 3)).ok());
  expect_error(finish(out, lse, std::span(memory + 22, 3)), "out: found memory of sinks");
  expect_error(finish(out, TensorView(memory + 20, DType::kF32, {2, 3}), std::span(memory + 30, 3)),
               "out: found memory of lse");
}

TEST(FinishTest, SinksAreOnePerHead) {
  HostTensor out(DType::kF32, {2, 3, 4});
  const HostTensor lse(DType::kF32, {2, 3});
  const std::vector<float> sinks = {0, 0, 0, 0};
  expect_error(finish(out.mutable_view(), lse, sinks), "sinks: found 4, expected 3");
  out.set(0, 2);
  ASSERT_TRUE(finish(out.mutable_view(), lse, std::span(sinks).first(3)).ok());
  EXPECT_EQ(testing::values(out)[0], 1);  // lse 0, sink 0: half
}

}  // namespace
}  // namespace kvcache
