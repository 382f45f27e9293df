// Semantics, section 3. A running batch: one test per row of its table, per rule below it and per
// case, for both layouts and every element type.
#include <gtest/gtest.h>

#include <cmath>

#include "kvcache/full_cache.h"
#include "kvcache/static_cache.h"
#include "support/batching.h"

namespace kvcache::testing {
namespace {

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr StatusCode kRange = StatusCode::kOutOfRange;

struct BatchCase {
  Layout layout;
  DType dtype;
};

std::string name_of_batch_case(const ::testing::TestParamInfo<BatchCase>& info) {
  return std::string(name_of(info.param.layout)) + "_" + name_of(info.param.dtype);
}

std::vector<BatchCase> all_batch_cases() {
  std::vector<BatchCase> cases;
  for (Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) cases.push_back({layout, dtype});
  }
  return cases;
}

class Section3 : public ::testing::TestWithParam<BatchCase> {
 protected:
  BatchingCache make(std::int64_t slots, const BatchingOptions& given = {}) const {
    BatchingOptions options = given;
    options.layout = layout();
    options.dtype = GetParam().dtype;
    return BatchingCache::create(slots, options).value();
  }

  DynamicCache request(const std::vector<double>& list, std::int64_t num_layers = 1) const {
    CacheOptions options;
    options.layout = layout();
    options.dtype = GetParam().dtype;
    options.reserve_tokens = 4;  // rows move early
    DynamicCache cache = DynamicCache::create(options).value();
    for (std::int64_t i = 0; i < num_layers && !list.empty(); ++i) {
      EXPECT_TRUE(cache.update(tokens(list), tokens(list), i).ok());
    }
    return cache;
  }

  // Slot 0 holds `first`, slot 2 holds `second`; slot 1 is idle.
  BatchingCache two_of_three(const std::vector<double>& first,
                             const std::vector<double>& second) const {
    BatchingCache batch = make(3);
    DynamicCache a = request(first), b = request(second);
    EXPECT_TRUE(batch.add_request(a, 0).ok());
    EXPECT_TRUE(batch.add_request(b, 2).ok());
    return batch;
  }

