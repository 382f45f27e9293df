// The newest rows of coded layers that stay plain: which are coded when, what is read of both, and
// what they weigh.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include "kvcache/attention.h"
#include "kvcache/kv_view.h"
#include "kvcache/memory_plan.h"
#include "kvcache/paged_batch.h"
#include "support/coded.h"
#include "support/paged.h"
#include "tensor/codecs/rotate.h"

namespace kvcache::testing {
namespace {

using Tokens = std::vector<std::int64_t>;

constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 32;
constexpr RowFormat kInt8 = coded(RowFormat::kInt8);
constexpr RowFormat kInt4 = coded(RowFormat::kInt4);

LayerSpec spec_of(const RowFormat& k, const RowFormat& v) {
  return LayerSpec::kv(kHeads, kDim, kDim, k, v);
}

std::vector<float> given_row(std::int64_t token, std::size_t layer, bool key, std::int64_t head) {
  return internal::normal_row(
      kDim, static_cast<std::uint32_t>(token * 64 + static_cast<std::int64_t>(layer) * 8 +
                                       (key ? 4 : 0) + head));
}

// [tokens, heads, dim]
HostTensor packed(const Tokens& tokens, std::size_t layer, bool key) {
  HostTensor rows(DType::kF32, {static_cast<std::int64_t>(tokens.size()), kHeads, kDim});
  std::int64_t i = 0;
  for (const std::int64_t token : tokens) {
    for (std::int64_t head = 0; head < kHeads; ++head) {
      for (const float x : given_row(token, layer, key, head)) rows.set(i++, x);
    }
  }
  return rows;
}

// What a row is that stays plain: turned, and back.
std::vector<float> plain_and_back(const RowFormat& format, std::vector<float> row) {
  if (!format.rotate) return row;
  internal::rotate_row(row.data(), kDim);
  internal::rotate_row(row.data(), kDim);
  return row;
}

// A sequence by the rule alone.
struct Model {
  Tokens tokens;
  std::int64_t coded = 0;

  std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
};

class Residual {
 public:
  Residual(std::vector<LayerSpec> specs, std::int64_t page_size, std::int64_t residual,
           std::int64_t num_pages = 64, Layout layout = Layout::kHND)
      : specs_(std::move(specs)),
        page_size_(page_size),
        residual_(residual),
        layout_(layout),
        cache(PagedCache::create(config(num_pages)).value()) {}

  CacheConfig config(std::int64_t num_pages) const {
    CacheConfig config;
    config.layers = specs_;
    config.page_size = page_size_;
    config.num_pages = num_pages;
    config.residual_tokens = residual_;
    config.layout = layout_;
    return config;
  }

  Status write(PagedCache::Step& step, const Tokens& tokens) {
    for (std::size_t layer = 0; layer < specs_.size(); ++layer) {
      KVC_RETURN_IF_ERROR(cache.write(step, static_cast<std::int64_t>(layer),
                                      packed(tokens, layer, true), packed(tokens, layer, false)));
    }
    return {};
  }
  // Of the new tokens `accepted` stay.
  Status append(SequenceId seq, Model& model, const Tokens& tokens, std::int64_t accepted) {
    const Append append{seq, static_cast<std::int64_t>(tokens.size())};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
    KVC_RETURN_IF_ERROR(write(step, tokens));
    KVC_RETURN_IF_ERROR(cache.commit(step, {&accepted, 1}));
    model.tokens.insert(model.tokens.end(), tokens.begin(), tokens.begin() + accepted);
    if (accepted == 0) return {};
    const std::int64_t due =
        std::max<std::int64_t>(0, model.length() - residual_) / page_size_ * page_size_;
    if (due > model.coded) encoded += (due - model.coded) * coded_buffers();
    model.coded = std::max(model.coded, due);
    return {};
  }
  Status append(SequenceId seq, Model& model, const Tokens& tokens) {
    return append(seq, model, tokens, static_cast<std::int64_t>(tokens.size()));
  }

  std::int64_t coded_buffers() const {
    std::int64_t buffers = 0;
    for (const LayerSpec& spec : specs_) {
      for (const BufferSpec& buffer : spec.used()) buffers += buffer.format.is_coded();
    }
    return buffers;
  }

