// Semantics, section 0, for the layered caches: one test per rule (7 and 8 are attention's).
#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "base/memory_kinds.h"
#include "kvcache/memory_plan.h"
#include "support/layered.h"

namespace kvcache::testing {
namespace {

class Section0 : public LayeredTest {};
INSTANTIATE_TEST_SUITE_P(Layered, Section0, ::testing::ValuesIn(all_layered_cases()), name_of_case);

TEST_P(Section0, Rule1LengthIsPerLayer) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2}), 0));
  ASSERT_OK(put(*cache, tokens({3, 4, 5}), 1));
  EXPECT_EQ(cache->seq_length(0).value(), 2);
  EXPECT_EQ(cache->seq_length(1).value(), 3);
  EXPECT_EQ(keys(*cache, 0), (Floats{1, 2}));
}

TEST_P(Section0, Rule2EmptyIsLengthZeroOrNone) {
  const auto cache = make();
  EXPECT_FALSE(cache->get(0).value().key.defined());
  ASSERT_OK(put(*cache, iota(shaped(2, 3, 4, 5))));
  ASSERT_OK(cache->truncate(0));
  EXPECT_EQ(shape_of(cache->get(0).value().key), shaped(2, 3, 0, 5));
  EXPECT_EQ(shape_of(cache->get(0).value().value), shaped(2, 3, 0, 5));
}

TEST_P(Section0, Rule3KeyAndValueAgreeButForTheHeadSize) {
  const auto cache = make();
  const HostTensor key = iota(shaped(2, 3, 2, 4));
  const auto refused = [&](const HostTensor& value) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "value: found",
                           cache->update(key, value).status());
  };
  refused(iota(shaped(1, 3, 2, 4)));
  refused(iota(shaped(2, 2, 2, 4)));
  refused(iota(shaped(2, 3, 1, 4)));
  EXPECT_OK(cache->update(key, iota(shaped(2, 3, 2, 7))).status());
}

TEST_P(Section0, Rule3LaterUpdatesAgreeWithTheFirstInAllButLength) {
  const auto cache = make();
  const HostTensor key = iota(shaped(2, 3, 2, 4));
  const HostTensor value = iota(shaped(2, 3, 2, 5));
  ASSERT_OK(cache->update(key, value).status());
  const auto refused = [&](const char* text, const HostTensor& k, const HostTensor& v) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, text,
                           cache->update(k, v).status());
  };
  refused("key: found", iota(shaped(1, 3, 1, 4)), iota(shaped(1, 3, 1, 5)));
  refused("key: found", iota(shaped(2, 2, 1, 4)), iota(shaped(2, 2, 1, 5)));
  refused("key: found", iota(shaped(2, 3, 1, 5)), iota(shaped(2, 3, 1, 5)));
  refused("value: found", iota(shaped(2, 3, 1, 4)), iota(shaped(2, 3, 1, 4)));
  EXPECT_OK(cache->update(iota(shaped(2, 3, 5, 4)), iota(shaped(2, 3, 5, 5))).status());
  EXPECT_OK(cache->update(iota(shaped(1, 1, 1, 1)), iota(shaped(1, 1, 1, 1)), 1).status());
}

TEST_P(Section0, Rule3AMismatchNamesTensorFoundAndExpected) {
  const auto cache = make();
  ASSERT_OK(put(*cache, iota(shaped(2, 3, 2, 4))));
  const std::string found =
      GetParam().layout == Layout::kHND ? "key: found [2, 3, 1, 8]" : "key: found [2, 1, 3, 8]";
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, found,
                         put(*cache, iota(shaped(2, 3, 1, 8))));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "expected",
                         put(*cache, iota(shaped(2, 3, 1, 8))));
}

TEST_P(Section0, Rule3OtherTensorsThanFloatingOnesOfFourAxesAreErrors) {
  const auto cache = make();
  const HostTensor good = tokens({1});
  for (const HostTensor& bad : {iota({1, 1, 1}), iota({1}), iota({1, 1, 1, 1}, DType::kI32),
                                iota({1, 1, 1, 1}, DType::kI64), iota(shaped(0, 1, 1, 1)),
                                iota(shaped(1, 0, 1, 1)), iota(shaped(1, 1, 1, 0))}) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "key: found",
                           cache->update(bad, bad).status());
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "value: found",
                           cache->update(good, bad).status());
  }
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "key: found none",
                         cache->update(TensorView(), good).status());
}