  Layout layout() const { return GetParam().layout; }
  HostTensor tokens(const std::vector<double>& list) const {
    return T(list, DType::kF32, layout());
  }
  HostTensor batch_of(const std::vector<std::vector<double>>& list) const {
    return rows(list, DType::kF32, layout());
  }
  Shape shaped(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const {
    return layout() == Layout::kHND ? Shape{b, h, t, d} : Shape{b, t, h, d};
  }
  BatchState seen(BatchingCache& batch) const { return state_of(batch, layout()); }
};
INSTANTIATE_TEST_SUITE_P(Batching, Section3, ::testing::ValuesIn(all_batch_cases()),
                         name_of_batch_case);

// --- add_request. ---

TEST_P(Section3, AddRequestTakesOverThePrefilledRowsWithoutCopyingThem) {
  BatchingCache batch = make(2);
  DynamicCache cache = request({1, 2, 3});
  const std::int64_t held = cache.reserved_bytes();
  const std::shared_ptr<const void> rows_of_request = cache.retain(0).value();
  const long holders = rows_of_request.use_count();
  ASSERT_OK(batch.add_request(cache, 1));
  EXPECT_EQ(rows_of_request.use_count(), holders);  // the same memory, held by the batch now
  EXPECT_EQ(batch.seq_length(1).value(), 3);
  EXPECT_EQ(batch.reserved_bytes(), held);
  EXPECT_EQ(batch.stats().copied_bytes, 0);
  EXPECT_EQ(batch.active(), 1);
  EXPECT_TRUE(batch.occupied(1));
  EXPECT_FALSE(batch.occupied(0));
}

TEST_P(Section3, AddRequestLeavesTheGivenCacheEmptyAndUsable) {
  BatchingCache batch = make(2);
  DynamicCache cache = request({1, 2, 3});
  ASSERT_OK(batch.add_request(cache, 0));
  EXPECT_EQ(cache.num_layers(), 0);
  EXPECT_EQ(cache.reserved_bytes(), 0);
  ASSERT_OK(cache.update(tokens({9}), tokens({9})).status());
  ASSERT_OK(batch.add_request(cache, 1));
  EXPECT_EQ(batch.seq_length(0).value(), 3);
  EXPECT_EQ(batch.seq_length(1).value(), 1);
}

TEST_P(Section3, AddRequestTakesAnEmptyCacheAndAStaticOneAndAFullCache) {
  BatchingCache batch = make(3);
  CacheOptions options;
  options.layout = layout();
  options.dtype = GetParam().dtype;
  DynamicCache empty = DynamicCache::create(options).value();
  StaticCache fixed = StaticCache::create(8, 1, options).value();
  FullCache full = FullCache::create(options).value();
  ASSERT_OK(fixed.update(tokens({1, 2}), tokens({1, 2})).status());
  ASSERT_OK(full.update_and_fetch(tokens({3}), tokens({3})).status());
  ASSERT_OK(batch.add_request(empty, 0));
  ASSERT_OK(batch.add_request(fixed, 1));
  ASSERT_OK(batch.add_request(full, 2));
  EXPECT_EQ(fixed.max_length(), 8);
  EXPECT_EQ(fixed.num_layers(), 1);
  EXPECT_EQ(full.offset(), 0);
  const HostTensor next = batch_of({{7}, {8}, {9}});
  EXPECT_EQ(values(batch.update_and_fetch(next, next).value().key),
            (Floats{0, 0, 7, 1, 2, 8, 0, 3, 9}));
}

TEST_P(Section3, AddRequestChecksTheSlot) {
  BatchingCache batch = two_of_three({1}, {2});
  DynamicCache cache = request({5});
  const CacheState before = state_of(cache);
  for (const std::int64_t outside : {-1, 3}) {
    EXPECT_BATCH_UNCHANGED(batch, layout(), kRange,
                           "id: found " + std::to_string(outside) + ", expected 0 .. 2",
                           batch.add_request(cache, outside));
  }
  EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, "id: found slot 2 occupied",
                         batch.add_request(cache, 2));
  EXPECT_TRUE(state_of(cache) == before);
}

TEST_P(Section3, AddRequestRefusesABatchOtherThanOneAndOtherHeads) {
  BatchingCache batch = two_of_three({1}, {2});
  CacheOptions options;
  options.layout = layout();
  options.dtype = GetParam().dtype;
  for (const Shape& shape : {shaped(2, 1, 1, 1), shaped(1, 2, 1, 1), shaped(1, 1, 1, 2)}) {
    DynamicCache other = DynamicCache::create(options).value();
    ASSERT_OK(other.update(iota(shape), iota(shape)).status());
    const CacheState before = state_of(other);
    EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, "cache: found keys",
                           batch.add_request(other, 1));
    EXPECT_TRUE(state_of(other) == before);
  }
  BatchingCache fresh = make(1);  // a batch other than 1 is an error of the first request too
  DynamicCache pair = DynamicCache::create(options).value();
  ASSERT_OK(pair.update(iota(shaped(2, 1, 1, 1)), iota(shaped(2, 1, 1, 1))).status());
  EXPECT_EQ(fresh.add_request(pair, 0).code(), kInvalid);
}

TEST_P(Section3, AddRequestRefusesLayersOfUnequalLength) {
  BatchingCache batch = make(1);
  DynamicCache cache = request({1, 2}, 2);
  ASSERT_OK(cache.update(tokens({3}), tokens({3}), 1).status());
  EXPECT_EQ(batch.add_request(cache, 0).message(),
            "cache: found length 3 in layer 1, expected 2 as in layer 0");
  EXPECT_EQ(batch.active(), 0);
  ASSERT_OK(cache.update(tokens({3}), tokens({3}), 0).status());
  EXPECT_OK(batch.add_request(cache, 0));
}

