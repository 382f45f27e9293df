// Coded rows in a PagedCache: what is stored are the codes of what was given, whatever happens to
// the sequences; what a form cannot store is refused by name; bytes are those of the plan.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <tuple>

#include "kvcache/memory_plan.h"
#include "support/coded.h"
#include "support/paged.h"

namespace kvcache::testing {
namespace {

constexpr std::int64_t kDistinct = 48;  // tokens that there are

// All rows of a token in one buffer of a layer, and what their codes stand for.
struct TokenRows {
  std::vector<float> given;    // [heads, dim]
  std::vector<float> decoded;  // the same
  std::vector<std::byte> codes;
};

// The rows of every token, encoded by the definition.
class Rows {
 public:
  explicit Rows(const std::vector<LayerSpec>& specs) : specs_(specs) {
    for (std::size_t layer = 0; layer < specs.size(); ++layer) {
      for (std::int32_t b = 0; b < 2; ++b) {
        for (std::int64_t token = 0; token < kDistinct; ++token) {
          rows_[{layer, b, token}] = make(specs[layer].buffers[b], layer, b, token);
        }
      }
    }
  }

  const TokenRows& of(std::size_t layer, std::int32_t buffer, std::int64_t token) const {
    return rows_.at({layer, buffer, token});
  }

  // [tokens, heads, dim]
  HostTensor packed(std::size_t layer, std::int32_t buffer,
                    const std::vector<std::int64_t>& tokens) const {
    const BufferSpec& spec = specs_[layer].buffers[buffer];
    HostTensor rows(DType::kF32, {static_cast<std::int64_t>(tokens.size()), spec.heads, spec.dim});
    std::int64_t i = 0;
    for (const std::int64_t token : tokens) {
      for (const float x : of(layer, buffer, token).given) rows.set(i++, x);
    }
    return rows;
  }

 private:
  static TokenRows make(const BufferSpec& spec, std::size_t layer, std::int32_t buffer,
                        std::int64_t token) {
    TokenRows rows;
    rows.given = internal::normal_row(
        spec.heads * spec.dim,
        static_cast<std::uint32_t>(token * 64 + static_cast<std::int64_t>(layer) * 2 + buffer));
    if (token % 7 == 0) rows.given[3] *= 500;
    if (token % 11 == 0) std::fill_n(rows.given.begin(), spec.dim, 0.0f);
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      const float* row = rows.given.data() + head * spec.dim;
      const std::vector<float> back = coded_and_back(spec.format, row, spec.dim);
      rows.decoded.insert(rows.decoded.end(), back.begin(), back.end());
      if (!spec.format.is_coded()) continue;
      internal::RowBytes bytes(spec.format, spec.dim);
      std::vector<float> scratch(row, row + spec.dim);
      EXPECT_TRUE(internal::encode_row(spec.format, scratch.data(), spec.dim, bytes.row()));
      rows.codes.insert(rows.codes.end(), bytes.bytes.begin(), bytes.bytes.end());
    }
    return rows;
  }

  std::vector<LayerSpec> specs_;
  std::map<std::tuple<std::size_t, std::int32_t, std::int64_t>, TokenRows> rows_;
};

using TokenIds = std::vector<std::int64_t>;

class CodedFixture {
 public:
  CodedFixture(const std::vector<LayerSpec>& specs, Layout layout, std::int64_t page_size,
               std::int64_t num_pages = 40)
      : CodedFixture(config(specs, layout, page_size, num_pages)) {}
  explicit CodedFixture(const CacheConfig& config)
      : specs_(config.layers),
        layout_(config.layout),
        rows_(config.layers),
        cache(PagedCache::create(config).value()) {}

  static CacheConfig config(const std::vector<LayerSpec>& specs, Layout layout,
                            std::int64_t page_size, std::int64_t num_pages) {
    CacheConfig config;
    config.layers = specs;
    config.layout = layout;
    config.page_size = page_size;
    config.num_pages = num_pages;
    return config;
  }

  const Rows& rows() const { return rows_; }
  Status write(PagedCache::Step& step, const TokenIds& tokens) {
    for (std::size_t layer = 0; layer < specs_.size(); ++layer) {
      KVC_RETURN_IF_ERROR(cache.write(step, static_cast<std::int64_t>(layer),
                                      rows_.packed(layer, 0, tokens),
                                      rows_.packed(layer, 1, tokens)));
    }
    return {};
  }
  Status append(SequenceId seq, const TokenIds& tokens) {
    const Append append{seq, static_cast<std::int64_t>(tokens.size())};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
    KVC_RETURN_IF_ERROR(write(step, tokens));
    return cache.commit(step);
  }

