// Coded rows in the layered caches: what is stored are the codes of what was given, whatever
// happens to the rows; decoded copies are what is handed out; attention reads the codes.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kvcache/attention.h"
#include "kvcache/batching_cache.h"
#include "kvcache/full_cache.h"
#include "kvcache/memory_plan.h"
#include "support/coded.h"
#include "support/layered.h"

namespace kvcache::testing {
namespace {

constexpr std::int64_t kBatch = 2, kHeads = 3, kDim = 64;

struct CodedCase {
  std::string name;
  RowFormat k, v;
  LayeredKind kind;
  Layout layout;
};

std::vector<CodedCase> all_cases() {
  std::vector<CodedCase> cases;
  for (const LayeredKind kind : {LayeredKind::kDynamic, LayeredKind::kStatic}) {
    for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
      const std::string in =
          std::string(kind == LayeredKind::kDynamic ? "dynamic_" : "static_") + name_of(layout);
      for (const FormCase& form : coded_forms()) {
        cases.push_back({form.name + "_" + in, form.format, form.format, kind, layout});
      }
      cases.push_back(
          {"int8_and_lm4_" + in, coded(RowFormat::kInt8), coded(RowFormat::kLm4), kind, layout});
      cases.push_back(
          {"plain_and_int4_" + in, plain(DType::kF32), coded(RowFormat::kInt4), kind, layout});
    }
  }
  return cases;
}

// The elements of one token's row of a head, of keys or values.
std::vector<float> row_of(std::int64_t token, std::int64_t batch, std::int64_t head, bool value) {
  return internal::normal_row(
      kDim, static_cast<std::uint32_t>(((token * kBatch + batch) * kHeads + head) * 2 + value));
}

// Rows of tokens, [B, H, T, D] in the layout: as given, or as their form leaves them.
HostTensor rows_of(const std::vector<std::int64_t>& tokens, bool value, Layout layout,
                   const RowFormat* stored = nullptr,
                   const std::vector<std::int64_t>& batch = {0, 1}) {
  const auto b = static_cast<std::int64_t>(batch.size());
  const auto t = static_cast<std::int64_t>(tokens.size());
  const bool head_first = layout == Layout::kHND;
  HostTensor rows(DType::kF32, head_first ? Shape{b, kHeads, t, kDim} : Shape{b, t, kHeads, kDim});
  for (std::int64_t i = 0; i < b; ++i) {
    for (std::int64_t head = 0; head < kHeads; ++head) {
      for (std::int64_t j = 0; j < t; ++j) {
        const std::int64_t token = tokens[std::size_t(j)];
        std::vector<float> row(kDim, 0.0f);  // of a token that never was
        if (token >= 0) row = row_of(token, batch[std::size_t(i)], head, value);
        if (token >= 0 && stored != nullptr) row = coded_and_back(*stored, row.data(), kDim);
        const std::int64_t at =
            (head_first ? (i * kHeads + head) * t + j : (i * t + j) * kHeads + head) * kDim;
        for (std::int64_t d = 0; d < kDim; ++d) rows.set(at + d, row[std::size_t(d)]);
      }
    }
  }
  return rows;
}

class LayeredCoded : public ::testing::TestWithParam<CodedCase> {
 protected:
  CacheOptions options() const {
    CacheOptions options;
    options.keys = GetParam().k;
    options.values = GetParam().v;
    options.layout = GetParam().layout;
    options.reserve_tokens = 4;  // growth happens early
    return options;
  }
  std::unique_ptr<Cache> make() const { return make_layered(GetParam().kind, options(), 40, 2); }
  Status append(Cache& cache, const std::vector<std::int64_t>& tokens,
                const std::vector<std::int64_t>& batch = {0, 1}) const {
    return cache.append(rows_of(tokens, false, GetParam().layout, nullptr, batch),
                        rows_of(tokens, true, GetParam().layout, nullptr, batch));
  }
  // The cache holds the codes of these tokens, of these batch rows, and of no others.
  void expect(const Cache& cache, const std::vector<std::int64_t>& tokens,
              const std::vector<std::int64_t>& batch = {0, 1}) const {
    const KeyValueView all = cache.get(0).value();
    EXPECT_EQ(values(all.key),
              values(rows_of(tokens, false, GetParam().layout, &GetParam().k, batch)));
    EXPECT_EQ(values(all.value),
              values(rows_of(tokens, true, GetParam().layout, &GetParam().v, batch)));
  }
  std::int64_t coded_buffers() const { return GetParam().k.is_coded() + GetParam().v.is_coded(); }
};

INSTANTIATE_TEST_SUITE_P(Forms, LayeredCoded, ::testing::ValuesIn(all_cases()),
                         [](const auto& each) { return each.param.name; });

TEST_P(LayeredCoded, HoldsTheCodesOfWhatWasGivenThroughEveryChangeAndEncodesEachOnce) {
  const auto cache = make();
  ASSERT_OK(append(*cache, {1, 2, 3}));
  for (std::int64_t token = 4; token < 20; ++token) ASSERT_OK(append(*cache, {token}));
  EXPECT_EQ(cache->rows_encoded(), 19 * kBatch * coded_buffers());
  expect(*cache, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19});
  ASSERT_OK(cache->crop(6));
  expect(*cache, {14, 15, 16, 17, 18, 19});
  ASSERT_OK(cache->rewind(1));
  ASSERT_OK(cache->truncate(4));
  expect(*cache, {14, 15, 16, 17});
  ASSERT_OK(cache->reorder(indices({1, 0, 1})));
  expect(*cache, {14, 15, 16, 17}, {1, 0, 1});
  ASSERT_OK(append(*cache, {20, 21}, {1, 0, 1}));
  expect(*cache, {14, 15, 16, 17, 20, 21}, {1, 0, 1});
  ASSERT_OK(cache->batch_repeat_interleave(2));
  expect(*cache, {14, 15, 16, 17, 20, 21}, {1, 1, 0, 0, 1, 1});
  EXPECT_EQ(cache->rows_encoded(), (19 * kBatch + 2 * 3) * coded_buffers());
  cache->shrink();
  expect(*cache, {14, 15, 16, 17, 20, 21}, {1, 1, 0, 0, 1, 1});
  cache->reset();
  ASSERT_OK(append(*cache, {7, 8}));
  expect(*cache, {7, 8});
}

