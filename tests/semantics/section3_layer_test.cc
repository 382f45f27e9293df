// Semantics, section 3, "One request": the handle on one layer and FullCache, for every kind of
// cache, layout and element type; and the row `layer(i)` of section 1.
#include <gtest/gtest.h>

#include "kvcache/full_cache.h"
#include "kvcache/layer_handle.h"
#include "support/layered.h"

namespace kvcache::testing {
namespace {

class Section3Layer : public LayeredTest {};
INSTANTIATE_TEST_SUITE_P(Layered, Section3Layer, ::testing::ValuesIn(all_layered_cases()),
                         name_of_case);

TEST_P(Section3Layer, UpdateAndFetchAppendsAndReturnsEverythingSoFarAndTheTotalLength) {
  const auto cache = make();
  const HostTensor two = tokens({1, 2}), one = tokens({3});
  ASSERT_OK(cache->layer(1).update_and_fetch(two, two).status());
  const LayerFetch fetched = cache->layer(1).update_and_fetch(one, one).value();
  EXPECT_EQ(values(fetched.key), (Floats{1, 2, 3}));
  EXPECT_EQ(values(fetched.value), (Floats{1, 2, 3}));
  EXPECT_EQ(shape_of(fetched.key), shaped(1, 1, 3, 1));
  EXPECT_EQ(fetched.length, 3);
  EXPECT_EQ(fetched.key.data, cache->get(1).value().key.data);  // no copy
  EXPECT_EQ(cache->seq_length(0).value(), 0);                   // the other layers stay
}

TEST_P(Section3Layer, TheMaskComesBackExactlyAsItWent) {
  const auto cache = make();
  LayerHandle layer = cache->layer(0);
  const HostTensor one = tokens({1});
  EXPECT_EQ(layer.update_and_fetch(one, one).value().mask.kind, MaskKind::kNone);
  EXPECT_EQ(layer.update_and_fetch(one, one, 1, Mask::causal()).value().mask.kind,
            MaskKind::kCausal);
  EXPECT_EQ(layer.update_and_fetch(one, one, {}, Mask::named("causal").value()).value().mask.kind,
            MaskKind::kCausal);
  const HostTensor additive = iota({1, 1, 1, 4});
  const Mask back = layer.update_and_fetch(one, one, 1, additive.view()).value().mask;
  EXPECT_EQ(back.kind, MaskKind::kAdditive);
  EXPECT_EQ(back.tensor.data, additive.view().data);
  EXPECT_EQ(shape_of(back.tensor), (Shape{1, 1, 1, 4}));
  EXPECT_EQ(Mask(TensorView()).kind, MaskKind::kNone);
}

TEST_P(Section3Layer, AMaskLengthOtherThanTheNumberOfNewTokensIsAnError) {
  const auto cache = make();
  const HostTensor two = tokens({1, 2});
  ASSERT_OK(cache->layer(0).update_and_fetch(two, two, 2).status());
  for (const std::int64_t wrong : {0, 1, 3, -1}) {
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument,
                           "mask_length: found " + std::to_string(wrong) +
                               ", expected none or the 2 new tokens of key",
                           cache->layer(0).update_and_fetch(two, two, wrong).status());
  }
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "key: found none",
                         cache->layer(0).update_and_fetch({}, two, 2).status());
}

TEST_P(Section3Layer, OffsetKeyValuesAndRewindConcernOneLayerAlone) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3}), 0));
  ASSERT_OK(put(*cache, tokens({4, 5}), 1));
  LayerHandle layer = cache->layer(1);
  EXPECT_EQ(layer.offset().value(), 2);
  ASSERT_OK(layer.rewind(1));
  EXPECT_EQ(layer.offset().value(), 1);
  EXPECT_EQ(values(layer.key_values().value().key), (Floats{4}));
  EXPECT_EQ(keys(*cache, 0), (Floats{1, 2, 3}));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange,
                         "n: found 2, expected at most the length of layer 1, 1", layer.rewind(2));
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument, "n: found -1", layer.rewind(-1));
  EXPECT_OK(layer.rewind(0));
}

TEST_P(Section3Layer, ALayerNeverPopulatedIsEmpty) {
  const auto cache = make();
  LayerHandle layer = cache->layer(2);
  EXPECT_EQ(layer.offset().value(), 0);
  EXPECT_EQ(layer.next_position().value(), 0);
  EXPECT_FALSE(layer.key_values().value().key.defined());
  EXPECT_EQ(layer.view().status().code(), StatusCode::kNotFound);
  EXPECT_OK(layer.rewind(0));
  EXPECT_EQ(layer.rewind(1).code(), StatusCode::kOutOfRange);
}

