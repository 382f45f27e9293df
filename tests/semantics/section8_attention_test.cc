// docs: semantics, section 8, rules 3 and 4: attention over layers that drop rows, and by chunks.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kvcache/attention.h"
#include "kvcache/backend.h"
#include "support/backends.h"
#include "support/kv_fixture.h"
#include "support/paged.h"
#include "support/slow.h"

namespace kvcache::testing {
namespace {

AttentionOptions options_of(const Life& life, const std::string& backend) {
  AttentionOptions options;
  options.window = static_cast<std::int32_t>(life.window);
  options.sink_tokens = life.sink_tokens;
  options.chunk = static_cast<std::int32_t>(life.chunk);
  options.backend = backend.c_str();
  return options;
}

class Section8Attention : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, Section8Attention, ::testing::ValuesIn(available_backends()),
                         [](const auto& backend) { return backend.param; });

HostTensor random_rows(std::mt19937& rng, DType dtype, const Counts& shape) {
  HostTensor rows(dtype, shape);
  std::normal_distribution<double> normal;
  for (std::int64_t i = 0; i < rows.num_elements(); ++i) rows.set(i, normal(rng));
  return rows;
}

// Two sequences go through a layer that keeps all rows and one of each of `lives`, and every step
// is attended to in all of them.
void expect_equal_to_full_rows(const std::vector<Life>& lives, DType dtype, std::int64_t page_size,
                               std::int64_t rewind_tokens, const std::string& backend,
                               bool reproducible = false) {
  CacheConfig config;
  config.layers = {LayerSpec::kv(2, 16, 24, dtype)};
  for (const Life& life : lives) config.layers.push_back(config.layers[0].living(life));
  config.page_size = page_size;
  config.num_pages = 3000 / page_size + 10;
  config.rewind_tokens = rewind_tokens;
  PagedCache cache = PagedCache::create(config).value();
  std::vector<SequenceId> seqs = {cache.open().value(), cache.open().value()};
  std::mt19937 rng(5);
  for (const std::int32_t count : {40, 1, 3, 9, 1, 300, 2, 1, 600, 1, 17, 8}) {
    const std::vector<Append> appends = {{seqs[0], count}, {seqs[1], 1}};
    PagedCache::Step step = cache.reserve(appends).value();
    const HostTensor k = random_rows(rng, dtype, {count + 1, 2, 16});
    const HostTensor v = random_rows(rng, dtype, {count + 1, 2, 24});
    const HostTensor q = random_rows(rng, DType::kF32, {count + 1, 4, 16});
    const std::int32_t indptr[] = {0, count, count + 1};
    ASSERT_OK(cache.write(step, 0, k, v));
    for (std::size_t i = 0; i < lives.size(); ++i) {
      AttentionOptions options = options_of(lives[i], backend);
      options.reproducible = reproducible;
      const auto dropping = static_cast<std::int64_t>(i + 1);
      ASSERT_OK(cache.write(step, dropping, k, v));
      std::vector<std::vector<float>> results;
      for (const std::int64_t layer : {std::int64_t{0}, dropping}) {
        const OwnedKvView view = cache.view(step, layer).value();
        HostTensor out(DType::kF32, {count + 1, 4, 24}), lse(DType::kF32, {count + 1, 4});
        ASSERT_OK(attend(q, indptr, view, out.mutable_view(), lse.mutable_view(), options));
        results.push_back(values(out));
        results.push_back(values(lse));
      }
      ASSERT_EQ(results[0], results[2]);
      ASSERT_EQ(results[1], results[3]);
    }
    ASSERT_OK(cache.commit(step));
    if (rewind_tokens > 0 && count > 1) {
      ASSERT_OK(cache.rewind(seqs[0], std::min<std::int64_t>(rewind_tokens, count)));
    }
  }
}

TEST_P(Section8Attention, IsThatOverFullRowsUnderTheSameWindowToTheBit) {
  for (const std::int64_t page_size :
       unless_slow<std::vector<std::int64_t>>({1, 5, 16, 64}, {5, 16})) {
    for (const Life& life :
         {Life{1}, Life{40}, Life{100, 0, 3}, Life{513, 0, 70}, Life{0, 33}, Life{0, 512}}) {
      expect_equal_to_full_rows({life}, page_size == 5 ? DType::kF32 : DType::kBF16, page_size,
                                page_size == 16 ? 6 : 0, GetParam());
    }
  }
}

TEST_P(Section8Attention, IsSoInMixturesAndOnEveryPath) {
  const std::vector<Life> lives = {Life{7}, Life{64, 0, 9}, Life{0, 48}, Life{600, 0, 1}};
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool reproducible : {false, true}) {
      if (kSlow && reproducible != (dtype == DType::kBF16)) continue;
      expect_equal_to_full_rows(lives, dtype, dtype == DType::kF16 ? 3 : 16, reproducible ? 5 : 0,
                                GetParam(), reproducible);
    }
  }
}

