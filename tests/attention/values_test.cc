// Every backend against the definition: random calls over all options, and values that hurt.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "support/random_attention.h"
#include "support/slow.h"

namespace kvcache::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void compare(const AttentionCase& c, double tolerance = 1e-5) {
  const Attended expected = c.run("reference");
  // A score has the error of a float of its size, and so has its weight, relatively.
  float largest = 0;
  for (const float lse : expected.lse) {
    if (std::isfinite(lse)) largest = std::max(largest, std::abs(lse));
  }
  tolerance += 4 * static_cast<double>(std::numeric_limits<float>::epsilon() * largest);
  for (const std::string& backend : backend_names(false)) {
    SCOPED_TRACE(backend + ": " + describe(c));
    if (c.rounds(backend)) {
      // One key alone bears the whole rounding of its score.
      expect_close(c.run(backend), expected, std::max(tolerance, 5e-3), 3e-2);
    } else {
      expect_close(c.run(backend), expected, tolerance);
    }
  }
}

TEST(AttentionRandom, EveryBackendAgreesWithTheDefinition) {
  for (std::uint32_t seed = 1; seed <= unless_slow(80u, 20u) && !::testing::Test::HasFailure();
       ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    compare(random_case(seed));
  }
}

// KVCACHE_SOAK_SECONDS: how long; new cases every time.
TEST(AttentionSoak, EveryBackendAgreesWithTheDefinition) {
  const char* text = std::getenv("KVCACHE_SOAK_SECONDS");
  const double seconds = text == nullptr ? 0.2 : std::atof(text);
  const auto begin = std::chrono::steady_clock::now();
  std::uint32_t seed = std::random_device()();
  do {
    ++seed;
    SCOPED_TRACE("seed " + std::to_string(seed));
    compare(random_case(seed));
  } while (!::testing::Test::HasFailure() &&
           std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() <
               seconds);
}

class AttentionValues : public ::testing::Test {
 protected:
  // One sequence, 4 query heads over 2, dims 64 and 48, some queries.
  static AttentionCase plain(std::int32_t length, std::int32_t queries, std::uint32_t seed = 5) {
    AttentionCase c;
    c.data = KvRowsData({length}, 2, 64, 48);
    c.num_heads = 4;
    c.queries = {queries};
    std::mt19937 rng(seed);
    c.randomize(rng);
    return c;
  }
};

TEST_F(AttentionValues, LengthsAroundEveryEdge) {
  for (std::int32_t length :
       {1, 2, 15, 16, 17, 63, 64, 65, 511, 512, 513, 575, 577, 1023, 1024, 1025}) {
    for (std::int32_t queries : {1, 2, 30}) compare(plain(length, queries));
  }
}

TEST_F(AttentionValues, LargeScoresDoNotOverflow) {
  AttentionCase c = plain(600, 3);
  for (float& x : c.data.k[0]) x *= 100;
  // A score of 1e4 has an error of 1e-3 in float32, and so has its weight.
  compare(c, 2e-2);
}

TEST_F(AttentionValues, EqualScoresAverage) {
  AttentionCase c = plain(600, 3);
  for (float& x : c.data.k[0]) x = 0.25f;
  compare(c);
}

TEST_F(AttentionValues, OneKeyThatOutweighsAll) {
  for (std::int64_t at : {0, 63, 64, 300, 511, 512, 599}) {
    AttentionCase c = plain(600, 1);
    for (std::int64_t head = 0; head < 2; ++head) {
      for (int d = 0; d < 64; ++d) c.data.k_row(0, at, head)[d] = 50 * c.q[head * 2 * 64 + d];
    }
    compare(c);
  }
}

TEST_F(AttentionValues, DenormalKeysAndValues) {
  AttentionCase c = plain(130, 2);
  for (float& x : c.data.k[0]) x *= 1e-41f;
  for (std::size_t i = 0; i < c.data.v[0].size(); i += 2) c.data.v[0][i] *= 1e-41f;
  compare(c);
}

TEST_F(AttentionValues, ScoresFarApart) {
  AttentionCase c = plain(600, 2);
  c.alibi_slopes = {1, 10, 100, 0.001f};
  compare(c);
}

