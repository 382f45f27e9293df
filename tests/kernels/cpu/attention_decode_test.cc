// attend_cut on decode's path over cuts of 2048 keys: values against float64, and what the bits of
// a row do not depend on.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cut_rows.h"
#include "support/slow.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kFirst = kLongCutKeys;  // of the cut: behind one as long

struct Dims {
  std::int32_t k, v;
};
constexpr Dims kDims[] = {{64, 64}, {80, 80}, {96, 96}, {128, 128}, {192, 128}, {576, 512}};

std::int64_t padded(std::int64_t n) { return (n + kRowPadding - 1) / kRowPadding * kRowPadding; }

// A row of the result.
struct Attended {
  float max, sum;
  std::vector<float> acc;

  bool operator==(const Attended& other) const {
    return std::memcmp(&max, &other.max, sizeof(max)) == 0 &&
           std::memcmp(&sum, &other.sum, sizeof(sum)) == 0 &&
           std::memcmp(acc.data(), other.acc.data(), acc.size() * sizeof(float)) == 0;
  }
};

// Queries over rows of a part that begins `dropped` keys behind the first of the cut.
struct Case {
  DType dtype = DType::kF32;
  Dims dims{64, 64};
  std::int32_t queries = 1, group = 4;
  std::int64_t dropped = 0, length = kLongCutKeys;
  std::int64_t begin = 0, end = kLongCutKeys;  // rows of the part
  std::int64_t window = 0;
  std::vector<float> q;     // [queries * group, k padded]
  std::vector<float> k, v;  // [length, dim]
};

Case random_case(std::mt19937& random, DType dtype, Dims dims, std::int32_t queries,
                 std::int32_t group, std::int64_t dropped, std::int64_t length) {
  Case c;
  c.dtype = dtype;
  c.dims = dims;
  c.queries = queries;
  c.group = group;
  c.dropped = dropped;
  c.length = length;
  c.end = std::min(length, kLongCutKeys - dropped);
  std::normal_distribution<float> normal;
  c.q.assign(static_cast<std::size_t>(queries * group * padded(dims.k)), 0.0f);
  for (std::int64_t r = 0; r < queries * group; ++r) {
    for (std::int64_t d = 0; d < dims.k; ++d) {
      c.q[static_cast<std::size_t>(r * padded(dims.k) + d)] =
          2 * normal(random) / std::sqrt(static_cast<float>(dims.k));
    }
  }
  for (std::int64_t i = 0; i < length * dims.k; ++i) c.k.push_back(normal(random));
  for (std::int64_t i = 0; i < length * dims.v; ++i) c.v.push_back(normal(random));
  return c;
}

// Rows of the case in pages of a shuffled table; page_size 0: contiguous, no table.
struct Stored {
  std::vector<std::int32_t> table;
  Rows k, v;
  KvRows kv;

  Stored(const Case& c, std::int64_t page_size) {
    std::mt19937 random(static_cast<std::uint32_t>(page_size));
    const std::int64_t rows_of_page = page_size == 0 ? c.length : page_size;
    for (std::int64_t page = 0; page * rows_of_page < c.length; ++page) {
      const auto at = static_cast<std::ptrdiff_t>(random() % static_cast<std::size_t>(page + 1));
      table.insert(table.begin() + at, static_cast<std::int32_t>(page));
    }
    k = rows_like(c, c.k, c.dims.k, rows_of_page);
    v = rows_like(c, c.v, c.dims.v, rows_of_page);
    kv.k = strided_rows(k.at(0, 0), c.dtype, rows_of_page * c.dims.k, 0, c.dims.k);
    kv.v = strided_rows(v.at(0, 0), c.dtype, rows_of_page * c.dims.v, 0, c.dims.v);
    kv.page_size = rows_of_page;
    kv.block_table = page_size == 0 ? nullptr : table.data();
    kv.num_rows = c.length;
    kv.first_index = kFirst + c.dropped;
  }

 private:
  Rows rows_like(const Case& c, const std::vector<float>& values, std::int64_t dim,
                 std::int64_t page_size) const {
    Rows rows;
    rows.dtype = c.dtype;
    rows.dim = dim;
    rows.page_size = page_size;
    const auto slots = static_cast<std::int64_t>(table.size()) * page_size;
    rows.stored.assign(static_cast<std::size_t>(slots * dim * size_of(c.dtype) / 4 + 1),
                       0xffffffffu);  // NaN
    for (std::int64_t r = 0; r < c.length; ++r) {
      std::byte* to = rows.at(table[static_cast<std::size_t>(r / page_size)], r % page_size);
      for (std::int64_t d = 0; d < dim; ++d) {
        float stored = 0;
        put(c.dtype, values[static_cast<std::size_t>(r * dim + d)], to + d * size_of(c.dtype),
            &stored);
        rows.values.push_back(stored);
      }
    }
    return rows;
  }
};

