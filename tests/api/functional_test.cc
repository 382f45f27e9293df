#include "kvcache/functional.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "support/layered.h"
#include "support/refusing_memory.h"
#include "support/tensors.h"

namespace kvcache::testing {
namespace {

namespace fn = functional;

fn::CacheState make(std::int64_t max_seq_len, MemoryResource* memory = nullptr,
                    std::int64_t num_layers = 2) {
  fn::InitOptions options;
  options.num_layers = num_layers;
  options.max_seq_len = max_seq_len;
  options.memory = memory;
  return fn::init(options).value();
}

Floats keys(const fn::CacheState& state, std::int64_t layer = 0) {
  return values(fn::get(state, layer).value().key);
}

TEST(Functional, NoStateIsRefusedByEveryFunctionAndCountsNothing) {
  const fn::CacheState none;
  EXPECT_EQ(none.position() + none.max_seq_len() + none.num_layers(), 0);
  EXPECT_EQ(none.nbytes() + none.reserved_bytes() + none.copied_bytes(), 0);
  EXPECT_EQ(fn::get(none, 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(fn::seq_length(none).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(fn::reset(none).status().code(), StatusCode::kInvalidArgument);
  HostTensor out(DType::kF32, {1, 1, 1});
  EXPECT_EQ(fn::build_cached_attention(1, 1, 0)
                .value()(T({1}), T({1}), T({1}), none, out.mutable_view())
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

TEST(Functional, BytesStoredAndHeldAreCounted) {
  RefusingMemory memory;
  fn::CacheState state = make(100, &memory);
  EXPECT_EQ(state.reserved_bytes(), 0);
  const fn::CacheState one = fn::update(state, 0, T({1, 2, 3}), T({1, 2, 3})).value().state;
  EXPECT_EQ(one.nbytes(), 3 * 2 * 4);
  EXPECT_EQ(one.reserved_bytes(), memory.committed());
  const fn::CacheState two = fn::update(state, 0, T({9}), T({9})).value().state;  // a branch
  EXPECT_EQ(two.nbytes(), 2 * 4);
  EXPECT_EQ(two.reserved_bytes(), memory.committed());
  EXPECT_EQ(one.reserved_bytes(), memory.committed());  // of the history
  EXPECT_EQ(two.copied_bytes(), 0);                     // it had no rows yet
}

TEST(Functional, RowsOfAnotherStateMayBeTheInputOfAnUpdate) {
  const fn::Updated one = fn::update(make(8), 0, T({1, 2}), T({3, 4})).value();
  const fn::Updated two = fn::update(one.state, 0, one.rows.key, one.rows.value).value();
  EXPECT_EQ(values(two.rows.key), (Floats{1, 2, 1, 2}));
  const fn::Updated branch = fn::update(one.state, 0, two.rows.key, two.rows.value).value();
  EXPECT_EQ(values(branch.rows.value), (Floats{3, 4, 3, 4, 3, 4}));
}

TEST(Functional, EveryRefusedCallOfTheMemoryLeavesTheHistoryAsItWas) {
  // Forward into a new layer, a branch, a reset with new memory, and attention that branches.
  using Operation = Status (*)(const fn::CacheState&, const fn::CacheState&);
  const Operation operations[] = {
      [](const fn::CacheState& s, const fn::CacheState&) {
        return fn::update(s, 1, T({5}), T({5})).status();
      },
      [](const fn::CacheState& s, const fn::CacheState&) {
        return fn::update(s, 0, T({5}), T({5})).status();
      },
      [](const fn::CacheState&, const fn::CacheState& empty) {
        return fn::update(empty, 0, T({5}), T({5})).status();
      },
      [](const fn::CacheState& s, const fn::CacheState&) {
        HostTensor out(DType::kF32, {1, 1, 1});
        return fn::build_cached_attention(1, 1, 0)
            .value()(T({1}), T({5}), T({5}), s, out.mutable_view())
            .status();
      },
  };
  for (const Operation operation : operations) {
    bool more = true;
    for (std::int64_t call = 1; more; ++call) {
      ASSERT_LT(call, 10);
      RefusingMemory memory;
      const fn::CacheState state =
          fn::update(make(16, &memory), 0, T({1, 2}), T({1, 2})).value().state;
      const fn::CacheState newer = fn::update(state, 0, T({3}), T({3})).value().state;
      const fn::CacheState empty = fn::reset(state).value();
      const std::int64_t committed = memory.committed(), regions = memory.regions();
      memory.refuse(call, true);
      const Status status = operation(state, empty);
      more = memory.refused();
      memory.refuse(0);
      EXPECT_EQ(status.code(), more ? StatusCode::kOutOfMemory : StatusCode::kOk);
      if (!more) break;
      EXPECT_EQ(memory.committed(), committed);
      EXPECT_EQ(memory.regions(), regions);
      EXPECT_EQ(state.reserved_bytes(), committed);
      EXPECT_EQ(state.copied_bytes(), 0);
      EXPECT_EQ(keys(state), (Floats{1, 2}));
      EXPECT_EQ(keys(newer), (Floats{1, 2, 3}));
      EXPECT_OK(operation(state, empty));
      EXPECT_EQ(fn::update(newer, 0, T({4}), T({4})).value().state.copied_bytes() % 16, 0);
    }
  }
}

TEST(Functional, AFailingAttentionThatBranchedGivesTheBufferBack) {
  RefusingMemory memory;
  const fn::CacheState state = fn::update(make(16, &memory), 0, T({1, 2}), T({1, 2})).value().state;
  const fn::CacheState newer = fn::update(state, 0, T({3}), T({3})).value().state;
  HostTensor wrong(DType::kF32, {1, 2, 1});
  const auto attention = fn::build_cached_attention(1, 1, 0).value();
  const std::int64_t committed = memory.committed();
  EXPECT_EQ(attention(T({1}), T({5}), T({5}), state, wrong.mutable_view()).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(memory.committed(), committed);
  EXPECT_EQ(newer.copied_bytes(), 0);
}

TEST(Functional, AttentionOverAStateGivesTheBitsOfTheWholePrefixEveryStep) {
  // Token by token through the states equals one prefill, row by row within float rounding.
  const std::int64_t length = 40;
  fn::InitOptions options;
  options.num_heads = 2;
  options.head_dim = 4;
  const auto attention = fn::build_cached_attention(4, 4, 0).value();
  HostTensor q(DType::kF32, {1, 4, length, 4}), k(DType::kF32, {1, 2, length, 4});
  for (std::int64_t i = 0; i < q.num_elements(); ++i) q.set(i, (i * 37 % 17 - 8) / 8.0);
  for (std::int64_t i = 0; i < k.num_elements(); ++i) k.set(i, (i * 23 % 19 - 9) / 9.0);
  HostTensor all(DType::kF32, {1, length, 16}), one(DType::kF32, {1, 1, 16});
  ASSERT_OK(attention(q, k, k, fn::init(options).value(), all.mutable_view()).status());
  const Floats expected = values(all);
  fn::CacheState state = fn::init(options).value();
  const auto token = [](const HostTensor& tensor, std::int64_t t) {
    TensorView view = tensor;
    view.data = static_cast<const float*>(view.data) + t * view.strides[2];
    view.shape[2] = 1;
    return view;
  };
  for (std::int64_t t = 0; t < length; ++t) {
    state = attention(token(q, t), token(k, t), token(k, t), state, one.mutable_view()).value();
    const Floats got = values(one);
    for (std::size_t i = 0; i < 16; ++i) {
      ASSERT_NEAR(got[i], expected[static_cast<std::size_t>(t) * 16 + i], 1e-5);
    }
  }
  EXPECT_EQ(state.copied_bytes(), 0);
}

TEST(Functional, StatesAreReadAndDestroyedOnThreadsWhileTheHistoryGoesOn) {
  constexpr std::int64_t kTokens = 300;
  fn::CacheState state = make(kTokens, nullptr, 1);
  std::vector<std::thread> readers;
  std::atomic<int> wrong{0};
  for (std::int64_t t = 0; t < kTokens; ++t) {
    const HostTensor next = T({static_cast<double>(t)});
    state = fn::update(state, 0, next, next).value().state;
    if (t % 50 != 49) continue;
    readers.emplace_back([held = state, &wrong]() mutable {
      const Floats rows = keys(held);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        if (rows[i] != static_cast<float>(i)) ++wrong;
      }
      held = {};
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Functional, ResetReusesTheMemoryOnceTheLastReaderOnAnotherThreadIsGone) {
  for (int round = 0; round < 20; ++round) {
    fn::CacheState state = fn::update(make(64, nullptr, 1), 0, T({1, 2}), T({1, 2})).value().state;
    const fn::CacheState empty = fn::reset(state).value();
    Floats seen;
    std::thread reader([held = std::move(state), &seen]() mutable {
      seen = keys(held);
      held = {};
    });
    state = {};
    const fn::CacheState fresh = fn::update(empty, 0, T({7}), T({7})).value().state;
    reader.join();
    EXPECT_EQ(seen, (Floats{1, 2}));  // whichever came first
    EXPECT_EQ(keys(fresh), (Floats{7}));
  }
}

}  // namespace
}  // namespace kvcache::testing