  // What every layer holds of a sequence are the codes of these tokens: as floats, and as bytes.
  void expect_holds(SequenceId seq, const TokenIds& tokens) const {
    for (std::size_t layer = 0; layer < specs_.size(); ++layer) {
      const auto at = static_cast<std::int64_t>(layer);
      const std::int64_t held = cache.rows_held(at, seq).value();
      const std::int64_t first = cache.first_position(at, seq).value();
      TokenIds wanted(tokens.begin(),
                      tokens.begin() + (held - (cache.seq_length(seq).value() - first)));
      wanted.insert(wanted.end(), tokens.begin() + first, tokens.end());
      const LayerSpec& spec = specs_[layer];
      const auto shape = [&](std::int64_t dim) {
        return layout_ == Layout::kHND ? Counts{spec.key().heads, held, dim}
                                       : Counts{held, spec.key().heads, dim};
      };
      HostTensor k(DType::kF32, shape(spec.key().dim));
      HostTensor v(DType::kF32, shape(spec.value().dim));
      ASSERT_OK(cache.gather(at, seq, k.mutable_view(), v.mutable_view()));
      expect_rows(k, layer, 0, wanted);
      expect_rows(v, layer, 1, wanted);
      expect_codes(seq, layer, 0, wanted);
      expect_codes(seq, layer, 1, wanted);
    }
  }

 private:
  void expect_rows(const HostTensor& found, std::size_t layer, std::int32_t buffer,
                   const TokenIds& tokens) const {
    const BufferSpec& spec = specs_[layer].buffers[buffer];
    const TensorView view = found;
    const auto* data = static_cast<const float*>(view.data);
    const bool head_first = layout_ == Layout::kHND;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const std::vector<float>& wanted = rows_.of(layer, buffer, tokens[t]).decoded;
      for (std::int64_t head = 0; head < spec.heads; ++head) {
        const float* row = data + head * view.strides[head_first ? 0 : 1] +
                           static_cast<std::int64_t>(t) * view.strides[head_first ? 1 : 0];
        ASSERT_TRUE(std::equal(row, row + spec.dim, wanted.begin() + head * spec.dim))
            << "layer " << layer << " buffer " << buffer << " row " << t;
      }
    }
  }

  void expect_codes(SequenceId seq, std::size_t layer, std::int32_t buffer,
                    const TokenIds& tokens) const {
    const BufferSpec& spec = specs_[layer].buffers[buffer];
    const Role role = buffer == 0 ? Role::kKey : Role::kValue;
    const auto found = cache.gather_codes(static_cast<std::int64_t>(layer), seq, role);
    if (!spec.format.is_coded()) {
      EXPECT_EQ(found.status().code(), StatusCode::kUnsupported);
      return;
    }
    ASSERT_OK(found.status());
    const auto bytes = static_cast<std::size_t>(spec.format.code_bytes(spec.dim));
    const auto groups = static_cast<std::size_t>(spec.format.num_scales(spec.dim));
    const auto row_bytes = static_cast<std::size_t>(spec.format.bytes(spec.dim));
    ASSERT_EQ(found->codes.size(), bytes * tokens.size() * static_cast<std::size_t>(spec.heads));
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const std::vector<std::byte>& wanted = rows_.of(layer, buffer, tokens[t]).codes;
      for (std::size_t head = 0; head < static_cast<std::size_t>(spec.heads); ++head) {
        const std::size_t at = head * tokens.size() + t;
        const std::byte* row = wanted.data() + head * row_bytes;
        ASSERT_EQ(std::memcmp(found->codes.data() + at * bytes, row, bytes), 0) << t;
        if (groups == 0) continue;  // ggml's are among the codes
        ASSERT_EQ(std::memcmp(found->scales.data() + at * groups, row + bytes, groups * 2), 0) << t;
        if (!spec.format.has_zeros()) continue;
        ASSERT_EQ(std::memcmp(found->zeros.data() + at * groups, row + bytes + groups * 2, groups),
                  0)
            << t;
      }
    }
  }

  std::vector<LayerSpec> specs_;
  Layout layout_;
  Rows rows_;

 public:
  PagedCache cache;
};

