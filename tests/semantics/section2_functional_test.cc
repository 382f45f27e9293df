// Semantics, section 2. Functional cache: one test per rule and per case, for every element type
// where rows are concerned.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kvcache/functional.h"
#include "support/layered.h"
#include "support/refusing_memory.h"
#include "support/tensors.h"

namespace kvcache::testing {
namespace {

namespace fn = functional;

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr StatusCode kRange = StatusCode::kOutOfRange;

class Section2 : public ::testing::TestWithParam<DType> {
 protected:
  fn::InitOptions options() const {
    fn::InitOptions options;
    options.dtype = GetParam();
    options.max_seq_len = 8;
    options.num_layers = 2;
    return options;
  }
  fn::CacheState make() const { return fn::init(options()).value(); }

  static fn::Updated put(const fn::CacheState& state, const std::vector<double>& list,
                         std::int64_t layer = 0) {
    return fn::update(state, layer, T(list), T(list)).value();
  }
  static Floats keys(const fn::CacheState& state, std::int64_t layer = 0) {
    return values(fn::get(state, layer).value().key);
  }
};
INSTANTIATE_TEST_SUITE_P(Functional, Section2,
                         ::testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

// --- init. ---

TEST_P(Section2, InitIsAnEmptyStateOfTheGivenSizes) {
  const fn::CacheState state = make();
  EXPECT_EQ(state.position(), 0);
  EXPECT_EQ(state.max_seq_len(), 8);
  EXPECT_EQ(state.num_layers(), 2);
  EXPECT_EQ(fn::seq_length(state).value(), 0);
  const KeyValueView rows = fn::get(state, 1).value();
  EXPECT_EQ(shape_of(rows.key), (Shape{1, 1, 0, 1}));
  EXPECT_EQ(shape_of(rows.value), (Shape{1, 1, 0, 1}));
  EXPECT_EQ(rows.key.dtype, GetParam());
}

TEST(Section2Init, MaxSeqLenIs2048AndTheTypeF32ByDefault) {
  const fn::CacheState state = fn::init({}).value();
  EXPECT_EQ(state.max_seq_len(), 2048);
  EXPECT_EQ(fn::get(state, 0).value().key.dtype, DType::kF32);
}

TEST(Section2Init, EverySizeIsAtLeastOne) {
  using Member = std::int64_t fn::InitOptions::*;
  const std::pair<Member, const char*> sizes[] = {
      {&fn::InitOptions::batch_size, "batch_size: found 0"},
      {&fn::InitOptions::num_layers, "num_layers: found 0"},
      {&fn::InitOptions::num_heads, "num_heads: found 0"},
      {&fn::InitOptions::head_dim, "head_dim: found 0"},
      {&fn::InitOptions::max_seq_len, "max_seq_len: found 0"},
  };
  for (const auto& [member, text] : sizes) {
    fn::InitOptions options;
    options.*member = 0;
    const Status status = fn::init(options).status();
    EXPECT_EQ(status.code(), kInvalid);
    EXPECT_EQ(status.message().find(text), 0u) << status.message();
    options.*member = -3;
    EXPECT_EQ(fn::init(options).status().code(), kInvalid);
  }
  fn::InitOptions options;
  options.dtype = DType::kI64;
  EXPECT_EQ(fn::init(options).status().message(), "dtype: found i64, expected f32, f16 or bf16");
  options = {};
  options.max_seq_len = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(fn::init(options).status().code(), kInvalid);
}

// --- update: a state is a value. ---

TEST_P(Section2, UpdateGivesANewStateAndRowsToDate) {
  const fn::CacheState empty = make();
  const fn::Updated two = put(empty, {1, 2});
  const fn::Updated three = put(two.state, {3});
  EXPECT_EQ(shape_of(three.rows.key), (Shape{1, 1, 3, 1}));
  EXPECT_EQ(values(three.rows.key), (Floats{1, 2, 3}));
  EXPECT_EQ(values(three.rows.value), (Floats{1, 2, 3}));
  EXPECT_EQ(three.rows.key.dtype, GetParam());
  EXPECT_EQ(fn::seq_length(three.state).value(), 3);
  EXPECT_EQ(three.state.position(), 3);
}

TEST_P(Section2, TheOldStateStaysReadableAsItWas) {
  const fn::CacheState empty = make();
  const fn::Updated two = put(empty, {1, 2});
  const fn::Updated three = put(two.state, {3});
  EXPECT_EQ(keys(empty), (Floats{}));
  EXPECT_EQ(keys(two.state), (Floats{1, 2}));
  EXPECT_EQ(values(two.rows.key), (Floats{1, 2}));
  EXPECT_EQ(keys(three.state), (Floats{1, 2, 3}));
}

TEST_P(Section2, LengthIsPerLayerAndPositionThatOfTheLongest) {
  fn::CacheState state = make();
  state = put(state, {1, 2, 3}, 1).state;
  state = put(state, {4}, 0).state;
  EXPECT_EQ(fn::seq_length(state, 0).value(), 1);
  EXPECT_EQ(fn::seq_length(state, 1).value(), 3);
  EXPECT_EQ(state.position(), 3);
}

TEST_P(Section2, ForwardFromTheNewestStateCopiesNothing) {
  fn::CacheState state = make();
  const void* where = nullptr;
  for (int i = 0; i < 8; ++i) {
    const fn::Updated next = put(state, {static_cast<double>(i)});
    EXPECT_TRUE(where == nullptr || next.rows.key.data == where);
    where = next.rows.key.data;
    state = next.state;
  }
  EXPECT_EQ(state.copied_bytes(), 0);
  EXPECT_EQ(keys(state), (Floats{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST_P(Section2, ABranchCopiesThatLayersRowsFirstCounted) {
  fn::CacheState state = put(make(), {1, 2}).state;
  state = put(state, {7, 8, 9}, 1).state;
  const fn::Updated one = put(state, {3});
  const fn::Updated other = put(state, {4});
  EXPECT_EQ(keys(one.state), (Floats{1, 2, 3}));
  EXPECT_EQ(keys(other.state), (Floats{1, 2, 4}));
  EXPECT_EQ(keys(state), (Floats{1, 2}));
  EXPECT_NE(one.rows.key.data, other.rows.key.data);
  const std::int64_t row = 2 * size_of(GetParam());  // K and V
  EXPECT_EQ(other.state.copied_bytes(), 2 * row);    // layer 1's rows stay shared
  EXPECT_EQ(fn::get(one.state, 1).value().key.data, fn::get(other.state, 1).value().key.data);
  // Each branch goes forward without a copy.
  const fn::CacheState both[] = {put(one.state, {5}).state, put(other.state, {6}).state};
  EXPECT_EQ(both[1].copied_bytes(), 2 * row);
  EXPECT_EQ(keys(both[0]), (Floats{1, 2, 3, 5}));
  EXPECT_EQ(keys(both[1]), (Floats{1, 2, 4, 6}));
}

TEST_P(Section2, ABranchAlsoCopiesWhereTheFirstUpdatesStateIsGone) {
  const fn::CacheState state = put(make(), {1, 2}).state;
  const KeyValueView rows = put(state, {3}).rows;  // its state is dropped, its rows stay valid
  const fn::Updated other = put(state, {4});
  EXPECT_EQ(values(rows.key), (Floats{1, 2, 3}));
  EXPECT_GT(other.state.copied_bytes(), 0);
}

TEST_P(Section2, ViewsStayValidWhileTheirStateOrOneThatWentOnFromItLives) {
  RefusingMemory memory;
  fn::InitOptions with_memory = options();
  with_memory.memory = &memory;
  KeyValueView first, second;
  fn::CacheState held, last;
  {
    const fn::CacheState start = put(fn::init(with_memory).value(), {1}).state;
    fn::Updated one = put(start, {2});
    first = one.rows;
    held = std::move(one.state);
    const fn::Updated branch = put(start, {3});
    second = branch.rows;
    last = put(branch.state, {4}, 1).state;
  }
  EXPECT_EQ(memory.regions(), 3);
  EXPECT_EQ(values(first.key), (Floats{1, 2}));
  EXPECT_EQ(values(second.value), (Floats{1, 3}));  // of a state that `last` went on from
  held = {};
  EXPECT_EQ(memory.regions(), 2);
  EXPECT_EQ(values(second.value), (Floats{1, 3}));
  last = {};
  EXPECT_EQ(memory.regions(), 0);
}

TEST_P(Section2, BranchesThatAreDroppedCostNoMemory) {
  RefusingMemory memory;
  fn::InitOptions with_memory = options();
  with_memory.memory = &memory;
  const fn::CacheState trunk = put(put(fn::init(with_memory).value(), {1, 2}).state, {5}, 1).state;
  const fn::CacheState ahead = put(trunk, {3}).state;
  const std::int64_t regions = memory.regions(), reserved = ahead.reserved_bytes();
  for (int i = 0; i < 20; ++i) {
    const fn::CacheState branch = put(put(trunk, {4.0 + i}).state, {9}).state;
    EXPECT_EQ(memory.regions(), regions + 1);
    EXPECT_EQ(keys(branch), (Floats{1, 2, 4.0f + static_cast<float>(i), 9}));
  }
  EXPECT_EQ(memory.regions(), regions);
  EXPECT_EQ(ahead.reserved_bytes(), reserved);
  EXPECT_EQ(memory.committed(), reserved);
  EXPECT_EQ(keys(ahead), (Floats{1, 2, 3}));
}

TEST_P(Section2, CapacityIsPerLayerAndPastItIsAnError) {
  fn::CacheState state = put(make(), {1, 2, 3, 4, 5, 6, 7}).state;
  const Status status = fn::update(state, 0, T({8, 9}), T({8, 9})).status();
  EXPECT_EQ(status.code(), kRange);
  EXPECT_EQ(status.message(),
            "k: found 2 new tokens after a length of 7, expected at most the capacity of 8");
  EXPECT_EQ(state.position(), 7);
  state = put(state, {8}).state;
  EXPECT_EQ(state.copied_bytes(), 0);  // the failed call claimed nothing
  EXPECT_EQ(fn::update(state, 0, T({9}), T({9})).status().code(), kRange);
  EXPECT_OK(fn::update(state, 1, T({9}), T({9})).status());  // the other layer has room
}

TEST_P(Section2, ShapesTypesAndLayersAreChecked) {
  const fn::CacheState state = put(make(), {1}).state;
  const auto message = [&](const TensorView& k, const TensorView& v, std::int64_t layer = 0) {
    return fn::update(state, layer, k, v).status().message();
  };
  EXPECT_EQ(message(iota({2, 1, 1, 1}), T({1})), "k: found [2, 1, 1, 1], expected [1, 1, *, 1]");
  EXPECT_EQ(message(T({1, 2}), T({1})), "v: found [1, 1, 1, 1], expected [1, 1, 2, 1]");
  EXPECT_NE(message(T({1}, DType::kI32), T({1})), "");
  EXPECT_EQ(message(T({1}), T({1}), 2), "layer: found 2, expected 0 .. 1");
  EXPECT_EQ(fn::get(state, -1).status().code(), kRange);
  EXPECT_EQ(fn::seq_length(state, 2).status().code(), kRange);
  EXPECT_EQ(fn::update({}, 0, T({1}), T({1})).status().message(),
            "state: found none, expected one of init or update");
}

TEST_P(Section2, ZeroNewTokensGiveTheSameState) {
  const fn::CacheState state = put(make(), {1, 2}).state;
  const HostTensor none = iota({1, 1, 0, 1});
  const fn::Updated same = fn::update(state, 0, none, none).value();
  EXPECT_EQ(values(same.rows.key), (Floats{1, 2}));
  EXPECT_EQ(keys(put(same.state, {3}).state), (Floats{1, 2, 3}));
  EXPECT_EQ(same.state.copied_bytes(), 0);
}

// --- reset. ---

TEST_P(Section2, ResetIsAnEmptyStateAndTheOldOneStays) {
  const fn::CacheState state = put(make(), {1, 2}).state;
  const fn::CacheState empty = fn::reset(state).value();
  EXPECT_EQ(empty.position(), 0);
  EXPECT_EQ(keys(empty), (Floats{}));
  EXPECT_EQ(empty.max_seq_len(), 8);
  const fn::Updated fresh = put(empty, {9});
  EXPECT_EQ(keys(fresh.state), (Floats{9}));
  EXPECT_EQ(keys(state), (Floats{1, 2}));
}

TEST_P(Section2, AResetStateReusesTheMemoryWhenNoOtherStateLives) {
  RefusingMemory memory;
  fn::InitOptions with_memory = options();
  with_memory.memory = &memory;
  fn::CacheState state = put(fn::init(with_memory).value(), {1, 2}).state;
  const void* where = fn::get(state, 0).value().key.data;
  const std::int64_t committed = memory.committed();
  const fn::CacheState empty = fn::reset(state).value();
  state = {};
  EXPECT_EQ(memory.committed(), committed);  // a hold on the allocation
  memory.refuse(1, true);                    // any new memory is refused from here
  const fn::Updated fresh = put(empty, {9});
  EXPECT_EQ(fresh.rows.key.data, where);
  EXPECT_EQ(keys(fresh.state), (Floats{9}));
  EXPECT_EQ(fresh.state.copied_bytes(), 0);
  memory.refuse(0);
}

TEST_P(Section2, AResetStateTakesNewMemoryWhileAnotherStateLives) {
  const fn::CacheState state = put(make(), {1, 2}).state;
  const KeyValueView rows = fn::get(state, 0).value();
  const fn::CacheState empty = fn::reset(state).value();
  const fn::Updated fresh = put(empty, {9});
  EXPECT_NE(fresh.rows.key.data, rows.key.data);
  EXPECT_EQ(values(rows.key), (Floats{1, 2}));
  // The state that came of it keeps its memory from a second update of the same empty state.
  const fn::Updated again = put(empty, {8});
  EXPECT_EQ(values(fresh.rows.key), (Floats{9}));
  EXPECT_EQ(values(again.rows.key), (Floats{8}));
}

TEST_P(Section2, ReuseKeepsOneBufferALayerAndReturnsTheBranches) {
  RefusingMemory memory;
  fn::InitOptions with_memory = options();
  with_memory.memory = &memory;
  fn::CacheState empty;
  {
    const fn::CacheState start = put(fn::init(with_memory).value(), {1}).state;
    const fn::CacheState one = put(start, {2}).state, other = put(start, {3}).state;
    empty = fn::reset(other).value();
    EXPECT_EQ(memory.regions(), 2);
  }
  EXPECT_EQ(memory.regions(), 1);  // that of `other`, which the empty state holds on to
  memory.refuse(1, true);
  const fn::CacheState fresh = put(empty, {4}).state;
  EXPECT_EQ(memory.regions(), 1);
  EXPECT_EQ(fresh.reserved_bytes(), memory.committed());
  memory.refuse(0);
}

// --- build_cached_attention. ---

class Section2Attention : public ::testing::Test {
 protected:
  static fn::CacheState state(std::int64_t heads, std::int64_t dim, std::int64_t layers = 1,
                              std::int64_t batch = 1) {
    fn::InitOptions options;
    options.batch_size = batch;
    options.num_layers = layers;
    options.num_heads = heads;
    options.head_dim = dim;
    options.max_seq_len = 8;
    return fn::init(options).value();
  }
  static void expect_near(const HostTensor& got, const Floats& expected) {
    const Floats flat = values(got);
    ASSERT_EQ(flat.size(), expected.size());
    for (std::size_t i = 0; i < flat.size(); ++i) EXPECT_NEAR(flat[i], expected[i], 1e-5) << i;
  }
  const double ln3_ = std::log(3.0);
};

TEST_F(Section2Attention, CaseHeadDimFour) {
  fn::CacheState cache = state(1, 4);
  cache =
      fn::update(cache, 0, tensor({1, 1, 1, 4}, {0, 0, 0, 0}), tensor({1, 1, 1, 4}, {4, 4, 4, 4}))
          .value()
          .state;
  const auto attention = fn::build_cached_attention(1, 4, 0).value();
  HostTensor out(DType::kF32, {1, 1, 4});
  const Result<fn::CacheState> next =
      attention(tensor({1, 1, 1, 4}, {2, 0, 0, 0}), tensor({1, 1, 1, 4}, {ln3_, 0, 0, 0}),
                tensor({1, 1, 1, 4}, {8, 8, 8, 8}), cache, out.mutable_view());
  ASSERT_OK(next.status());
  expect_near(out, {7, 7, 7, 7});
  EXPECT_EQ(next->position(), 2);
  EXPECT_EQ(cache.position(), 1);
}

TEST_F(Section2Attention, CaseTwoTokenPrefillCausalAndBidirectional) {
  for (const bool causal : {true, false}) {
    const auto attention = fn::build_cached_attention(1, 1, 0, causal).value();
    HostTensor out(DType::kF32, {1, 2, 1});
    ASSERT_OK(
        attention(T({1, 1}), T({0, ln3_}), T({4, 8}), state(1, 1), out.mutable_view()).status());
    expect_near(out, causal ? Floats{4, 7} : Floats{7, 7});
  }
}

TEST_F(Section2Attention, CaseTwoLayersOneTokenEach) {
  fn::CacheState cache = state(1, 1, 2);
  HostTensor out(DType::kF32, {1, 1, 1});
  for (const std::int64_t layer : {0, 1}) {
    const auto attention = fn::cached_attention(1, 1, layer).value();
    const HostTensor v = T({layer == 0 ? 4.0 : 8.0});
    cache = attention(T({1}), T({1}), v, cache, out.mutable_view()).value();
  }
  expect_near(out, {8});  // layer 1's own token
  EXPECT_EQ(fn::seq_length(cache, 0).value(), 1);
  EXPECT_EQ(fn::seq_length(cache, 1).value(), 1);
}

TEST_F(Section2Attention, HeadsAreMergedHeadMajorAndGroupedQueriesShareTheirHead) {
  // Four query heads over two of K and V: heads 0, 1 see [0, ln 3], heads 2, 3 see [ln 3, 0].
  const auto attention = fn::build_cached_attention(4, 1, 0).value();
  HostTensor out(DType::kF32, {1, 2, 4});
  const HostTensor q = tensor({1, 4, 2, 1}, {1, 1, 1, 1, 1, 1, 1, 1});
  const HostTensor k = tensor({1, 2, 2, 1}, {0, ln3_, ln3_, 0});
  const HostTensor v = tensor({1, 2, 2, 1}, {4, 8, 4, 8});
  ASSERT_OK(attention(q, k, v, state(2, 1), out.mutable_view()).status());
  expect_near(out, {4, 4, 4, 4, 7, 7, 5, 5});  // [query][head]
}

TEST_F(Section2Attention, SequenceFirstGivesTheSameNumbers) {
  fn::InitOptions options;
  options.num_heads = 2;
  options.head_dim = 3;
  const auto attention = fn::build_cached_attention(4, 3, 0).value();
  HostTensor by_head(DType::kF32, {1, 5, 12}), by_token(DType::kF32, {1, 5, 12});
  const HostTensor q = iota({1, 5, 4, 3}), k = iota({1, 5, 2, 3}, DType::kF32, -9);
  const auto turned = [](TensorView view) {
    std::swap(view.shape[1], view.shape[2]);
    std::swap(view.strides[1], view.strides[2]);
    return view;
  };
  const fn::CacheState first = fn::init(options).value();
  ASSERT_OK(attention(turned(q), turned(k), turned(k), first, by_head.mutable_view()).status());
  options.layout = Layout::kNHD;
  const fn::CacheState second = fn::init(options).value();
  const fn::CacheState after = attention(q, k, k, second, by_token.mutable_view()).value();
  EXPECT_EQ(values(by_head), values(by_token));
  EXPECT_EQ(shape_of(fn::get(after, 0).value().key), (Shape{1, 5, 2, 3}));
  EXPECT_EQ(values(fn::get(after, 0).value().key), values(k));
  EXPECT_EQ(shape_of(fn::get(second, 0).value().key), (Shape{1, 0, 2, 3}));
}

TEST_F(Section2Attention, OutMayBeOfAnyStrides) {
  const auto attention = fn::build_cached_attention(2, 2, 0).value();
  const HostTensor q = iota({1, 2, 1, 2}), v = tensor({1, 1, 1, 2}, {3, 5});
  HostTensor storage(DType::kF32, {1, 1, 8});
  MutableTensorView every_other = storage.mutable_view();
  every_other.shape[2] = 4;
  every_other.strides[2] = 2;
  ASSERT_OK(attention(q, v, v, state(1, 2), every_other).status());
  expect_near(storage, {3, 0, 5, 0, 3, 0, 5, 0});
}

TEST_F(Section2Attention, AFailingCallClaimsNothing) {
  fn::CacheState cache =
      fn::update(state(2, 1), 0, iota({1, 2, 1, 1}), iota({1, 2, 1, 1})).value().state;
  const auto attention = fn::build_cached_attention(2, 1, 0).value();
  const HostTensor one = iota({1, 2, 1, 1}), wide = iota({1, 4, 1, 1});
  HostTensor out(DType::kF32, {1, 1, 2}), wrong(DType::kF32, {1, 2, 1});
  const auto refused = [&](const auto& call, const TensorView& q, const TensorView& k,
                           const MutableTensorView& to, const char* text) {
    const Status status = call(q, k, k, cache, to).status();
    EXPECT_EQ(status.code(), kInvalid);
    EXPECT_EQ(status.message().find(text), 0u) << status.message();
  };
  refused(attention, wide, one, out.mutable_view(), "q: found");
  refused(attention, one, wide, out.mutable_view(), "k: found");
  refused(attention, one, one, wrong.mutable_view(), "out: found");
  refused(attention, one, one, {}, "out: found none");
  refused(fn::build_cached_attention(3, 1, 0).value(), one, one, out.mutable_view(),
          "state: found 2 heads of size 1");
  refused(fn::build_cached_attention(2, 4, 0).value(), one, one, out.mutable_view(),
          "state: found 2 heads of size 1");
  EXPECT_EQ(fn::build_cached_attention(2, 1, 7)
                .value()(one, one, one, cache, out.mutable_view())
                .status()
                .code(),
            kRange);
  cache = attention(one, one, one, cache, out.mutable_view()).value();
  EXPECT_EQ(cache.copied_bytes(), 0);  // still forward
}

TEST_F(Section2Attention, SizesAreChecked) {
  EXPECT_EQ(fn::build_cached_attention(0, 1, 0).status().code(), kInvalid);
  EXPECT_EQ(fn::build_cached_attention(1, 0, 0).status().code(), kInvalid);
  EXPECT_EQ(fn::build_cached_attention(1, 1, -1).status().code(), kRange);
}

}  // namespace
}  // namespace kvcache::testing