TEST_P(Section3, AddRequestRefusesOtherTypesAndLayouts) {
  BatchingCache batch = two_of_three({1}, {2});
  CacheOptions options;
  options.layout = layout();
  options.dtype = GetParam().dtype == DType::kF32 ? DType::kF16 : DType::kF32;
  DynamicCache typed = DynamicCache::create(options).value();
  EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, "cache: found dtype",
                         batch.add_request(typed, 1));
  options.dtype.reset();
  DynamicCache untyped = DynamicCache::create(options).value();
  const DType other = GetParam().dtype == DType::kF32 ? DType::kF16 : DType::kF32;
  const HostTensor one = iota({1, 1, 1, 1}, other);
  ASSERT_OK(untyped.update(one, one).status());
  EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, "cache: found keys",
                         batch.add_request(untyped, 1));
  options.layout = layout() == Layout::kHND ? Layout::kNHD : Layout::kHND;
  DynamicCache turned = DynamicCache::create(options).value();
  EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, "cache: found layout",
                         batch.add_request(turned, 1));
}

TEST_P(Section3, NumLayersAreThoseOfTheFirstRequestOrOfTheOption) {
  BatchingCache batch = make(2);
  DynamicCache two = request({1}, 2), three = request({1}, 3), again = request({1}, 2);
  ASSERT_OK(batch.add_request(two, 0));
  EXPECT_EQ(batch.add_request(three, 1).message(),
            "cache: found 3 layers, expected 2 as the batch");
  const HostTensor next = batch_of({{1}, {1}});
  EXPECT_EQ(batch.update_and_fetch(next, next, {}, {}, 2).status().message(),
            "layer: found 2, expected 0 .. 1");
  EXPECT_OK(batch.add_request(again, 1));

  BatchingOptions options;
  options.num_layers = 3;
  BatchingCache fixed = make(2, options);
  DynamicCache short_of = request({1}, 2);
  EXPECT_EQ(fixed.add_request(short_of, 0).message(),
            "cache: found 2 layers, expected 3 as the batch");
  EXPECT_OK(fixed.add_request(three, 0));
  DynamicCache empty = request({});
  EXPECT_OK(fixed.add_request(empty, 1));
}

// --- remove_request. ---

TEST_P(Section3, RemoveRequestFreesTheSlotAndItsMemory) {
  BatchingCache batch = two_of_three({1}, {2});
  const std::int64_t held = batch.reserved_bytes();
  ASSERT_OK(batch.remove_request(0));
  EXPECT_EQ(batch.reserved_bytes(), held / 2);
  EXPECT_EQ(batch.active(), 1);
  DynamicCache cache = request({7, 8});
  ASSERT_OK(batch.add_request(cache, 0));
  EXPECT_EQ(batch.seq_length(0).value(), 2);
}

TEST_P(Section3, RemovingAnEmptySlotIsAnError) {
  BatchingCache batch = two_of_three({1}, {2});
  EXPECT_BATCH_UNCHANGED(batch, layout(), StatusCode::kNotFound, "id: found slot 1 empty",
                         batch.remove_request(1));
  EXPECT_BATCH_UNCHANGED(batch, layout(), kRange, "id: found 3", batch.remove_request(3));
}

// --- update_and_fetch. ---

