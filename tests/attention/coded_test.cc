// Attention over coded rows: every backend against the float64 reference over the decoded rows, for
// every form, head size, page size and path; and determinism as over plain rows.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/check.h"
#include "support/coded.h"
#include "support/random_attention.h"
#include "support/slow.h"

namespace kvcache::testing {
namespace {

struct HeadSize {
  std::int32_t k, v;
};

const auto kSizes = unless_slow<std::vector<HeadSize>>(
    {{64, 64}, {80, 80}, {96, 96}, {128, 128}, {192, 128}, {576, 512}}, {{80, 80}, {128, 128}});
const auto kQueries = unless_slow<std::vector<std::int32_t>>({1, 8, 12}, {1, 12});

// The same call over rows that were encoded and decoded, plain in f32.
AttentionCase decoded(AttentionCase c) {
  for (std::size_t s = 0; s < c.data.lengths.size(); ++s) {
    for (std::int64_t row = 0; row < c.data.lengths[s]; ++row) {
      for (std::int64_t head = 0; head < c.data.num_kv_heads; ++head) {
        float* const k = c.data.k_row(s, row, head);
        float* const v = c.data.v_row(s, row, head);
        const std::vector<float> k_row = coded_and_back(c.storage.k_format, k, c.data.k_dim);
        const std::vector<float> v_row = coded_and_back(c.storage.v_format, v, c.data.v_dim);
        std::copy(k_row.begin(), k_row.end(), k);
        std::copy(v_row.begin(), v_row.end(), v);
      }
    }
  }
  c.storage = KvStorageOptions();
  return c;
}

// The bounds of the specification, section 9.4.
double most_error(const AttentionCase& c) {
  bool prefill = false;
  for (const std::int32_t queries : c.queries) prefill |= queries > internal::kDecodeQueries;
  if (prefill && !c.options.reproducible) return 5e-3;
  return is_of_8_bits(c.storage.k_format) && is_of_8_bits(c.storage.v_format) ? 1e-3 : 2e-3;
}

void expect_near_decoded(const AttentionCase& c, const std::string& backend,
                         const Attended& expected) {
  SCOPED_TRACE(backend + ": " + describe(c));
  expect_close(c.run(backend), expected, most_error(c), most_error(c));
}

AttentionCase make_case(const RowFormat& k, const RowFormat& v, HeadSize size,
                        std::vector<std::int32_t> lengths, std::int32_t queries) {
  AttentionCase c;
  c.queries.assign(lengths.size(), queries);
  c.data = KvRowsData(std::move(lengths), 2, size.k, size.v);
  c.num_heads = 4;
  c.storage.k_format = k;
  c.storage.v_format = v;
  std::mt19937 rng(31);
  c.randomize(rng);
  c.options.scale = 1 / std::sqrt(static_cast<float>(size.k));
  return c;
}

class AttentionOverCodes : public ::testing::TestWithParam<FormCase> {
 protected:
  const RowFormat& format() const { return GetParam().format; }
};

TEST_P(AttentionOverCodes, EveryHeadSizeAndPathIsThatOfTheDecodedRows) {
  for (const HeadSize size : kSizes) {
    if (internal::wanted_elements(format(), size.k) != nullptr) continue;
    for (const std::int32_t queries : kQueries) {
      AttentionCase c = make_case(format(), format(), size, {33, 530}, queries);
      const Attended expected = decoded(c).run("reference");
      c.storage.page_size = 16;
      c.storage.shuffle = 5;
      for (const std::string& backend : backend_names(queries == 1)) {
        expect_near_decoded(c, backend, expected);
      }
      if (queries < 12) continue;
      c.options.reproducible = true;
      for (const std::string& backend : backend_names(false)) {
        expect_near_decoded(c, backend, expected);
      }
    }
  }
}

// Rows end within a vector and behind several scales; query rows are taken by one, three and more
// than a chunk.
TEST_P(AttentionOverCodes, OddSizesAndNumbersOfQueryRowsAreThoseOfTheDecodedRows) {
  for (const HeadSize size : {HeadSize{20, 20}, HeadSize{72, 40}, HeadSize{300, 300},
                              HeadSize{1024, 64}, HeadSize{1056, 1056}}) {
    if (internal::wanted_elements(format(), size.k) != nullptr) continue;
    if (internal::wanted_elements(format(), size.v) != nullptr) continue;
    for (const std::int32_t heads : unless_slow<std::vector<std::int32_t>>({2, 6, 74}, {6})) {
      AttentionCase c = make_case(format(), format(), size, {33, 90}, 1);
      c.num_heads = heads;
      std::mt19937 rng(7);
      c.randomize(rng);
      const Attended expected = decoded(c).run("reference");
      c.storage.page_size = 16;
      for (const std::string& backend : backend_names(false)) {
        expect_near_decoded(c, backend, expected);
      }
    }
  }
}

TEST_P(AttentionOverCodes, PagesPartsLayoutsAndThreadsMoveNoBit) {
  auto pool = make_thread_pool(3).value();
  for (const std::int32_t queries : kQueries) {
    AttentionCase c =
        make_case(format(), format(), {64, 96}, {700, 90, unless_slow(2100, 530)}, queries);
    for (const std::string& backend : backend_names(false)) {
      c.storage.page_size = 0;
      c.storage.layout = Layout::kHND;
      const Attended expected = c.run(backend);
      expect_same_bits(c.run(backend, *pool), expected, backend + ", 3 threads");
      const KvStorage dense(c.data, c.storage);
      const Attended alone = c.run_alone(dense.view(), 1, backend);
      const std::size_t row = static_cast<std::size_t>(queries) * 4 * 96;
      expect_same_bits(alone.out,
                       {expected.out.begin() + static_cast<std::ptrdiff_t>(row),
                        expected.out.begin() + static_cast<std::ptrdiff_t>(2 * row)},
                       backend + ", alone");
      for (const std::int32_t page_size :
           unless_slow<std::vector<std::int32_t>>({1, 16, 60, 512}, {1, 60})) {
        c.storage.page_size = page_size;
        c.storage.shuffle = static_cast<std::uint32_t>(page_size);
        c.storage.layout = page_size == 60 ? Layout::kNHD : Layout::kHND;
        expect_same_bits(c.run(backend), expected,
                         backend + ", pages of " + std::to_string(page_size));
      }
    }
  }
}

// One key outweighs the others by 17 000 times, whose values are all alike, so that nothing levels
// what rounding takes of their weights.
TEST_P(AttentionOverCodes, WeightsBesideAnOverwhelmingOneAreNotLost) {
  constexpr std::int32_t kDim = 64;
  for (const std::int32_t rows : {64, 90, 600}) {
    AttentionCase c = make_case(format(), format(), {kDim, kDim}, {rows}, 1);
    std::fill(c.q.begin(), c.q.end(), 0.0f);
    for (std::size_t head = 0; head < 4; ++head) c.q[head * kDim] = 8;
    std::mt19937 rng(3);
    std::vector<float> value(kDim);
    for (float& x : value) x = static_cast<float>(rng() % 2001) / 1000 - 1;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t head = 0; head < c.data.num_kv_heads; ++head) {
        float* const key = c.data.k_row(0, row, head);
        std::fill(key, key + kDim, 0.0f);
        key[0] = row == 7 ? 9.75f : 0.0f;
        float* const to = c.data.v_row(0, row, head);
        for (std::size_t d = 0; d < kDim; ++d) to[d] = row == 7 ? -value[d] : value[d];
      }
    }
    const Attended expected = decoded(c).run("reference");
    for (const std::string& backend : backend_names(false)) {
      expect_near_decoded(c, backend, expected);
    }
  }
}