  std::vector<float> expected(const Model& model, std::size_t layer, bool key, std::int64_t row,
                              std::int64_t head) const {
    const LayerSpec& spec = specs_[layer];
    const RowFormat& format = (key ? spec.key() : spec.value()).format;
    const auto given = given_row(model.tokens[static_cast<std::size_t>(row)], layer, key, head);
    const bool split = spec.key().format.is_coded() || spec.value().format.is_coded();
    if (split && format.is_coded() && row >= model.coded) return plain_and_back(format, given);
    return coded_and_back(format, given.data(), kDim);
  }

  void expect_holds(SequenceId seq, const Model& model) const {
    ASSERT_EQ(cache.seq_length(seq).value(), model.length());
    for (std::size_t layer = 0; layer < specs_.size(); ++layer) {
      const auto at = static_cast<std::int64_t>(layer);
      ASSERT_EQ(cache.rows_held(at, seq).value(), model.length());
      const bool head_first = layout_ == Layout::kHND;
      const Counts shape =
          head_first ? Counts{kHeads, model.length(), kDim} : Counts{model.length(), kHeads, kDim};
      HostTensor k(DType::kF32, shape), v(DType::kF32, shape);
      ASSERT_OK(cache.gather(at, seq, k.mutable_view(), v.mutable_view()));
      for (const bool key : {true, false}) {
        const auto* data = static_cast<const float*>(TensorView(key ? k : v).data);
        for (std::int64_t row = 0; row < model.length(); ++row) {
          for (std::int64_t head = 0; head < kHeads; ++head) {
            const std::int64_t index =
                head_first ? head * model.length() + row : row * kHeads + head;
            const std::vector<float> wanted = expected(model, layer, key, row, head);
            ASSERT_TRUE(std::equal(wanted.begin(), wanted.end(), data + index * kDim))
                << "layer " << layer << " row " << row << " of " << model.length() << ", "
                << model.coded << " coded";
          }
        }
      }
      if (!specs_[layer].key().format.is_coded()) continue;
      EXPECT_EQ(cache.gather_codes(at, seq, Role::kKey)->rows, model.coded);
    }
  }

 private:
  std::vector<LayerSpec> specs_;
  std::int64_t page_size_, residual_;
  Layout layout_;

 public:
  PagedCache cache;
  std::int64_t encoded = 0;
};

Tokens range(std::int64_t begin, std::int64_t end) {
  Tokens tokens;
  for (std::int64_t i = begin; i < end; ++i) tokens.push_back(i);
  return tokens;
}

// The specification's rule: page_size 4, residual_tokens 5, a token at a time.
TEST(PagedResidual, RowsAreCodedInWholePagesOnceTheNewestHaveGoneBy) {
  Residual f({spec_of(kInt8, kInt8)}, 4, 5);
  const SequenceId seq = f.cache.open().value();
  Model model;
  for (std::int64_t n = 1; n <= 20; ++n) {
    ASSERT_OK(f.append(seq, model, {n}));
    EXPECT_EQ(model.coded, std::max<std::int64_t>(0, n - 5) / 4 * 4);
    f.expect_holds(seq, model);
    EXPECT_EQ(f.cache.stats().rows_encoded, model.coded * 2);
    ASSERT_OK(f.cache.check_invariants());
  }
  EXPECT_EQ(f.cache.num_groups(), 2);
  EXPECT_EQ(f.cache.nbytes(), 12 * kHeads * 2 * (kDim + 2) + 8 * kHeads * 2 * kDim * 4);
}

TEST(PagedResidual, AReturnBelowTheCodesLeavesThemAndGoesOnFromThere) {
  Residual f({spec_of(kInt4, kInt8)}, 4, 2);
  const SequenceId seq = f.cache.open().value();
  Model model;
  ASSERT_OK(f.append(seq, model, range(0, 19)));
  EXPECT_EQ(model.coded, 16);
  ASSERT_OK(f.cache.truncate(seq, 9));
  model.tokens.resize(9);
  model.coded = 9;
  f.expect_holds(seq, model);
  ASSERT_OK(f.append(seq, model, range(40, 43)));
  EXPECT_EQ(model.coded, 9) << "no more are due at 12 tokens";
  f.expect_holds(seq, model);
  ASSERT_OK(f.append(seq, model, range(43, 46)));
  EXPECT_EQ(model.coded, 12);
  f.expect_holds(seq, model);
  EXPECT_EQ(f.cache.stats().rows_encoded, f.encoded);
  ASSERT_OK(f.cache.check_invariants());
}

TEST(PagedResidual, PlainLayersAndPlainSidesStayAsTheyAre) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    Residual f({spec_of(kInt8, plain(DType::kF32)), spec_of(plain(DType::kF32), plain(DType::kF32)),
                spec_of(coded(RowFormat::kLm4), kInt4)},
               4, 3, 64, layout);
    const SequenceId seq = f.cache.open().value();
    Model model;
    ASSERT_OK(f.append(seq, model, range(0, 11)));
    ASSERT_OK(f.append(seq, model, range(11, 12)));
    f.expect_holds(seq, model);
    EXPECT_EQ(f.cache.num_groups(), 3);
    EXPECT_EQ(f.cache.stats().rows_encoded, 8 * 3);
  }
}