TokenIds range(std::int64_t begin, std::int64_t end) {
  TokenIds ids;
  for (std::int64_t i = begin; i < end; ++i) ids.push_back(i % kDistinct);
  return ids;
}

constexpr RowFormat kInt8 = coded(RowFormat::kInt8);
constexpr RowFormat kLm4 = coded(RowFormat::kLm4);

class PagedCoded : public ::testing::TestWithParam<std::tuple<FormCase, Layout>> {
 protected:
  const RowFormat& format() const { return std::get<0>(GetParam()).format; }
  Layout layout() const { return std::get<1>(GetParam()); }
  std::vector<LayerSpec> specs() const {
    return {LayerSpec::kv(3, 64, 96, format(), format()),
            LayerSpec::kv(3, 288, 32, format(), format())};
  }
};

TEST_P(PagedCoded, AnySplitOfAppendsGathersTheCodesOfWhatWasGiven) {
  for (const std::int64_t page_size : {1, 4, 16}) {
    CodedFixture f(specs(), layout(), page_size);
    const SequenceId a = f.cache.open().value();
    ASSERT_OK(f.append(a, range(0, 3)));
    ASSERT_OK(f.append(a, range(3, 5)));
    ASSERT_OK(f.append(a, range(5, 17)));
    f.expect_holds(a, range(0, 17));
    EXPECT_EQ(f.cache.stats().rows_encoded, 17 * 4);
    EXPECT_OK(f.cache.check_invariants());
  }
}

TEST_P(PagedCoded, ASharedTailIsCopiedAsCodesAndEncodedOnce) {
  CodedFixture f(specs(), layout(), 4);
  const SequenceId a = f.cache.open().value();
  ASSERT_OK(f.append(a, range(0, 6)));
  const SequenceId b = f.cache.fork(a, 5).value();
  EXPECT_EQ(f.cache.stats().rows_encoded, 6 * 4);
  ASSERT_OK(f.append(b, range(20, 23)));
  ASSERT_OK(f.append(a, range(30, 31)));
  TokenIds b_tokens = range(0, 5);
  for (const std::int64_t id : range(20, 23)) b_tokens.push_back(id);
  TokenIds a_tokens = range(0, 6);
  a_tokens.push_back(30);
  f.expect_holds(a, a_tokens);
  f.expect_holds(b, b_tokens);
  EXPECT_EQ(f.cache.stats().rows_copied, 1);
  EXPECT_EQ(f.cache.stats().rows_encoded, (6 + 3 + 1) * 4);
}

TEST_P(PagedCoded, BytesAreThoseOfTheFormAndOfThePlan) {
  MemoryPlanRequest request;
  const std::vector<LayerSpec> layers = specs();
  request.layers = layers;
  request.page_size = 4;
  request.layout = layout();
  request.seq_length = 10;
  request.num_pages = 8;
  const PlannedBytes planned = plan_memory(CacheKind::kPaged, request).value();
  CodedFixture f(specs(), layout(), 4, 8);
  const SequenceId a = f.cache.open().value();
  ASSERT_OK(f.append(a, range(0, 10)));
  const std::int64_t token =
      3 * (format().bytes(64) + format().bytes(96) + format().bytes(288) + format().bytes(32));
  EXPECT_EQ(bytes_per_token(specs()[0]) + bytes_per_token(specs()[1]), token);
  EXPECT_EQ(f.cache.nbytes(), 10 * token);
  EXPECT_EQ(f.cache.nbytes(), planned.nbytes);
  EXPECT_EQ(f.cache.reserved_bytes(), planned.reserved_bytes);
}