TEST_P(Section0, Rule4TheBufferKeepsItsTypeAndConvertsWhatComes) {
  const auto cache = make();
  for (const DType dtype : {DType::kF16, DType::kF32, DType::kBF16}) {
    ASSERT_OK(put(*cache, T({1.5, -2}, dtype, GetParam().layout)));
  }
  EXPECT_EQ(cache->get(0).value().key.dtype, GetParam().dtype);
  EXPECT_EQ(keys(*cache), (Floats{1.5, -2, 1.5, -2, 1.5, -2}));
}

TEST_P(Section0, Rule4WithoutAnOptionTheFirstUpdateDecides) {
  CacheOptions options;
  options.layout = GetParam().layout;
  const auto cache = make_layered(GetParam().kind, options);
  const HostTensor key = T({1}, GetParam().dtype, GetParam().layout);
  const HostTensor value = T({2}, DType::kF32, GetParam().layout);
  ASSERT_OK(cache->update(key, value).status());
  ASSERT_OK(cache->update(value, key).status());
  EXPECT_EQ(cache->get(0).value().key.dtype, GetParam().dtype);
  EXPECT_EQ(cache->get(0).value().value.dtype, DType::kF32);
  EXPECT_EQ(keys(*cache), (Floats{1, 2}));
}

TEST_P(Section0, Rule5TheCacheOwnsItsRows) {
  const auto cache = make();
  HostTensor key = tokens({1, 2});
  const HostTensor before = key;
  ASSERT_OK(put(*cache, key));
  EXPECT_EQ(values(key), values(before));
  key.set(0, 9);
  EXPECT_EQ(keys(*cache), (Floats{1, 2}));
}

TEST_P(Section0, Rule6BothLayoutsGiveTheSameNumbers) {
  const Layout layout = GetParam().layout;
  const auto cache = make();
  // Element (b, h, t, d) is 64 b + 16 h + 4 t + d, whatever the order of the axes.
  HostTensor key(DType::kF32, shaped(2, 3, 4, 4));
  Floats head_first;
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t h = 0; h < 3; ++h) {
      for (std::int64_t t = 0; t < 4; ++t) {
        for (std::int64_t d = 0; d < 4; ++d) {
          const std::int64_t at = layout == Layout::kHND ? ((b * 3 + h) * 4 + t) * 4 + d
                                                         : ((b * 4 + t) * 3 + h) * 4 + d;
          key.set(at, static_cast<double>(64 * b + 16 * h + 4 * t + d));
          head_first.push_back(static_cast<float>(64 * b + 16 * h + 4 * t + d));
        }
      }
    }
  }
  ASSERT_OK(put(*cache, key));
  TensorView got = cache->get(0).value().key;
  EXPECT_EQ(got.strides[3], 1);  // head_dim contiguous
  if (layout == Layout::kNHD) {
    std::swap(got.shape[1], got.shape[2]);
    std::swap(got.strides[1], got.strides[2]);
  }
  EXPECT_EQ(values(got), head_first);
}

TEST_P(Section0, Rule9GrowthCopiesNothing) {
  if (is_static()) return;    // does not grow
  const auto cache = make();  // reserves 4 tokens
  Floats expected;
  for (int i = 0; i < 300; ++i) {
    ASSERT_OK(put(*cache, tokens({static_cast<double>(i % 128)})));
    expected.push_back(static_cast<float>(i % 128));
  }
  EXPECT_EQ(keys(*cache), expected);
  // Where pages cannot be moved, rows are copied and counted.
  const bool moves_pages = &system_memory() != &internal::portable_memory();
  EXPECT_EQ(cache->copied_bytes() == 0, moves_pages);
}