// A step sees its own rows plain, and codes as they were before it; then both are read alike.
TEST(PagedResidual, AViewIsCodesAndTailAndAttentionReadsBoth) {
  for (const RowFormat& format : {kInt8, coded(RowFormat::kInt8, true), kInt4}) {
    Residual f({spec_of(format, format)}, 4, 3);
    const SequenceId seq = f.cache.open().value();
    Model model;
    ASSERT_OK(f.append(seq, model, range(0, 18)));
    ASSERT_OK(f.cache.truncate(seq, 10));  // leaves codes that end within a page
    model.tokens.resize(10);
    model.coded = 10;
    for (const std::int64_t count : {1, 12}) {
      const Tokens more = range(50, 50 + count);
      const Append append{seq, count};
      PagedCache::Step step = f.cache.reserve({&append, 1}).value();
      ASSERT_OK(f.write(step, more));
      const OwnedKvView view = f.cache.view(step, 0).value();
      ASSERT_EQ(view.get().num_parts, 2);
      EXPECT_EQ(view.get().parts[0].lengths[0], model.coded);
      EXPECT_TRUE(view.get().parts[0].k.format.is_coded());
      EXPECT_FALSE(view.get().parts[1].k.format.is_coded());
      Model seen = model;
      seen.tokens.insert(seen.tokens.end(), more.begin(), more.end());
      HostTensor k(DType::kF32, {1, kHeads, seen.length(), kDim});
      HostTensor v = k;
      for (std::int64_t head = 0; head < kHeads; ++head) {
        for (std::int64_t row = 0; row < seen.length(); ++row) {
          std::int64_t at = (head * seen.length() + row) * kDim;
          const auto k_row = f.expected(seen, 0, true, row, head);
          const auto v_row = f.expected(seen, 0, false, row, head);
          for (std::size_t d = 0; d < kDim; ++d, ++at) {
            k.set(at, k_row[d]);
            v.set(at, v_row[d]);
          }
        }
      }
      const OwnedKvView dense = dense_view({k, v}, Layout::kHND).value();
      const HostTensor q = packed(range(70, 70 + count), 0, true);
      const std::int32_t qo_indptr[] = {0, static_cast<std::int32_t>(count)};
      for (const std::int64_t window : {0, 6}) {
        AttentionOptions options;
        options.window = window;
        options.reproducible = true;  // prefill may otherwise go through dot products of bf16
        HostTensor found(DType::kF32, {count, kHeads, kDim});
        HostTensor wanted = found;
        ASSERT_OK(attend(q, qo_indptr, view, found.mutable_view(), {}, options));
        ASSERT_OK(attend(q, qo_indptr, dense, wanted.mutable_view(), {}, options));
        double error = 0, size = 0;
        const auto* a = static_cast<const float*>(TensorView(found).data);
        const auto* b = static_cast<const float*>(TensorView(wanted).data);
        for (std::int64_t i = 0; i < found.num_elements(); ++i) {
          error += (a[i] - b[i]) * (a[i] - b[i]);
          size += b[i] * b[i];
        }
        EXPECT_LT(std::sqrt(error / size), 1e-3) << count << " window " << window;
      }
      HostTensor gathered_k(DType::kF32, {kHeads, seen.length(), kDim});
      HostTensor gathered_v = gathered_k;
      ASSERT_OK(f.cache.gather(step, 0, 0, gathered_k.mutable_view(), gathered_v.mutable_view()));
      EXPECT_TRUE(std::equal(
          static_cast<const float*>(TensorView(gathered_k).data),
          static_cast<const float*>(TensorView(gathered_k).data) + gathered_k.num_elements(),
          static_cast<const float*>(TensorView(k).data)));
      ASSERT_OK(f.cache.rollback(step));
      f.expect_holds(seq, model);
      ASSERT_OK(f.append(seq, model, more));
      f.expect_holds(seq, model);
    }
    ASSERT_OK(f.cache.check_invariants());
  }
}