TEST_P(Section3Layer, OffsetCountsRowsAndNextPositionGoesOnAfterACrop) {
  const auto cache = make();
  ASSERT_OK(put(*cache, tokens({1, 2, 3, 4, 5})));
  ASSERT_OK(cache->crop(2));
  EXPECT_EQ(cache->layer(0).offset().value(), 2);
  EXPECT_EQ(cache->layer(0).next_position().value(), 5);
  const OwnedKvView view = cache->layer(0).view().value();
  EXPECT_EQ(view.get().parts[0].first_position[0], 3);
}

TEST_P(Section3Layer, ALayerOutsideTheCacheIsAnErrorOfEveryCall) {
  const auto cache = make(16, 4);
  const HostTensor one = tokens({1});
  for (const std::int64_t outside : {std::int64_t{-1}, std::int64_t{1} << 40}) {
    LayerHandle layer = cache->layer(outside);
    EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kOutOfRange, "layer_idx",
                           layer.update_and_fetch(one, one).status());
    EXPECT_EQ(layer.offset().status().code(), StatusCode::kOutOfRange);
    EXPECT_EQ(layer.next_position().status().code(), StatusCode::kOutOfRange);
    EXPECT_EQ(layer.key_values().status().code(), StatusCode::kOutOfRange);
    EXPECT_EQ(layer.view().status().code(), StatusCode::kOutOfRange);
    EXPECT_EQ(layer.rewind(0).code(), StatusCode::kOutOfRange);
  }
}

// --- Mask::named. ---

TEST(Section3Mask, CausalIsTheOnlyRuleWithAName) {
  EXPECT_EQ(Mask::named("causal").value().kind, MaskKind::kCausal);
  for (const char* name : {"", "full", "Causal", "causal "}) {
    const Status status = Mask::named(name).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(),
              std::string("mask: found \"") + name + "\", expected \"causal\" or a tensor");
  }
}

// --- FullCache. ---

std::vector<LayeredCase> dynamic_cases() {
  std::vector<LayeredCase> cases;
  for (const LayeredCase& c : all_layered_cases()) {
    if (c.kind == LayeredKind::kDynamic) cases.push_back(c);
  }
  return cases;
}

class Section3FullCache : public ::testing::TestWithParam<LayeredCase> {
 protected:
  FullCache make() const {
    CacheOptions options;
    options.layout = GetParam().layout;
    options.dtype = GetParam().dtype;
    options.reserve_tokens = 4;
    return FullCache::create(options).value();
  }
  HostTensor tokens(const std::vector<double>& list) const {
    return T(list, DType::kF32, GetParam().layout);
  }
};
INSTANTIATE_TEST_SUITE_P(Layered, Section3FullCache, ::testing::ValuesIn(dynamic_cases()),
                         name_of_case);

TEST_P(Section3FullCache, HasTheFaceOfALayer) {
  FullCache cache = make();
  EXPECT_EQ(cache.offset(), 0);
  EXPECT_FALSE(cache.key_values().key.defined());
  const HostTensor first = tokens({1, 2}), second = tokens({3});
  ASSERT_OK(cache.update_and_fetch(first, first, 2, Mask::causal()).status());
  const LayerFetch fetched = cache.update_and_fetch(second, second, {}, Mask::causal()).value();
  EXPECT_EQ(values(fetched.key), (Floats{1, 2, 3}));
  EXPECT_EQ(fetched.length, 3);
  EXPECT_EQ(fetched.mask.kind, MaskKind::kCausal);
  EXPECT_EQ(cache.offset(), 3);
  ASSERT_OK(cache.rewind(2));
  EXPECT_EQ(cache.offset(), 1);
  EXPECT_EQ(values(cache.key_values().value), (Floats{1}));
  EXPECT_ERROR_UNCHANGED(cache, StatusCode::kOutOfRange, "n: found 2", cache.rewind(2));
}

TEST_P(Section3FullCache, IsADynamicCacheOfOneLayer) {
  FullCache cache = make();
  EXPECT_EQ(cache.num_layers(), 1);
  EXPECT_EQ(cache.max_length(), std::nullopt);
  const HostTensor one = tokens({1});
  EXPECT_ERROR_UNCHANGED(cache, StatusCode::kOutOfRange, "layer_idx: found 1, expected 0 .. 0",
                         cache.update(one, one, 1).status());
  for (int i = 0; i < 40; ++i) ASSERT_OK(cache.update_and_fetch(one, one).status());
  EXPECT_EQ(cache.offset(), 40);  // far past reserve_tokens
  const FullCache copy = cache.clone().value();
  cache.reset();
  EXPECT_EQ(copy.offset(), 40);
  EXPECT_EQ(copy.seq_length(1).status().code(), StatusCode::kOutOfRange);
}

TEST(Section3FullCacheOptions, AreCheckedAsThoseOfADynamicCache) {
  CacheOptions options;
  options.reserve_tokens = 0;
  EXPECT_EQ(FullCache::create(options).status().message(),
            "reserve_tokens: found 0, expected at least 1");
}

}  // namespace
}  // namespace kvcache::testing