TEST_P(Section3, CaseThreeSlotsOneIdle) {
  BatchingCache batch = two_of_three({10}, {20, 21});
  const HostTensor next = batch_of({{12, 13}, {0, 0}, {22, 23}});
  const BatchFetch fetched = batch.update_and_fetch(next, next, 2).value();
  EXPECT_EQ(fetched.length, 4);
  EXPECT_EQ(shape_of(fetched.key), shaped(3, 1, 4, 1));
  EXPECT_EQ(fetched.key.dtype, GetParam().dtype);
  EXPECT_EQ(values(fetched.key), (Floats{0, 10, 12, 13, 0, 0, 0, 0, 20, 21, 22, 23}));
  EXPECT_EQ(values(fetched.value), values(fetched.key));
  EXPECT_EQ(shape_of(fetched.mask), (Shape{3, 1, 2, 4}));
  EXPECT_EQ(fetched.mask.dtype, DType::kF32);
  const float no = kUnseen;
  EXPECT_EQ(values(fetched.mask), (Floats{no, 0,  0,  no, no, 0,  0,  0,   //
                                          no, no, no, no, no, no, no, no,  //
                                          0,  0,  0,  no, 0,  0,  0,  0}));
}

TEST_P(Section3, RowsOfIdleSlotsAreIgnored) {
  BatchingCache batch = two_of_three({1}, {2});
  const double nan = std::nan("");
  const HostTensor next = batch_of({{3}, {nan}, {4}});
  const BatchFetch fetched = batch.update_and_fetch(next, next).value();
  EXPECT_EQ(values(fetched.key), (Floats{1, 3, 0, 0, 2, 4}));
  EXPECT_EQ(batch.stats().rows_appended, 2);
}

TEST_P(Section3, AnAppendThatOneSlotCannotTakeReachesNone) {
  BatchingOptions options;
  options.max_seq_len = 3;
  BatchingCache batch = make(2, options);
  DynamicCache a = request({1}), b = request({2, 3});
  ASSERT_OK(batch.add_request(a, 0));
  ASSERT_OK(batch.add_request(b, 1));
  const HostTensor next = batch_of({{4, 5}, {6, 7}});
  EXPECT_BATCH_UNCHANGED(batch, layout(), kRange,
                         "key: found 2 new tokens after a length of 2 in slot 1, expected at most "
                         "max_seq_len 3",
                         batch.update_and_fetch(next, next).status());
}

TEST_P(Section3, TheCapacityOfAStaticRequestHolds) {
  BatchingCache batch = make(2);
  CacheOptions options;
  options.layout = layout();
  options.dtype = GetParam().dtype;
  StaticCache fixed = StaticCache::create(2, 1, options).value();
  ASSERT_OK(fixed.update(tokens({1, 2}), tokens({1, 2})).status());
  DynamicCache dynamic = request({3});
  ASSERT_OK(batch.add_request(fixed, 0));
  ASSERT_OK(batch.add_request(dynamic, 1));
  const HostTensor next = batch_of({{4}, {5}});
  EXPECT_BATCH_UNCHANGED(batch, layout(), kRange, "the capacity of 2",
                         batch.update_and_fetch(next, next).status());
}

TEST_P(Section3, MaskLengthIsLOrNone) {
  BatchingCache batch = two_of_three({1}, {2});
  const HostTensor next = batch_of({{3, 4}, {0, 0}, {5, 6}});
  for (const std::int64_t wrong : {1, 3, 0, -2}) {
    EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, "mask_length: found " + std::to_string(wrong),
                           batch.update_and_fetch(next, next, wrong).status());
  }
  EXPECT_EQ(batch.update_and_fetch(next, next).value().mask.shape[2], 2);
  EXPECT_EQ(batch.update_and_fetch(next, next, 2).value().mask.shape[2], 2);
}

TEST_P(Section3, NoneAndCausalAreTheSameMask) {
  BatchingCache one = two_of_three({1, 2}, {3}), other = two_of_three({1, 2}, {3});
  const HostTensor next = batch_of({{3, 4}, {0, 0}, {5, 6}});
  const BatchFetch none = one.update_and_fetch(next, next, 2).value();
  const BatchFetch causal = other.update_and_fetch(next, next, 2, Mask::causal()).value();
  EXPECT_EQ(values(none.mask), values(causal.mask));
}