TEST_F(AttentionValues, RowsMaskedOutGiveZero) {
  AttentionCase c = plain(600, 12);
  c.has_mask = true;
  c.mask = HostTensor(DType::kF32, {1, 1, 12, 600});
  for (std::int64_t row : {0, 3, 11}) {
    for (int key = 0; key < 600; ++key) c.mask.set(row * 600 + key, -kInfinity);
  }
  compare(c);
  for (const std::string& backend : backend_names(true)) {
    const Attended found = c.run(backend);
    for (std::int64_t row : {0, 3, 11}) {
      for (int head = 0; head < 4; ++head) {
        EXPECT_EQ(found.lse[row * 4 + head], -kInfinity);
        for (int d = 0; d < 48; ++d) EXPECT_EQ(found.out[(row * 4 + head) * 48 + d], 0);
      }
    }
  }
}

TEST_F(AttentionValues, ANaNReachesOnlyTheQueriesThatSeeIt) {
  for (const float poison : {kNaN, kInfinity, -kInfinity}) {
    for (const bool in_key : {true, false}) {
      AttentionCase c = plain(600, 40);
      const std::int64_t row = 580;  // query 20's own
      float* at = in_key ? c.data.k_row(0, row, 1) : c.data.v_row(0, row, 1);
      at[7] = poison;
      compare(c);
      for (const std::string& backend : backend_names(true)) {
        const Attended found = c.run(backend);
        for (int query = 0; query < 20; ++query) {
          for (int i = 0; i < 4 * 48; ++i) {
            ASSERT_TRUE(std::isfinite(found.out[query * 4 * 48 + i])) << backend;
          }
        }
        for (int query = 0; query < 40; ++query) {
          for (int i = 0; i < 2 * 48; ++i) {  // KV head 0
            ASSERT_TRUE(std::isfinite(found.out[query * 4 * 48 + i])) << backend;
          }
        }
      }
    }
  }
}

TEST_F(AttentionValues, ANaNBehindAMaskOrAWindowIsUnseen) {
  AttentionCase c = plain(600, 10);
  c.has_mask = true;
  c.mask = HostTensor(DType::kF32, {1, 1, 10, 600});
  for (std::int64_t row : {100, 570}) {
    for (int query = 0; query < 10; ++query) c.mask.set(query * 600 + row, -kInfinity);
    c.data.k_row(0, row, 0)[3] = kNaN;
    c.data.v_row(0, row, 1)[5] = kNaN;
  }
  c.options.window = 100;
  c.options.sink_tokens = 3;
  c.data.k_row(0, 4, 0)[0] = kInfinity;
  c.data.v_row(0, 480, 0)[0] = kNaN;
  compare(c);
  for (const std::string& backend : backend_names(true)) {
    for (float x : c.run(backend).out) ASSERT_TRUE(std::isfinite(x)) << backend;
  }
}

TEST_F(AttentionValues, ANaNQueryReachesOnlyItself) {
  AttentionCase c = plain(600, 40);
  c.q[(7 * 4 + 2) * 64 + 5] = kNaN;
  compare(c);
}

TEST_F(AttentionValues, SixteenBitOutputsAreRounded) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    AttentionCase c = plain(200, 3);
    c.out_dtype = dtype;
    compare(c, dtype == DType::kF16 ? 5e-4 : 4e-3);
  }
}

TEST_F(AttentionValues, StridedQueriesAndOutputs) {
  const AttentionCase c = plain(200, 3);
  const KvStorage stored(c.data);
  const Attended expected = c.run("reference");
  for (const std::string& backend : backend_names(true)) {
    // [total_q, num_heads, dim] with dim outermost in memory.
    HostTensor q(DType::kF32, {64, 3, 4}), out(DType::kF32, {48, 3, 4}), lse(DType::kF32, {4, 3});
    for (int i = 0; i < 12; ++i) {
      for (int d = 0; d < 64; ++d) q.set(d * 12 + i, c.q[i * 64 + d]);
    }
    const auto turned = [](auto view, std::int64_t dim) {
      view.shape[0] = 3, view.shape[1] = 4, view.shape[2] = dim;
      view.strides[0] = 4, view.strides[1] = 1, view.strides[2] = 12;
      return view;
    };
    MutableTensorView lse_view = lse.mutable_view();
    std::swap(lse_view.shape[0], lse_view.shape[1]);
    std::swap(lse_view.strides[0], lse_view.strides[1]);
    const std::vector<std::int32_t> indptr = c.qo_indptr();
    const AttentionOptions options = c.options_for(backend);
    internal::Plan plan;
    ASSERT_TRUE(plan.plan(stored.view(), indptr, 4, options, {}).ok());
    ASSERT_TRUE(plan.run(turned(q.view(), 64), stored.view(), turned(out.mutable_view(), 48),
                         lse_view, options, {})
                    .ok());
    Attended found{values(turned(out.view(), 48)), values(lse_view)};
    expect_close(found, expected);
  }
}

}  // namespace
}  // namespace kvcache::testing