TEST_P(Section0, Rule9WhatMustCopyOldRowsCountsThem) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2, 3}, {4, 5, 6}})));
  const std::int64_t row = 2 * size_of(GetParam().dtype);  // K and V of a token of one batch row
  ASSERT_OK(cache->crop(2));
  EXPECT_EQ(cache->copied_bytes(), 2 * 2 * row);
  ASSERT_OK(cache->reorder(indices({1, 0, 1})));
  EXPECT_EQ(cache->copied_bytes(), (2 * 2 + 3 * 2) * row);
  ASSERT_OK(cache->batch_repeat_interleave(2));
  EXPECT_EQ(cache->copied_bytes(), (2 * 2 + 3 * 2 + 6 * 2) * row);
}

TEST_P(Section0, Rule10IndicesAreNeverNegativeAndNeverWrap) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1}, {2}})));
  for (const std::int64_t bad : {std::int64_t{-1}, std::numeric_limits<std::int64_t>::min(),
                                 std::numeric_limits<std::int64_t>::max()}) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "layer_idx",
                           put(*cache, batch({{1}, {2}}), bad));
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "indices",
                           cache->batch_select(indices({0, bad})));
  }
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "layer_idx", cache->get(-1).status());
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "layer_idx",
                         cache->seq_length(-1).status());
}

TEST_P(Section0, Rule10HugePositionsAndRepeatsAreErrorsNotOverflows) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1}, {2}})));
  const StatusCode code = is_static() ? StatusCode::kOutOfRange : StatusCode::kOutOfMemory;
  for (const std::int64_t huge :
       {std::int64_t{1} << 45, std::int64_t{1} << 61, std::numeric_limits<std::int64_t>::max()}) {
    EXPECT_ERROR_UNCHANGED(*cache, code, "", put(*cache, batch({{1}, {2}}), 0, index(huge)));
    EXPECT_ERROR_UNCHANGED(*cache, code, "", put(*cache, batch({{1}, {2}}), 1, index(huge)));
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfMemory, "",
                           cache->batch_repeat_interleave(huge));
  }
}

TEST_P(Section0, Rule11ZeroNewTokensChangeNothingAndFixNoShape) {
  const auto cache = make();
  const HostTensor none(DType::kF32, shaped(2, 3, 0, 4));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOk, "", put(*cache, none));
  EXPECT_FALSE(cache->get(0).value().key.defined());
  EXPECT_EQ(shape_of(cache->update(none, none).value().key), shaped(2, 3, 0, 4));
  ASSERT_OK(put(*cache, tokens({1, 2})));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOk, "", put(*cache, tokens({})));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOk, "", put(*cache, tokens({}), 0, indices({})));
  EXPECT_EQ(values(cache->update(tokens({}), tokens({})).value().key), (Floats{1, 2}));
}

TEST_P(Section0, Rule11AnEmptyIndexListIsAnError) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1}, {2}})));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "indices: found none",
                         cache->batch_select(indices({})));
}

TEST_P(Section0, Rule11TruncateBeyondALengthLeavesThatLayerAlone) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3}), 0));
  ASSERT_OK(put(*cache, tokens({4}), 1));
  ASSERT_OK(cache->truncate(2));
  EXPECT_EQ(keys(*cache, 0), (Floats{1, 2}));
  EXPECT_EQ(keys(*cache, 1), (Floats{4}));
}

TEST_P(Section0, Rule11RewindIsCheckedAgainstTheShortestPopulatedLayer) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3}), 0));
  ASSERT_OK(put(*cache, tokens({4}), 2));  // layer 1 is not populated
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "n: found 2", cache->rewind(2));
  ASSERT_OK(cache->rewind(1));
  EXPECT_EQ(keys(*cache, 0), (Floats{1, 2}));
  EXPECT_EQ(cache->seq_length(2).value(), 0);
}

TEST_P(Section0, Rule12IndexAndPositionAreTwoThings) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3, 4, 5})));
  ASSERT_OK(cache->crop(2));
  EXPECT_EQ(cache->seq_length().value(), 2);
  EXPECT_EQ(cache->next_position().value(), 5);
  const OwnedKvView view = cache->view(0).value();
  EXPECT_EQ(view.get().parts[0].first_position[0], 3);
  EXPECT_EQ(view.get().parts[0].lengths[0], 2);
  cache->reset();
  EXPECT_EQ(cache->next_position().value(), 0);
  ASSERT_OK(put(*cache, tokens({6})));
  EXPECT_EQ(cache->next_position().value(), 1);
}