TEST_P(Section3, AnAdditiveMaskIsBroadcastAndAddedToTheCausalRule) {
  const HostTensor next = batch_of({{3, 4}, {0, 0}, {5, 6}});
  const float no = kUnseen;
  {
    BatchingCache batch = two_of_three({1}, {2});  // S_max 3
    const HostTensor full = iota({3, 1, 2, 3});
    EXPECT_EQ(values(batch.update_and_fetch(next, next, 2, full.view()).value().mask),
              (Floats{0, 1, no, 3, 4, 5, no, no, no, no, no, no, 12, 13, no, 15, 16, 17}));
  }
  {
    BatchingCache batch = two_of_three({1}, {2});
    const HostTensor keys_only = tensor({3}, {0.5, kUnseen, 2});
    EXPECT_EQ(values(batch.update_and_fetch(next, next, 2, keys_only.view()).value().mask),
              (Floats{0.5, no, no, 0.5, no, 2, no, no, no, no, no, no, 0.5, no, no, 0.5, no, 2}));
  }
  {
    BatchingCache batch = two_of_three({1}, {2});
    const HostTensor queries = tensor({1, 2, 1}, {7, 8});
    EXPECT_EQ(values(batch.update_and_fetch(next, next, 2, queries.view()).value().mask),
              (Floats{7, 7, no, 8, 8, 8, no, no, no, no, no, no, 7, 7, no, 8, 8, 8}));
  }
  {
    BatchingCache batch = two_of_three({1}, {2});
    const HostTensor scalar = tensor({}, {4});
    EXPECT_EQ(values(batch.update_and_fetch(next, next, 2, scalar.view()).value().mask),
              (Floats{4, 4, no, 4, 4, 4, no, no, no, no, no, no, 4, 4, no, 4, 4, 4}));
  }
}

TEST_P(Section3, APaddedColumnStaysUnseenWhateverTheMask) {
  BatchingCache batch = two_of_three({1}, {2, 3, 4});  // slot 0 has two columns of padding
  const HostTensor next = batch_of({{5}, {0}, {6}});
  const HostTensor bad = tensor({1, 4}, {std::nan(""), std::nan(""), 1, 2});
  const std::vector<float> mask =
      values(batch.update_and_fetch(next, next, 1, bad.view()).value().mask);
  EXPECT_EQ(std::vector<float>(mask.begin(), mask.begin() + 4), (Floats{kUnseen, kUnseen, 1, 2}));
}

TEST_P(Section3, AMaskThatDoesNotBroadcastIsAnErrorAndSoIsAnyOtherName) {
  BatchingCache batch = two_of_three({1}, {2});
  const HostTensor next = batch_of({{3, 4}, {0, 0}, {5, 6}});
  for (const Shape& shape : {Shape{4}, Shape{3, 3}, Shape{2, 1, 2, 3}, Shape{3, 2, 2, 3}}) {
    EXPECT_BATCH_UNCHANGED(
        batch, layout(), kInvalid, "expected one that broadcasts to [3, 1, 2, 3]",
        batch.update_and_fetch(next, next, 2, HostTensor(DType::kF32, shape).view()).status());
  }
  EXPECT_BATCH_UNCHANGED(
      batch, layout(), kInvalid, "mask: found [1] f16",
      batch.update_and_fetch(next, next, 2, iota({1}, DType::kF16).view()).status());
  Mask unknown;
  unknown.kind = static_cast<MaskKind>(9);
  EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, "mask: found kind 9",
                         batch.update_and_fetch(next, next, 2, unknown).status());
  EXPECT_EQ(Mask::named("full").status().code(), kInvalid);
}

TEST_P(Section3, NoOccupiedSlotIsASuccessOfLengthZero) {
  BatchingCache batch = make(2);
  const HostTensor next = batch_of({{3, 4}, {5, 6}});
  const BatchFetch fetched = batch.update_and_fetch(next, next, 2).value();
  EXPECT_EQ(fetched.length, 0);
  EXPECT_EQ(shape_of(fetched.key), shaped(2, 1, 0, 1));
  EXPECT_EQ(shape_of(fetched.mask), (Shape{2, 1, 2, 0}));
  HostTensor out = iota(shaped(2, 1, 2, 1));
  ASSERT_OK(batch.attend(next, next, next, out.mutable_view()));
  EXPECT_EQ(values(out), (Floats{0, 0, 0, 0}));
  EXPECT_EQ(batch.stats().rows_appended, 0);
}