TEST_P(LayeredCoded, WritesAtPositionsAndLeavesZerosBetween) {
  const auto cache = make();
  const Layout layout = GetParam().layout;
  ASSERT_OK(append(*cache, {1, 2, 3, 4, 5, 6}));
  ASSERT_OK(cache->truncate(2));  // what lay behind is not to be seen
  ASSERT_OK(cache
                ->update(rows_of({8, 9}, false, layout), rows_of({8, 9}, true, layout), 0,
                         indices({5, 0}))
                .status());
  expect(*cache, {9, 2, -1, -1, -1, 8});
}

TEST_P(LayeredCoded, HandsOutCopiesThatCountAndAppendHandsOutNone) {
  const auto cache = make();
  const Layout layout = GetParam().layout;
  ASSERT_OK(append(*cache, {1, 2, 3}));
  EXPECT_EQ(cache->copied_bytes(), 0);
  const std::int64_t token_bytes = kBatch * kHeads * kDim * 4 * coded_buffers();
  const KeyValueView all =
      cache->update(rows_of({4}, false, layout), rows_of({4}, true, layout)).value();
  EXPECT_EQ(cache->copied_bytes(), 4 * token_bytes);
  EXPECT_EQ(values(all.key), values(rows_of({1, 2, 3, 4}, false, layout, &GetParam().k)));
  expect(*cache, {1, 2, 3, 4});  // the same copy
  EXPECT_EQ(cache->copied_bytes(), 4 * token_bytes);
  EXPECT_EQ(cache->get(0).value().key.data, all.key.data);
  const auto kept = cache->retain(0).value();
  ASSERT_OK(append(*cache, {5}));
  if (GetParam().k.is_coded()) {  // a copy that is kept stays as it was
    EXPECT_EQ(values(all.key), values(rows_of({1, 2, 3, 4}, false, layout, &GetParam().k)));
  }
  expect(*cache, {1, 2, 3, 4, 5});
}

TEST_P(LayeredCoded, TakesTheBytesOfThePlan) {
  const auto cache = make();
  const CodedCase& c = GetParam();
  RowFormat k = c.k, v = c.v;
  const LayerSpec spec = LayerSpec::kv(kHeads, kDim, kDim, k, v);
  std::vector<std::int64_t> tokens(30);
  ASSERT_OK(append(*cache, tokens));
  MemoryPlanRequest request;
  request.layers = {&spec, 1};
  request.batch_size = kBatch;
  request.seq_length = 30;
  request.max_length = 40;
  request.layout = c.layout;
  const bool dynamic = c.kind == LayeredKind::kDynamic;
  const PlannedBytes plan =
      plan_memory(dynamic ? CacheKind::kDynamic : CacheKind::kStatic, request).value();
  EXPECT_EQ(cache->nbytes(), 30 * kBatch * bytes_per_token(spec));
  EXPECT_EQ(cache->nbytes(), plan.nbytes);
  EXPECT_EQ(cache->reserved_bytes(), plan.reserved_bytes);
}