// An element of a query that is many times the others, where keys hold next to nothing.
TEST_P(AttentionOverCodes, ALargeElementOfAQueryDoesNotDrownTheOthers) {
  constexpr std::int32_t kDim = 128;
  AttentionCase c = make_case(format(), format(), {kDim, kDim}, {512}, 1);
  for (std::size_t head = 0; head < 4; ++head) c.q[head * kDim + 40] = 30;
  for (std::int64_t row = 0; row < 512; ++row) {
    for (std::int64_t head = 0; head < c.data.num_kv_heads; ++head) {
      c.data.k_row(0, row, head)[40] *= 0.01f;
    }
  }
  const Attended expected = decoded(c).run("reference");
  for (const std::string& backend : backend_names(false)) {
    expect_near_decoded(c, backend, expected);
  }
}

// A row whose scale is NaN, as memory that nobody encoded has it, reaches the queries that see it
// and no other, though it stands in the same step as theirs.
TEST_P(AttentionOverCodes, ScalesOfHiddenRowsReachNobody) {
  constexpr std::uint16_t kNaN = 0x7e00;
  constexpr std::int32_t kDim = 64;
  constexpr std::int32_t kRows = 90;
  const AttentionCase c = make_case(format(), format(), {kDim, kDim}, {kRows}, 2);
  const KvStorage stored(c.data, c.storage);
  const std::size_t first = static_cast<std::size_t>(c.num_heads) * kDim;  // of the first query
  for (const std::string& backend : backend_names(false)) {
    const Attended expected = c.run_on(stored.view(), backend);
    const KvStorage poisoned(c.data, c.storage);
    const RowsView& values = poisoned.view().parts[0].v;
    for (std::int64_t head = 0; head < c.data.num_kv_heads; ++head) {
      const std::byte* scale = format().num_scales(kDim) > 0
                                   ? values.scales_at(0, head) + (kRows - 1) * 2
                                   : values.row_at(0, head, kRows - 1);
      std::memcpy(const_cast<std::byte*>(scale), &kNaN, sizeof(kNaN));
    }
    const Attended found = c.run_on(poisoned.view(), backend);
    expect_same_bits(
        {found.out.begin(), found.out.begin() + static_cast<std::ptrdiff_t>(first)},
        {expected.out.begin(), expected.out.begin() + static_cast<std::ptrdiff_t>(first)},
        backend + ", the query that does not see the row");
    EXPECT_TRUE(std::isnan(found.out[first])) << backend << ", the query that sees it";
  }
}