TEST_P(Section3, ZeroNewTokensChangeNothing) {
  BatchingCache batch = two_of_three({1, 2}, {3});
  const BatchState before = seen(batch);
  const HostTensor none = iota(shaped(3, 1, 0, 1));
  const BatchFetch fetched = batch.update_and_fetch(none, none, 0).value();
  EXPECT_EQ(values(fetched.key), (Floats{1, 2, 0, 0, 0, 3}));
  EXPECT_EQ(shape_of(fetched.mask), (Shape{3, 1, 0, 2}));
  HostTensor out = none;
  ASSERT_OK(batch.attend(none, none, none, out.mutable_view()));
  EXPECT_TRUE(seen(batch) == before);
}

TEST_P(Section3, KeysAndValuesAreChecked) {
  BatchingCache batch = two_of_three({1}, {2});
  const HostTensor next = batch_of({{3}, {0}, {4}});
  const auto refused = [&](const HostTensor& key, const HostTensor& value, const char* text) {
    EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, text,
                           batch.update_and_fetch(key, value).status());
  };
  refused(batch_of({{3}, {4}}), next, "key: found");                  // one row too few
  refused(next, batch_of({{3, 3}, {0, 0}, {4, 4}}), "value: found");  // another length
  refused(iota(shaped(3, 2, 1, 1)), next, "key: found");              // other heads
  refused(next, iota(shaped(3, 1, 1, 2)), "value: found");            // another head size
  refused(HostTensor(DType::kI32, shaped(3, 1, 1, 1)), next, "key: found");
  const BatchFetch fetched = batch.update_and_fetch(next, next).value();
  EXPECT_EQ(batch.update_and_fetch(next, fetched.value).status().code(), kInvalid);
}

// --- attend. ---

TEST_P(Section3, AttendAppendsAndAttendsInPlaceOverTheSlots) {
  // Scores 0 and ln 3 over values 4 and 8: 7; one key alone: its value.
  BatchingCache batch = make(3);
  DynamicCache first = request({}), second = request({});
  ASSERT_OK(first.update(tokens({0}), tokens({4})).status());
  ASSERT_OK(batch.add_request(first, 0));
  ASSERT_OK(batch.add_request(second, 2));
  const double ln3 = std::log(3.0);
  const HostTensor q = batch_of({{1}, {1}, {1}});
  const HostTensor key = batch_of({{ln3}, {std::nan("")}, {ln3}});
  const HostTensor value = batch_of({{8}, {std::nan("")}, {16}});
  HostTensor out = iota(shaped(3, 1, 1, 1), DType::kF32, 100);
  ASSERT_OK(batch.attend(q, key, value, out.mutable_view()));
  const std::vector<float> got = values(out);
  EXPECT_NEAR(got[0], 7, GetParam().dtype == DType::kF32 ? 1e-5 : 1e-2);
  EXPECT_EQ(got[1], 0);  // idle
  EXPECT_EQ(got[2], 16);
  EXPECT_EQ(batch.seq_length(0).value(), 2);
  EXPECT_EQ(batch.seq_length(2).value(), 1);
  EXPECT_EQ(batch.stats().copied_bytes, 0);  // no dense gather
}