TEST(PagedResidual, TheTailIsRoundedToTheTypeOfTheFormatAndEncodedFromThat) {
  RowFormat format = kInt8;
  format.dtype = DType::kBF16;
  Residual f({spec_of(format, format)}, 2, 2);
  const SequenceId seq = f.cache.open().value();
  const Append append{seq, 6};
  PagedCache::Step step = f.cache.reserve({&append, 1}).value();
  ASSERT_OK(f.write(step, range(0, 6)));
  ASSERT_OK(f.cache.commit(step));
  HostTensor k(DType::kF32, {kHeads, 6, kDim}), v = k;
  ASSERT_OK(f.cache.gather(0, seq, k.mutable_view(), v.mutable_view()));
  const auto* data = static_cast<const float*>(TensorView(k).data);
  for (std::int64_t row = 0; row < 6; ++row) {
    HostTensor rounded(DType::kBF16, {kDim});
    std::int64_t i = 0;
    for (const float x : given_row(row, 0, true, 0)) rounded.set(i++, x);
    std::vector<float> wanted;
    for (i = 0; i < kDim; ++i) {
      const std::uint32_t bits = static_cast<const std::uint16_t*>(TensorView(rounded).data)[i];
      wanted.push_back(std::bit_cast<float>(bits << 16));
    }
    if (row < 4) wanted = coded_and_back(kInt8, wanted.data(), kDim);
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), data + row * kDim)) << row;
  }
  EXPECT_EQ(f.cache.nbytes(), 4 * kHeads * 2 * (kDim + 2) + 2 * kHeads * 2 * kDim * 2);
}

TEST(PagedResidual, WhatCouldNotBeCodedLaterIsRefusedWhenItIsWritten) {
  RowFormat narrow = kInt8;
  narrow.dtype = DType::kF16;
  Residual f({spec_of(kInt8, narrow)}, 4, 100);
  const SequenceId seq = f.cache.open().value();
  Model model;
  ASSERT_OK(f.append(seq, model, range(0, 3)));
  const Append append{seq, 2};
  PagedCache::Step step = f.cache.reserve({&append, 1}).value();
  HostTensor k = packed(range(3, 5), 0, true), v = packed(range(3, 5), 0, false);
  HostTensor bad = v;
  bad.set(kHeads * kDim + 5, 1e5);  // finite, and past f16
  EXPECT_EQ(f.cache.write(step, 0, k, bad).message(),
            "v, sequence " + std::to_string(static_cast<std::int64_t>(seq)) +
                ", token 4: found elements that are not finite, or too large for a scale of 16 "
                "bits, expected what int8 can store");
  ASSERT_OK(f.cache.write(step, 0, k, v));
  ASSERT_OK(f.cache.commit(step));
}

TEST(PagedResidual, WhatDoesNotFitIsRefusedByName) {
  const auto message = [](const LayerSpec& spec, std::int64_t residual) {
    CacheConfig config;
    config.layers = {spec};
    config.num_pages = 4;
    config.residual_tokens = residual;
    return PagedCache::create(config).status().message();
  };
  EXPECT_EQ(message(spec_of(kInt8, kInt8), -1),
            "residual_tokens: found -1, expected 0 .. 2147483647");
  EXPECT_EQ(message(spec_of(plain(DType::kF32), plain(DType::kF32)), 8),
            "residual_tokens: found 8, expected 0 where no layer is coded");
  EXPECT_EQ(message(spec_of(kInt8, kInt8).living({.window = 8}), 8),
            "layers[0].life: found a window or chunk, expected none in a coded layer beside "
            "residual_tokens");
  Residual f({spec_of(kInt8, kInt8)}, 4, 5);
  const SequenceId seq = f.cache.open().value();
  for (const Status& status :
       {f.cache.block_table(0, {&seq, 1}).status(), f.cache.page_indices(0, {&seq, 1}).status()}) {
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    EXPECT_EQ(status.message(),
              "layer: found 0, coded beside residual_tokens, expected one whose rows lie in one "
              "table");
  }
}