TEST_P(AttentionOverCodes, WindowsSinksMasksAndPartsAreThoseOfTheDecodedRows) {
  for (const std::int32_t queries : {2, 9}) {
    AttentionCase c = make_case(format(), format(), {64, 64}, {530, 200}, queries);
    c.options.window = 130;
    c.options.sink_tokens = 5;
    c.options.softcap = 20;
    c.alibi_slopes = {0.1f, 0.2f, 0.3f, 0.4f};
    c.sinks = {0, 1, 2, -1};
    const Attended expected = decoded(c).run("reference");
    c.storage.page_size = 16;
    for (const std::string& backend : backend_names(true)) {
      expect_near_decoded(c, backend, expected);
    }
    c.storage.parts = {{200, 200}, {330, 0}};
    for (const std::string& backend : backend_names(false)) {
      expect_near_decoded(c, backend, expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, AttentionOverCodes, ::testing::ValuesIn(coded_forms()),
                         [](const auto& each) { return each.param.name; });

TEST(AttentionOverMixedForms, KeysAndValuesChooseTheirFormsApart) {
  std::vector<FormCase> forms = coded_forms();
  forms.push_back({"plain", plain(DType::kF32)});
  for (const FormCase& k : forms) {
    for (const FormCase& v : forms) {
      for (const std::int32_t queries : {1, 9}) {
        if (kSlow && (k.name < v.name) == (queries == 1)) continue;
        AttentionCase c = make_case(k.format, v.format, {64, 32}, {20, 70}, queries);
        const Attended expected = decoded(c).run("reference");
        c.storage.page_size = 16;
        for (const std::string& backend : backend_names(true)) {
          SCOPED_TRACE(k.name + ", " + v.name);
          expect_near_decoded(c, backend, expected);
        }
      }
    }
  }
}

TEST(AttentionOverMixedForms, PartsThatAreTurnedAndNotAreRefusedByName) {
  AttentionCase c = make_case(coded(RowFormat::kInt8), coded(RowFormat::kInt8), {64, 64}, {40}, 1);
  c.storage.parts = {{30}, {10}};
  KvStorage stored(c.data, c.storage);
  EXPECT_TRUE(internal::check_view(stored.view()).ok());
  stored.part(1).k.format.rotate = true;
  const Status refused = internal::check_view(stored.view());
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.message(),
            "kv.parts[1].k.format.rotate: found true, expected false, as in the part before it");
}

TEST(AttentionOverMixedForms, SizesThatAFormDoesNotAllowAreRefusedByName) {
  AttentionCase c = make_case(coded(RowFormat::kInt8), coded(RowFormat::kInt8), {40, 64}, {40}, 1);
  KvStorage stored(c.data, c.storage);
  stored.part(0).k.format = coded(RowFormat::kInt4);
  EXPECT_EQ(internal::check_view(stored.view()).message(),
            "kv.parts[0].k.format: found 40 elements, expected a multiple of 32 for int4");
}

TEST(AttentionOverMixedForms, ResultsOnCodesOrScalesAreRefused) {
  AttentionCase c = make_case(coded(RowFormat::kInt8), coded(RowFormat::kInt4), {64, 64}, {40}, 1);
  const KvStorage stored(c.data, c.storage);
  const KvPart& part = stored.view().parts[0];
  const std::vector<std::int32_t> indptr = {0, 1};
  const HostTensor q = tensor_of<float>({1, 4, 64}, c.q);
  HostTensor own(DType::kF32, {1, 4, 64});
  const auto status = [&](const std::byte* at) {
    MutableTensorView out = own.mutable_view();
    out.data = const_cast<std::byte*>(at);
    internal::AttentionProblem problem;
    return internal::bind_problem(q, indptr, stored.view(), out, {}, 4, c.options, &problem).code();
  };
  for (const RowsView& rows : {part.k, part.v}) {
    EXPECT_EQ(status(rows.row_at(0, 1, 3)), StatusCode::kInvalidArgument);
    EXPECT_EQ(status(rows.scales_at(0, 1)), StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(status(static_cast<const std::byte*>(own.view().data)), StatusCode::kOk);
}

}  // namespace
}  // namespace kvcache::testing