// One query at the last row of K = 0, V = 1, 2, 4 ..: the sum of what it sees, times their number.
double seen_sum(std::int32_t length, std::int32_t hidden, const AttentionOptions& options,
                std::int32_t query_row) {
  KvRowsData data({query_row + 1}, 1, 1, 1);
  for (std::int32_t row = 0; row <= query_row && row < length; ++row) {
    *data.v_row(0, row, 0) = static_cast<float>(1 << row);
  }
  KvStorageOptions storage;
  storage.first_visible = {hidden};
  const KvStorage stored(data, storage);
  const HostTensor q(DType::kF32, {1, 1, 1});
  HostTensor out(DType::kF32, {1, 1, 1}), lse(DType::kF32, {1, 1});
  const std::int32_t indptr[] = {0, 1};
  EXPECT_OK(attend(q, indptr, stored.view(), out.mutable_view(), lse.mutable_view(), options));
  return std::round(values(out)[0] * std::exp(values(lse)[0]));
}

TEST_P(Section8Attention, AChunkIsCountedFromTheFirstVisiblePosition) {
  AttentionOptions options;
  options.chunk = 4;
  options.backend = GetParam().c_str();
  EXPECT_EQ(seen_sum(20, 0, options, 3), 1 + 2 + 4 + 8);
  EXPECT_EQ(seen_sum(20, 0, options, 4), 16);
  EXPECT_EQ(seen_sum(20, 0, options, 5), 16 + 32);
  EXPECT_EQ(seen_sum(20, 3, options, 5), 8 + 16 + 32);  // a chunk of 3 .. 6
  EXPECT_EQ(seen_sum(20, 3, options, 6), 8 + 16 + 32 + 64);
  EXPECT_EQ(seen_sum(20, 3, options, 7), 128);
  options.causal = false;
  EXPECT_EQ(seen_sum(20, 0, options, 5), 16 + 32);
}

TEST_P(Section8Attention, APositionBeforeZeroIsInAChunkOfItsOwn) {
  KvRowsData data({2}, 1, 1, 1);
  *data.v_row(0, 0, 0) = 5;
  *data.v_row(0, 1, 0) = 7;
  KvStorageOptions storage;
  storage.positions = {{-1, 0}};
  const KvStorage stored(data, storage);
  AttentionOptions options;
  options.chunk = 4;
  options.backend = GetParam().c_str();
  const HostTensor q(DType::kF32, {1, 1, 1});
  HostTensor out(DType::kF32, {1, 1, 1});
  const std::int32_t indptr[] = {0, 1};
  EXPECT_OK(attend(q, indptr, stored.view(), out.mutable_view(), {}, options));
  EXPECT_EQ(values(out)[0], 7);
}