TEST(PagedResidual, BytesAreThoseOfThePlan) {
  const std::vector<LayerSpec> layers = {spec_of(kInt8, kInt4),
                                         spec_of(plain(DType::kF16), plain(DType::kF16))};
  for (const std::int64_t page_size : {1, 4, 16}) {
    for (const std::int64_t residual : {1, 5, 16, 40}) {
      for (const std::int64_t step : {1, 3, 7, 64}) {
        MemoryPlanRequest request;
        request.layers = layers;
        request.page_size = page_size;
        request.seq_length = 61;
        request.batch_size = 2;
        request.step_tokens = step;
        request.num_pages = 200;
        request.residual_tokens = residual;
        const auto planned = plan_memory(CacheKind::kPaged, request);
        ASSERT_OK(planned.status());
        Residual f(layers, page_size, residual, 200);
        const SequenceId seqs[] = {f.cache.open().value(), f.cache.open().value()};
        for (std::int64_t done = 0; done < 61;) {
          const std::int64_t count = std::min(step, 61 - done);
          const Append appends[] = {{seqs[0], count}, {seqs[1], count}};
          PagedCache::Step open = f.cache.reserve(appends).value();
          Tokens tokens = range(done, done + count);
          tokens.insert(tokens.end(), tokens.begin(), tokens.begin() + count);
          ASSERT_OK(f.write(open, tokens));
          ASSERT_OK(f.cache.commit(open));
          done += count;
        }
        const std::string at = "page " + std::to_string(page_size) + " r " +
                               std::to_string(residual) + " step " + std::to_string(step);
        EXPECT_EQ(f.cache.nbytes(), planned->nbytes) << at;
        EXPECT_EQ(f.cache.reserved_bytes(), planned->reserved_bytes) << at;
      }
    }
  }
}

// Random operations on many sequences against the rule.
TEST(PagedResidual, RandomOperationsKeepCodesAndTailsAsTheRuleSays) {
  std::mt19937 random(7);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  for (int round = 0; round < 12; ++round) {
    const std::int64_t page_size = std::vector<std::int64_t>{1, 3, 4, 8}[std::size_t(round) % 4];
    Residual f({spec_of(kInt8, kInt4), spec_of(plain(DType::kF32), plain(DType::kF32))}, page_size,
               1 + below(12), 400, round % 2 == 0 ? Layout::kHND : Layout::kNHD);
    std::vector<std::pair<SequenceId, Model>> seqs;
    for (int i = 0; i < 3; ++i) seqs.emplace_back(f.cache.open().value(), Model());
    for (int operation = 0; operation < 120; ++operation) {
      auto& [seq, model] =
          seqs[static_cast<std::size_t>(below(static_cast<std::int64_t>(seqs.size())))];
      switch (below(6)) {
        case 0:
        case 1: {
          const std::int64_t count = below(9);
          const std::int64_t first = below(1000);
          if (model.length() + count > 60) break;
          ASSERT_OK(f.append(seq, model, range(first, first + count),
                             count - below(2) * below(count + 1)));
          break;
        }
        case 2: {
          const std::int64_t to = below(model.length() + 1);
          ASSERT_OK(f.cache.truncate(seq, to));
          model.tokens.resize(static_cast<std::size_t>(to));
          model.coded = std::min(model.coded, to);
          break;
        }
        case 3: {
          if (seqs.size() > 6) break;
          const std::int64_t to = below(model.length() + 1);
          Model child = model;
          child.tokens.resize(static_cast<std::size_t>(to));
          child.coded = std::min(child.coded, to);
          const SequenceId forked = f.cache.fork(seq, to).value();
          seqs.emplace_back(forked, std::move(child));
          break;
        }
        case 4: {
          if (seqs.size() < 3) break;
          ASSERT_OK(f.cache.release(seq));
          const SequenceId gone = seq;
          std::erase_if(seqs, [&](const auto& each) { return each.first == gone; });
          break;
        }
        default: {
          std::vector<SequenceId> ids;
          Tokens order;
          std::vector<Model> before;
          for (const auto& [id, each] : seqs) {
            ids.push_back(id);
            before.push_back(each);
            order.push_back(below(static_cast<std::int64_t>(seqs.size())));
          }
          ASSERT_OK(f.cache.reorder(ids, indices(order)));
          for (std::size_t i = 0; i < seqs.size(); ++i) {
            seqs[i].second = before[static_cast<std::size_t>(order[i])];
          }
        }
      }
      ASSERT_OK(f.cache.check_invariants());
      ASSERT_EQ(f.cache.stats().rows_encoded, f.encoded) << "encoded again, or not at all";
    }
    for (const auto& [id, each] : seqs) f.expect_holds(id, each);
  }
}