TEST_P(Section3, IdleSlotsReadNoRows) {
  BatchingCache batch = two_of_three({1, 2, 3}, {4});
  const HostTensor next = batch_of({{1}, {1}, {1}});
  HostTensor out = iota(shaped(3, 1, 1, 1));
  ASSERT_OK(batch.attend(next, next, next, out.mutable_view()));
  EXPECT_EQ(batch.stats().rows_read, 4 + 2);
  ASSERT_OK(batch.remove_request(0));
  ASSERT_OK(batch.attend(next, next, next, out.mutable_view()));
  EXPECT_EQ(batch.stats().rows_read, 6 + 3);
  EXPECT_EQ(batch.stats().rows_appended, 2 + 1);
}

TEST_P(Section3, AFailingAttendAppendsNothing) {
  BatchingCache batch = two_of_three({1}, {2});
  const HostTensor next = batch_of({{3}, {0}, {4}});
  HostTensor out = iota(shaped(3, 1, 1, 1), DType::kF32, 5);
  const auto refused = [&](const TensorView& q, const MutableTensorView& to,
                           const AttentionOptions& options, const char* text) {
    EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, text,
                           batch.attend(q, next, next, to, 0, options));
  };
  HostTensor narrow(DType::kF32, shaped(2, 1, 1, 1));
  refused(narrow, out.mutable_view(), {}, "q: found");
  refused({}, out.mutable_view(), {}, "q: found none");
  refused(next, narrow.mutable_view(), {}, "out: found");
  AttentionOptions options;
  options.window = -1;
  refused(next, out.mutable_view(), options, "options.window: found -1");
  options = {};
  options.mask = next;
  refused(next, out.mutable_view(), options, "options.mask: found");
  EXPECT_EQ(values(out), (Floats{5, 6, 7}));
}

// --- rewind, seq_length, active. ---

TEST_P(Section3, RewindAndSeqLengthArePerSlot) {
  BatchingCache batch = two_of_three({1, 2, 3}, {4, 5});
  ASSERT_OK(batch.rewind(0, 2));
  EXPECT_EQ(batch.seq_length(0).value(), 1);
  EXPECT_EQ(batch.seq_length(2).value(), 2);
  EXPECT_EQ(batch.next_position(0).value(), 1);
  EXPECT_BATCH_UNCHANGED(batch, layout(), kRange, "n: found 2, expected at most",
                         batch.rewind(0, 2));
  EXPECT_BATCH_UNCHANGED(batch, layout(), kInvalid, "n: found -1", batch.rewind(0, -1));
  EXPECT_BATCH_UNCHANGED(batch, layout(), StatusCode::kNotFound, "id: found slot 1 empty",
                         batch.rewind(1, 0));
  EXPECT_EQ(batch.seq_length(1).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(batch.seq_length(7).status().code(), kRange);
  EXPECT_EQ(batch.active(), 2);
  EXPECT_EQ(batch.max_active(), 3);
}

// --- The total length. ---

TEST_P(Section3, ARequestLongerThanMaxSeqLenIsAnError) {
  BatchingOptions options;
  options.max_seq_len = 2;
  BatchingCache batch = make(1, options);
  DynamicCache cache = request({1, 2, 3});
  EXPECT_EQ(batch.add_request(cache, 0).message(),
            "cache: found length 3, expected at most max_seq_len 2");
  ASSERT_OK(cache.rewind(1));
  EXPECT_OK(batch.add_request(cache, 0));
}

TEST(Section3Options, AreChecked) {
  const auto refused = [](std::int64_t slots, const BatchingOptions& options) {
    return BatchingCache::create(slots, options).status().message();
  };
  EXPECT_EQ(refused(0, {}), "max_active_requests: found 0, expected 1 .. 65536");
  BatchingOptions options;
  options.max_seq_len = 0;
  EXPECT_EQ(refused(1, options), "max_seq_len: found 0, expected at least 1");
  options = {};
  options.num_layers = 0;
  EXPECT_EQ(refused(1, options), "num_layers: found 0, expected 1 .. 65536");
  options = {};
  options.dtype = DType::kI32;
  EXPECT_EQ(refused(1, options), "dtype: found i32, expected f32, f16 or bf16");
}

}  // namespace
}  // namespace kvcache::testing