TEST(Section8Attention, AViewSaysHowFarACallMaySee) {
  CacheConfig config = PagedFixture::config(Layout::kHND, DType::kF32, 16, 2, 0);
  config.layers = {paged_spec().living({3, 0, 1}), paged_spec().living({0, 4})};
  PagedFixture f(config);
  const SequenceId a = f.open();
  for (int n = 0; n < 7; ++n) ASSERT_OK(f.append(a, {double(n)}));
  auto step = f.reserve(a, 1).value();
  ASSERT_OK(f.write(step, {7}));
  const auto message = [](const OwnedKvView& view, std::int32_t window, std::int32_t sinks,
                          std::int32_t chunk) {
    AttentionOptions options;
    options.window = window;
    options.sink_tokens = sinks;
    options.chunk = chunk;
    AttentionPlan plan;
    return plan.plan(view, std::vector<std::int32_t>{0, 1}, 2, options).message();
  };
  const OwnedKvView windowed = f.cache.view(step, 0).value();
  EXPECT_EQ(message(windowed, 3, 1, 0), "");
  EXPECT_EQ(message(windowed, 2, 0, 0), "");
  EXPECT_EQ(message(windowed, 4, 1, 0),
            "options.window: found 4, expected 1 .. 3, as the view's rows were kept");
  EXPECT_EQ(message(windowed, 0, 0, 0),
            "options.window: found 0, expected 1 .. 3, as the view's rows were kept");
  EXPECT_EQ(message(windowed, 3, 2, 0),
            "options.sink_tokens: found 2, expected at most 1, as the view's rows were kept");
  const OwnedKvView chunked = f.cache.view(step, 1).value();
  EXPECT_EQ(message(chunked, 0, 0, 4), "");
  EXPECT_EQ(message(chunked, 0, 0, 5),
            "options.chunk: found 5, expected 1 .. 4, as the view's rows were kept");
  EXPECT_EQ(message(chunked, 3, 0, 0),
            "options.chunk: found 0, expected 1 .. 4, as the view's rows were kept");

  // The newest committed row has lost the oldest that it saw, whatever the page size.
  ASSERT_OK(f.cache.rollback(step));
  const std::vector<SequenceId> seqs = {a};
  const OwnedKvView committed = f.cache.view(0, seqs).value();
  EXPECT_EQ(message(committed, 2, 0, 0), "");
  EXPECT_EQ(message(committed, 3, 0, 0),
            "kv.parts[0].first_held[0]: found 5, expected at most 4, which a query sees");
}

// A chunk that ends within a page, and a window of one: the page of the last rows is gone too.
TEST_P(Section8Attention, ASequenceThatHoldsNothingOfItsLastPageMayHaveNoQuery) {
  for (const Life& life : {Life{0, 3}, Life{1}, Life{1, 0, 1}}) {
    CacheConfig config = PagedFixture::config(Layout::kHND, DType::kF32, 16, 2, 0);
    config.layers = {paged_spec().living(life)};
    PagedFixture f(config);
    const SequenceId a = f.open(), b = f.open();
    ASSERT_OK(f.append(a, {1, 2, 3}));
    ASSERT_OK(f.append(b, {4, 5, 6, 7}));
    const std::vector<Append> appends = {{a, 0}, {b, 1}};
    PagedCache::Step step = f.cache.reserve(appends).value();
    ASSERT_OK(f.write(step, {8}));
    const HostTensor q(DType::kF32, {1, 2, 2});
    HostTensor out(DType::kF32, {1, 2, 1});
    const std::int32_t indptr[] = {0, 0, 1};
    EXPECT_OK(attend(q, indptr, f.cache.view(step, 0).value(), out.mutable_view(), {},
                     options_of(life, GetParam())));
    const double seen = life.chunk > 0 ? 7.5 : life.sink_tokens > 0 ? 6 : 8;
    EXPECT_EQ(values(out)[0], element(seen, 0, 0, 0, true));
    ASSERT_OK(f.cache.commit(step));
    const std::int32_t nobody[] = {0, 0, 0};
    AttentionPlan plan;
    EXPECT_OK(plan.plan(f.cache.view(0, std::vector<SequenceId>{a, b}).value(), nobody, 2,
                        options_of(life, GetParam())));
  }
}

}  // namespace
}  // namespace kvcache::testing