// PagedBatch: the queries of the last layer see the step's rows plain, as those of the first do.
TEST(PagedResidual, ABatchLeavesItsStepOpenForTheLastLayersQueries) {
  CacheConfig config;
  config.layers = {spec_of(kInt8, kInt8), spec_of(kInt8, kInt8)};
  config.page_size = 4;
  config.num_pages = 16;
  config.residual_tokens = 1;
  PagedBatch batch =
      PagedBatch::create(std::make_shared<PagedCache>(PagedCache::create(config).value())).value();
  const auto rows = [](std::int64_t count, std::size_t layer, bool key) {
    HostTensor made(DType::kF32, {1, kHeads, count, kDim});
    std::int64_t i = 0;
    for (std::int64_t head = 0; head < kHeads; ++head) {
      for (std::int64_t token = 0; token < count; ++token) {
        for (const float x : given_row(token, layer, key, head)) made.set(i++, x);
      }
    }
    return made;
  };
  for (std::size_t layer : {0, 1}) {
    ASSERT_OK(batch.update(static_cast<std::int64_t>(layer), rows(9, layer, true),
                           rows(9, layer, false)));
    const OwnedKvView view = batch.view(static_cast<std::int64_t>(layer)).value();
    EXPECT_EQ(view.get().parts[0].lengths[0], 0);
    EXPECT_EQ(view.get().parts[1].lengths[0], 9);
  }
  ASSERT_OK(batch.update(0, rows(1, 0, true), rows(1, 0, false)));
  EXPECT_EQ(batch.view(0).value().get().parts[0].lengths[0], 8);
  ASSERT_OK(batch.update(1, rows(1, 1, true), rows(1, 1, false)));
  HostTensor k(DType::kF32, {1, kHeads, 10, kDim}), v = k;
  ASSERT_OK(batch.gather(1, k.mutable_view(), v.mutable_view()));
  const auto* data = static_cast<const float*>(TensorView(k).data);
  for (std::int64_t row = 0; row < 10; ++row) {
    const auto given = given_row(row == 9 ? 0 : row, 1, true, 0);
    const auto wanted = row < 8 ? coded_and_back(kInt8, given.data(), kDim) : given;
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), data + row * kDim)) << row;
  }
  EXPECT_EQ(batch.rows_held(0, 1).value(), 10);
}

// Two NaNs that meet where a row is turned leave one, of either sign, by processor.
TEST(PagedResidual, NaNOfTurnedFp8RowsHasNoSignWhetherCodedAtOnceOrLater) {
  const RowFormat form = coded(RowFormat::kFp8E4M3, true);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t residual : {0, 4}) {
    CacheConfig config;
    config.layers = {spec_of(form, form)};
    config.page_size = 4;
    config.num_pages = 16;
    config.residual_tokens = residual;
    PagedCache cache = PagedCache::create(config).value();
    const SequenceId seq = cache.open().value();
    HostTensor rows(DType::kF32, {12, kHeads, kDim});
    for (std::int64_t i = 0; i < rows.num_elements(); ++i) {
      rows.set(i, i % 3 == 0 ? nan : i % 3 == 1 ? -nan : 1.0f);
    }
    const Append append{seq, 12};
    PagedCache::Step step = cache.reserve({&append, 1}).value();
    ASSERT_OK(cache.write(step, 0, rows, rows));
    ASSERT_OK(cache.commit(step));
    const RowCodes codes = cache.gather_codes(0, seq, Role::kKey).value();
    ASSERT_EQ(codes.rows, residual == 0 ? 12 : 8);
    for (const std::byte code : codes.codes) ASSERT_EQ(code, std::byte{0x7f}) << residual;
  }
}

}  // namespace
}  // namespace kvcache::testing