TEST_P(Section0, Rule12ReorderAndRepeatKeepPositions) {
  const auto cache = make();
  ASSERT_OK(put(*cache, batch({{1, 2, 3}, {4, 5, 6}})));
  ASSERT_OK(cache->crop(1));
  ASSERT_OK(cache->reorder(indices({1, 0})));
  ASSERT_OK(cache->batch_repeat_interleave(2));
  EXPECT_EQ(cache->next_position().value(), 3);
}

TEST_P(Section0, Rule13RetainedMemoryStaysReadable) {
  const auto cache = make(4096);
  ASSERT_OK(put(*cache, tokens({1, 2})));
  const TensorView old = cache->get(0).value().key;
  const std::shared_ptr<const void> held = cache->retain(0).value();
  ASSERT_NE(held, nullptr);
  ASSERT_OK(put(*cache, tokens(std::vector<double>(4000, 1))));  // grows
  ASSERT_OK(cache->reorder(indices({0, 0})));
  cache->reset();
  cache->shrink();
  EXPECT_EQ(values(old).size(), 2u);  // no fault; what it reads is unspecified
}

TEST_P(Section0, Rule13ConstCallsOnOneCacheRunTogether) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3})));
  const CacheState before = state_of(*cache);
  const auto look = [&] {
    for (int i = 0; i < 20; ++i) {
      EXPECT_TRUE(state_of(*cache) == before);
      EXPECT_EQ(cache->view(0).value().get().parts[0].lengths[0], 3);
    }
  };
  std::thread other(look);
  look();
  other.join();
}

TEST_P(Section0, Rule13DistinctCachesAreIndependent) {
  const auto work = [&] {
    const auto cache = make();
    Floats expected;
    for (int i = 0; i < 12; ++i) {
      EXPECT_OK(put(*cache, tokens({static_cast<double>(i)})));
      expected.push_back(static_cast<float>(i));
    }
    EXPECT_EQ(keys(*cache), expected);
  };
  std::thread other(work);
  work();
  other.join();
}

TEST_P(Section0, Rule14NbytesIsRowsStoredAndReservedHoldsThem) {
  const auto cache = make(16);
  EXPECT_EQ(cache->nbytes(), 0);
  EXPECT_EQ(cache->reserved_bytes(), 0);
  ASSERT_OK(cache->update(iota(shaped(2, 3, 4, 5)), iota(shaped(2, 3, 4, 6))).status());
  const std::int64_t token = 2 * 3 * (5 + 6) * size_of(GetParam().dtype);
  EXPECT_EQ(cache->nbytes(), 4 * token);
  EXPECT_GE(cache->reserved_bytes(), is_static() ? 16 * token : 4 * token);
  ASSERT_OK(cache->crop(1));
  EXPECT_EQ(cache->nbytes(), token);
}

TEST_P(Section0, Rule14ThePlanPredictsBoth) {
  const auto cache = make(40, 2);
  for (int i = 0; i < 33; ++i) {
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      ASSERT_OK(
          cache->update(iota(shaped(2, 3, 1, 20)), iota(shaped(2, 3, 1, 40)), layer).status());
    }
  }
  const LayerSpec spec = LayerSpec::kv(3, 20, 40, GetParam().dtype);
  const LayerSpec layers[] = {spec, spec};
  MemoryPlanRequest request;
  request.layers = layers;
  request.batch_size = 2;
  request.seq_length = 33;
  request.max_length = 40;
  request.layout = GetParam().layout;
  const PlannedBytes plan =
      plan_memory(is_static() ? CacheKind::kStatic : CacheKind::kDynamic, request).value();
  EXPECT_EQ(cache->nbytes(), plan.nbytes);
  EXPECT_EQ(cache->reserved_bytes(), plan.reserved_bytes);
}

}  // namespace
}  // namespace kvcache::testing