TEST_P(PagedCoded, RowsThatCannotBeCodedAreRefusedByNameAndTheStepIsAsBefore) {
  CodedFixture f(specs(), layout(), 4);
  const SequenceId a = f.cache.open().value();
  ASSERT_OK(f.append(a, range(0, 5)));
  const Append append{a, 3};
  PagedCache::Step step = f.cache.reserve({&append, 1}).value();
  ASSERT_OK(f.write(step, range(5, 8)));
  for (const float bad : {1e30f, std::numeric_limits<float>::infinity()}) {
    if (format().kind == RowFormat::kFp8E4M3 && !std::isfinite(bad)) continue;
    for (const bool in_key : {true, false}) {
      HostTensor k = f.rows().packed(0, 0, range(20, 23));
      HostTensor v = f.rows().packed(0, 1, range(20, 23));
      (in_key ? k : v).set(in_key ? 2 * 3 * 64 + 70 : 2 * 3 * 96 + 100, bad);
      const Status refused = f.cache.write(step, 0, k, v);
      EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
      const std::string id = std::to_string(static_cast<std::int64_t>(a));
      EXPECT_EQ(refused.message(),
                std::string(in_key ? "k" : "v") + ", sequence " + id +
                    ", token 7: found elements that are not finite, or too large for a scale of 16 "
                    "bits, expected what " +
                    name_of(format().kind) + " can store");
    }
  }
  ASSERT_OK(f.cache.commit(step));
  f.expect_holds(a, range(0, 8));
  EXPECT_EQ(f.cache.stats().rows_encoded, 8 * 4);
}

INSTANTIATE_TEST_SUITE_P(Forms, PagedCoded,
                         ::testing::Combine(::testing::ValuesIn(coded_forms()),
                                            ::testing::Values(Layout::kHND, Layout::kNHD)),
                         [](const auto& each) {
                           return std::get<0>(each.param).name + "_" +
                                  name_of(std::get<1>(each.param));
                         });

TEST(PagedCodedForms, ARowOfEightHeadsOf128WeighsWhatTheSpecificationSays) {
  const auto bytes = [](const RowFormat& format) {
    return bytes_per_token(LayerSpec::kv(8, 128, 128, format, format));
  };
  EXPECT_EQ(bytes(kInt8), 2080);
  EXPECT_EQ(bytes(kLm4), 1056);
  EXPECT_EQ(bytes(coded(RowFormat::kInt4, true)), 1216);
}

TEST(PagedCodedForms, WhatAFormDoesNotAllowIsRefusedByName) {
  const auto message = [](const RowFormat& k, std::int64_t dim) {
    const LayerSpec spec = LayerSpec::kv(2, dim, 64, k, kInt8);
    const auto cache = PagedCache::create(CodedFixture::config({spec}, Layout::kHND, 4, 8));
    return cache.ok() ? "ok" : cache.status().message();
  };
  EXPECT_EQ(message(kInt8, 7), "ok");
  EXPECT_EQ(message(coded(RowFormat::kInt4), 80),
            "layers[0].key.dim: found 80, expected a multiple of 32 for int4");
  EXPECT_EQ(message(coded(RowFormat::kInt8, true), 72),
            "layers[0].key.dim: found 72, expected a multiple of 16 in rotated rows for int8");
  EXPECT_EQ(message(kLm4, 8192),
            "layers[0].key.dim: found 8192, expected 1 .. 4096 in coded rows for lm4");
  RowFormat turned = plain(DType::kF32);
  turned.rotate = true;
  EXPECT_EQ(message(turned, 64),
            "layers[0].key.format.rotate: found true, expected false in plain rows");
  RowFormat flat = kLm4;
  flat.rotate = false;
  EXPECT_EQ(message(flat, 64),
            "layers[0].key.format.rotate: found false, expected true, which is part of lm4");
  RowFormat unknown;
  unknown.kind = static_cast<RowFormat::Kind>(99);
  EXPECT_EQ(message(unknown, 64),
            "layers[0].key.format.kind: found 99, expected a kind of RowFormat");
}

// What plan_memory says that one sequence of `tokens` takes.
std::int64_t planned_bytes(const CacheConfig& config, std::int64_t tokens) {
  MemoryPlanRequest request;
  request.layers = config.layers;
  request.page_size = config.page_size;
  request.layout = config.layout;
  request.seq_length = tokens;
  request.num_pages = config.num_pages;
  return plan_memory(CacheKind::kPaged, request).value().reserved_bytes;
}