// Queries first .. first + count of the case, causal: the last one sees all rows before `end`.
std::vector<Attended> attend(const AttentionKernels& kernels, const Case& c, const Stored& stored,
                             Prefetch prefetch, std::int32_t first, std::int32_t count) {
  const std::int64_t rows = std::int64_t{count} * c.group;
  std::vector<std::int64_t> position;
  for (std::int32_t i = first; i < first + count; ++i) {
    position.push_back(stored.kv.first_index + c.end - c.queries + i);
  }
  QueryTile tile;
  tile.num_queries = count;
  tile.group = c.group;
  tile.k_dim = c.dims.k;
  tile.v_dim = c.dims.v;
  tile.path = Path::kDecode;
  tile.prefetch = prefetch;
  tile.q = c.q.data() + first * c.group * padded(c.dims.k);
  tile.position = position.data();
  tile.window = c.window;
  CutTask task;
  task.tile = &tile;
  task.rows = &stored.kv;
  task.begin = c.begin;
  task.end = c.end;
  task.cut = {kFirst, kLongCutKeys};
  task.next = {kFirst + kLongCutKeys, kLongCutKeys};
  task.causal_end = c.end - c.queries + first + 1;
  std::vector<float> max(static_cast<std::size_t>(rows), NAN), sum(max),
      acc(static_cast<std::size_t>(rows * padded(c.dims.v)), NAN);
  task.partial = {max.data(), sum.data(), acc.data()};
  std::vector<std::byte> memory(
      static_cast<std::size_t>(kernels.scratch_bytes(rows, c.dims.k, c.dims.v)) + 64);
  task.scratch = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
  kernels.attend_cut(task);
  std::vector<Attended> results;
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto from = acc.begin() + r * padded(c.dims.v);
    const auto i = static_cast<std::size_t>(r);
    results.push_back({max[i], sum[i], {from, from + c.dims.v}});
  }
  return results;
}

void expect_values(const Case& c, const Stored& stored, const std::vector<Attended>& found) {
  for (std::size_t r = 0; r < found.size(); ++r) {
    const auto query = static_cast<std::int64_t>(r) / c.group;
    const std::int64_t end = c.end - c.queries + 1 + query;
    const std::int64_t begin = c.window == 0 ? c.begin : std::max(c.begin, end - c.window);
    std::vector<double> weights, expected(static_cast<std::size_t>(c.dims.v));
    double top = -INFINITY;
    for (std::int64_t j = begin; j < end; ++j) {
      double s = 0;
      for (std::int64_t d = 0; d < c.dims.k; ++d) {
        s +=
            static_cast<double>(
                c.q[r * static_cast<std::size_t>(padded(c.dims.k)) + static_cast<std::size_t>(d)]) *
            stored.k.values[static_cast<std::size_t>(j * c.dims.k + d)];
      }
      weights.push_back(s);
      top = std::max(top, s);
    }
    double total = 0, square = 0, wrong = 0;
    for (double& w : weights) total += w = std::exp(w - top);
    for (std::int64_t d = 0; d < c.dims.v; ++d) {
      double x = 0;
      for (std::int64_t j = begin; j < end; ++j) {
        x += weights[static_cast<std::size_t>(j - begin)] / total *
             stored.v.values[static_cast<std::size_t>(j * c.dims.v + d)];
      }
      const double error = found[r].acc[static_cast<std::size_t>(d)] / found[r].sum - x;
      square += x * x;
      wrong += error * error;
    }
    EXPECT_LT(std::sqrt(wrong / square), 2e-6) << "row " << r;
    EXPECT_NEAR(found[r].max + std::log(found[r].sum), top + std::log(total), 2e-5);
  }
}

class AttentionDecodeTest : public ::testing::TestWithParam<Kernels> {
 protected:
  const AttentionKernels& kernels() const { return *GetParam().functions; }
};