TEST_P(LayeredCoded, AttentionOverTheCodesIsThatOverWhatTheyStandFor) {
  const auto cache = make();
  const Layout layout = GetParam().layout;
  std::vector<std::int64_t> tokens;
  for (std::int64_t token = 1; token <= 37; ++token) tokens.push_back(token);
  ASSERT_OK(append(*cache, tokens));
  ASSERT_OK(cache->crop(33));
  for (const std::int64_t queries : {1, 12}) {
    const Shape shape = {kBatch, 2 * kHeads, queries, kDim};
    HostTensor q(DType::kF32, shape), found(DType::kF32, shape), expected(DType::kF32, shape);
    const std::vector<float> normal = internal::normal_row(q.num_elements(), 9);
    for (std::int64_t i = 0; i < q.num_elements(); ++i) q.set(i, normal[std::size_t(i)]);
    AttentionOptions options;
    options.reproducible = true;
    const OwnedKvView codes = cache->view(0).value();
    ASSERT_OK(attend(q, {}, codes, found.mutable_view(), {}, options));
    const OwnedKvView dense = dense_view(cache->get(0).value(), layout).value();
    ASSERT_OK(attend(q, {}, dense, expected.mutable_view(), {}, options));
    const std::vector<float> a = values(found), b = values(expected);
    double error = 0, size = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      error += std::pow(a[i] - b[i], 2);
      size += std::pow(b[i], 2);
    }
    EXPECT_LE(std::sqrt(error / size), 1e-3);
  }
}

TEST_P(LayeredCoded, RefusesRowsThatCannotBeStoredAndStaysAsItWas) {
  const auto cache = make();
  const Layout layout = GetParam().layout;
  ASSERT_OK(append(*cache, {1, 2}));
  HostTensor bad = rows_of({3, 4, 5}, true, layout);
  bad.set(bad.num_elements() - 1, std::numeric_limits<float>::infinity());
  const RowFormat::Kind kind = GetParam().v.kind;
  if (kind == RowFormat::kQ8_0 || kind == RowFormat::kQ4_0 || kind == RowFormat::kFp8E4M3) return;
  EXPECT_ERROR_UNCHANGED(*cache, StatusCode::kInvalidArgument,
                         "value, batch row 1, token 2: found elements that are not finite",
                         cache->append(rows_of({3, 4, 5}, false, layout), bad));
  expect(*cache, {1, 2});
}

TEST(LayeredCodedDoor, NamesHeadSizesAndFormatsThatWillNotDo) {
  CacheOptions options;
  options.keys = options.values = coded(RowFormat::kInt4);
  DynamicCache cache = DynamicCache::create(options).value();
  const HostTensor rows(DType::kF32, {1, 1, 1, 24});
  const Status status = cache.append(rows, rows);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "key: found [1, 1, 1, 24] f32, expected a head size of a multiple of 32 for int4");
  EXPECT_EQ(cache.num_layers(), 0);
  options.values = {RowFormat::kLm4, DType::kF32, false};
  EXPECT_EQ(DynamicCache::create(options).status().message(),
            "values.rotate: found false, expected true, which is part of lm4");
}

TEST(LayeredCodedDoor, ARunningBatchTakesPlainRowsAlone) {
  CacheOptions options;
  options.keys = options.values = coded(RowFormat::kInt8);
  FullCache cache = FullCache::create(options).value();
  const HostTensor rows(DType::kF32, {1, 1, 2, 16});
  BatchingCache batch = BatchingCache::create(2).value();
  const auto expect_refused = [&] {
    const Status status = batch.add_request(cache, 0);
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    EXPECT_EQ(status.message(),
              "cache.format: found int8, expected plain rows, which alone join a batch");
    EXPECT_EQ(batch.active(), 0);
  };
  expect_refused();  // before it has rows, too
  ASSERT_OK(cache.update_and_fetch(rows, rows).status());
  EXPECT_EQ(values(cache.key_values().key), std::vector<float>(32, 0.0f));
  expect_refused();
  EXPECT_EQ(cache.offset(), 2);
}

TEST(LayeredCodedDoor, WhereCopiesFindNoMemoryNothingIsStored) {
  LimitedMemory memory(256 * 1024);
  CacheOptions options;
  options.keys = options.values = coded(RowFormat::kInt8);
  options.memory = &memory;
  DynamicCache cache = DynamicCache::create(options).value();
  const HostTensor rows(DType::kF32, {1, 1, 400, 64});  // in codes 53 KB, as floats 205 KB
  EXPECT_EQ(cache.update(rows, rows).status().code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(cache.seq_length().value(), 0);
  ASSERT_OK(cache.append(rows, rows));
  EXPECT_EQ(cache.get(0).status().code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(cache.seq_length().value(), 400);
  EXPECT_TRUE(cache.view(0).ok());
}

}  // namespace
}  // namespace kvcache::testing