// Operations on coded and mixed caches beside the plainest model: a vector of tokens a sequence.
// KVCACHE_SOAK_OPERATIONS: how many (1 000 000 is the specification's).
TEST(PagedCodedSoak, RandomOperationsNeverLoseOrChangeACode) {
  const char* text = std::getenv("KVCACHE_SOAK_OPERATIONS");
  const std::int64_t operations = text == nullptr ? 4000 : std::atoll(text);
  Life window;
  window.window = 5;
  window.sink_tokens = 1;
  const std::vector<std::vector<LayerSpec>> caches = {
      {LayerSpec::kv(2, 32, 32, kInt8, kLm4), LayerSpec::kv(1, 64, 32, plain(DType::kF32), kInt8)},
      {LayerSpec::kv(1, 32, 32, coded(RowFormat::kInt4, true), coded(RowFormat::kQ8_0)),
       LayerSpec::kv(2, 32, 16, coded(RowFormat::kQ4_0, true), coded(RowFormat::kFp8E4M3))
           .living(window)},
  };
  for (std::size_t which = 0; which < caches.size(); ++which) {
    const Layout layout = which == 0 ? Layout::kHND : Layout::kNHD;
    TestMemory memory;
    CacheConfig config = CodedFixture::config(caches[which], layout, 4, 24);
    config.memory = &memory;
    // Of two groups: memory goes from one to the other.
    if (which == 1) {
      config.budget_bytes = planned_bytes(config, 40);
      config.num_pages = 0;
    }
    CodedFixture f(config);
    std::mt19937 random(static_cast<std::uint32_t>(18 + which));
    std::map<SequenceId, TokenIds> model;
    std::int64_t committed = 0;
    const auto below = [&](std::int64_t n) {
      return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
    };
    const auto any = [&] {
      return std::next(model.begin(), below(static_cast<std::int64_t>(model.size())));
    };
    for (std::int64_t op = 0; op < operations && !::testing::Test::HasFailure(); ++op) {
      const std::int64_t kind = below(10);
      if (model.empty() || (kind == 0 && model.size() < 6)) {
        if (const auto opened = f.cache.open(); opened.ok()) model[*opened] = {};
      } else if (kind == 1) {
        const auto it = any();
        ASSERT_OK(f.cache.release(it->first));
        model.erase(it);
      } else if (kind == 2 && model.size() < 6) {
        const auto it = any();
        const std::int64_t length = below(static_cast<std::int64_t>(it->second.size()) + 1);
        if (const auto child = f.cache.fork(it->first, length); child.ok()) {
          model[*child] = {it->second.begin(), it->second.begin() + length};
        }
      } else if (kind == 3) {
        const auto it = any();
        const std::int64_t length = below(static_cast<std::int64_t>(it->second.size()) + 1);
        if (f.cache.truncate(it->first, length).ok())
          it->second.resize(static_cast<std::size_t>(length));
      } else if (kind == 4) {
        std::vector<SequenceId> seqs;
        for (const auto& each : model) seqs.push_back(each.first);
        HostTensor beams(DType::kI64, {static_cast<std::int64_t>(seqs.size())});
        std::map<SequenceId, TokenIds> next;
        for (std::size_t i = 0; i < seqs.size(); ++i) {
          const std::int64_t from = below(static_cast<std::int64_t>(seqs.size()));
          beams.set(static_cast<std::int64_t>(i), from);
          next[seqs[i]] = model[seqs[static_cast<std::size_t>(from)]];
        }
        const Status reordered = f.cache.reorder(seqs, beams);
        if (reordered.ok()) model = next;
        ASSERT_TRUE(reordered.ok() || reordered.code() == StatusCode::kRetryLater);
      } else {
        const auto it = any();
        TokenIds tokens(static_cast<std::size_t>(below(7)));
        for (std::int64_t& token : tokens) token = below(kDistinct);
        const Append append{it->first, static_cast<std::int64_t>(tokens.size())};
        auto step = f.cache.reserve({&append, 1});
        if (!step.ok()) continue;
        if (kind == 5) ASSERT_OK(f.write(*step, TokenIds(tokens.size(), below(kDistinct))));
        if (kind != 6) ASSERT_OK(f.write(*step, tokens));
        if (kind <= 6) {
          ASSERT_OK(f.cache.rollback(*step));
          continue;
        }
        const std::int64_t accepted =
            kind == 7 ? below(static_cast<std::int64_t>(tokens.size()) + 1) : append.count;
        ASSERT_OK(f.cache.commit(*step, {&accepted, 1}));
        it->second.insert(it->second.end(), tokens.begin(), tokens.begin() + accepted);
        committed += accepted;
      }
      const std::int64_t buffers = which == 0 ? 3 : 4;
      ASSERT_EQ(f.cache.stats().rows_encoded, committed * buffers);
      if (op % 16 != 0) continue;
      ASSERT_OK(f.cache.check_invariants());
      for (const auto& [seq, tokens] : model) f.expect_holds(seq, tokens);
    }
  }
}

}  // namespace
}  // namespace kvcache::testing