TEST_P(AttentionDecodeTest, LongCutsAgreeWithTheDefinition) {
  std::mt19937 random(5);
  int round = 0;
  for (const Dims dims : kDims) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      if (testing::kSlow && round % 5 != 0) {
        ++round;
        continue;
      }
      Case c = random_case(random, dtype, dims, 1 + round % 2, 1 + round % 8, 0, kLongCutKeys);
      expect_values(c, Stored(c, 0),
                    attend(kernels(), c, Stored(c, 0), Prefetch::kL1, 0, c.queries));
      // Partly seen: cut off in the first, the second, the last quarter, and from the front.
      constexpr std::int64_t kEnds[] = {5, 333, 700, 1024, 1999, 2047};
      c.end = kEnds[round % 6];
      c.begin = round % 3 == 2 ? c.end / 3 : 0;
      c.window = round % 4 == 3 ? 1 + c.end / 2 : 0;
      const std::int64_t page_size = std::vector<std::int64_t>{1, 3, 16, 128}[round % 4];
      SCOPED_TRACE(std::to_string(dims.k) + " to " + std::to_string(c.end));
      const Stored stored(c, page_size);
      expect_values(c, stored, attend(kernels(), c, stored, Prefetch::kRuns, 0, c.queries));
      ++round;
    }
  }
}

TEST_P(AttentionDecodeTest, PagesAndPrefetchingMoveNoBit) {
  std::mt19937 random(6);
  constexpr std::int64_t kLengths[] = {2048, 2300, 1000, 1537, 19};  // 2300: of the next cut too
  for (int round = 0; round < 5; ++round) {
    const Case c = random_case(random, static_cast<DType>(round % 3), kDims[round], 1,
                               1 + round * 2, round % 2 * 37, kLengths[round]);
    const auto expected = attend(kernels(), c, Stored(c, 0), Prefetch::kNone, 0, 1);
    for (const std::int64_t page_size : {0, 1, 3, 16, 64, 128}) {
      const Stored stored(c, page_size);
      for (const Prefetch level :
           {Prefetch::kNone, Prefetch::kRuns, Prefetch::kL1, Prefetch::kL2, Prefetch::kL3}) {
        if (testing::kSlow && level != Prefetch::kRuns && level != Prefetch::kL1) continue;
        EXPECT_EQ(attend(kernels(), c, stored, level, 0, 1), expected)
            << "pages of " << page_size << ", round " << round;
      }
    }
  }
}

TEST_P(AttentionDecodeTest, TheCompanyOfOtherRowsMovesNoBit) {
  std::mt19937 random(7);
  for (const std::int64_t window : {0, 100, 1500}) {
    for (const std::int32_t group : {1, 3, 5}) {
      if (testing::kSlow && group != 3) continue;
      Case c = random_case(random, DType::kBF16, {80, 72}, 8, group, 11, 1700);
      c.window = window;
      const Stored stored(c, 16);
      const auto together = attend(kernels(), c, stored, Prefetch::kL1, 0, c.queries);
      for (std::int32_t query = 0; query < c.queries; ++query) {
        const auto alone = attend(kernels(), c, stored, Prefetch::kL1, query, 1);
        for (std::int32_t member = 0; member < group; ++member) {
          EXPECT_EQ(alone[static_cast<std::size_t>(member)],
                    together[static_cast<std::size_t>(query * group + member)])
              << "query " << query << ", window " << window;
        }
      }
    }
  }
}

TEST_P(AttentionDecodeTest, HiddenRowsOfNanReachNobody) {
  std::mt19937 random(8);
  for (const std::int64_t end : {1, 40, 511, 513, 1600}) {
    Case c = random_case(random, DType::kF16, {64, 64}, 2, 4, 0, kLongCutKeys);
    c.end = end;
    c.queries = end == 1 ? 1 : 2;
    Case clean = c;
    for (std::int64_t i = end * 64; i < kLongCutKeys * 64; ++i) {
      c.k[static_cast<std::size_t>(i)] = c.v[static_cast<std::size_t>(i)] = NAN;
    }
    EXPECT_EQ(attend(kernels(), c, Stored(c, 16), Prefetch::kL1, 0, c.queries),
              attend(kernels(), clean, Stored(clean, 0), Prefetch::kNone, 0, c.queries))
        << end;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionDecodeTest, ::testing::ValuesIn(all_kernels()),
                         [](const auto& kernels) { return kernels.param.name; });

}  // namespace
}  // namespace kvcache::internal
