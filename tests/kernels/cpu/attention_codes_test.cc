// attend_cut on decode's path over coded rows: every form and every kernel, those of vectors that
// this processor does not have too, against float64 over what the codes stand for.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cut_rows.h"
#include "support/coded.h"
#include "support/kv_fixture.h"
#include "support/slow.h"

namespace kvcache::internal {
namespace {

using testing::KvRowsData;
using testing::KvStorage;
using testing::KvStorageOptions;

std::int64_t padded(std::int64_t n) { return (n + kRowPadding - 1) / kRowPadding * kRowPadding; }

// One query of `group` heads over all rows of a sequence, in pages of `page_size`; 0: one array.
struct Case {
  KvRowsData data;
  std::int32_t group;
  std::vector<float> q;  // [group, k padded]

  Case(std::int32_t length, std::int32_t k_dim, std::int32_t v_dim, std::int32_t group_in)
      : data({length}, 1, k_dim, v_dim), group(group_in) {
    std::mt19937 random(static_cast<std::uint32_t>(length + k_dim + group));
    data.randomize(random);
    std::normal_distribution<float> normal;
    q.assign(static_cast<std::size_t>(group * padded(k_dim)), 0.0f);
    for (std::int32_t r = 0; r < group; ++r) {
      for (std::int32_t d = 0; d < k_dim; ++d) {
        q[static_cast<std::size_t>(r * padded(k_dim) + d)] =
            2 * normal(random) / std::sqrt(static_cast<float>(k_dim));
      }
    }
  }

  KvStorage stored(const RowFormat& format, std::int32_t page_size) const {
    KvStorageOptions options;
    options.k_format = options.v_format = format;
    options.page_size = page_size;
    options.shuffle = static_cast<std::uint32_t>(page_size);
    return KvStorage(data, options);
  }
};

// [group, v_dim + 1] results, and behind each the logarithm of its sum.
std::vector<float> attend(const AttentionKernels& kernels, const Case& c, const KvStorage& stored,
                          Prefetch prefetch) {
  const KvPart& part = stored.view().parts[0];
  const std::int64_t length = c.data.lengths[0];
  KvRows rows;
  rows.k = part.k;
  rows.v = part.v;
  rows.page_size = part.page_size;
  rows.block_table = part.block_table;
  rows.num_rows = length;
  const std::int64_t position = length - 1;
  QueryTile tile;
  tile.num_queries = 1;
  tile.group = c.group;
  tile.k_dim = c.data.k_dim;
  tile.v_dim = c.data.v_dim;
  tile.path = Path::kDecode;
  tile.prefetch = prefetch;
  tile.q = c.q.data();
  tile.position = &position;
  CutTask task;
  task.tile = &tile;
  task.rows = &rows;
  task.end = length;
  task.causal_end = length;
  const auto group = static_cast<std::size_t>(c.group);
  const auto stride = static_cast<std::size_t>(padded(c.data.v_dim));
  std::vector<float> max(group, NAN), sum(group, NAN), acc(group * stride, NAN);
  task.partial = {max.data(), sum.data(), acc.data()};
  std::vector<std::byte> memory(
      static_cast<std::size_t>(kernels.scratch_bytes(c.group, c.data.k_dim, c.data.v_dim)) + 64,
      std::byte{0xff});
  task.scratch = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
  kernels.attend_cut(task);
  std::vector<float> results;
  for (std::size_t r = 0; r < group; ++r) {
    for (std::int32_t d = 0; d < c.data.v_dim; ++d) {
      results.push_back(acc[r * stride + static_cast<std::size_t>(d)] / sum[r]);
    }
    results.push_back(max[r] + std::log(sum[r]));
  }
  return results;
}

std::vector<float> decoded(const RowsView& rows, const std::int32_t* table, std::int64_t page_size,
                           std::int64_t row, std::int64_t dim) {
  std::vector<float> to(static_cast<std::size_t>(dim));
  decode_rotated(rows.format, coded_row_at(rows, table[row / page_size], 0, row % page_size), dim,
                 to.data());
  return to;
}

std::vector<float> definition(const Case& c, const KvStorage& stored) {
  const KvPart& part = stored.view().parts[0];
  const auto v_dim = static_cast<std::size_t>(c.data.v_dim);
  std::vector<float> results;
  for (std::int32_t r = 0; r < c.group; ++r) {
    std::vector<double> weights, out(v_dim);
    double top = -INFINITY, total = 0;
    for (std::int32_t row = 0; row < c.data.lengths[0]; ++row) {
      const auto key = decoded(part.k, part.block_table, part.page_size, row, c.data.k_dim);
      const float* const q = c.q.data() + r * padded(c.data.k_dim);
      double score = 0;
      for (std::size_t d = 0; d < key.size(); ++d) score += double{q[d]} * key[d];
      weights.push_back(score);
      top = std::max(top, score);
    }
    for (double& weight : weights) total += weight = std::exp(weight - top);
    for (std::int32_t row = 0; row < c.data.lengths[0]; ++row) {
      const auto value = decoded(part.v, part.block_table, part.page_size, row, c.data.v_dim);
      for (std::size_t d = 0; d < v_dim; ++d) {
        out[d] += weights[static_cast<std::size_t>(row)] / total * value[d];
      }
    }
    results.insert(results.end(), out.begin(), out.end());
    results.push_back(static_cast<float>(top + std::log(total)));
  }
  return results;
}

class AttentionCodesTest : public ::testing::TestWithParam<std::tuple<Kernels, FormCase>> {
 protected:
  const AttentionKernels& kernels() const { return *std::get<0>(GetParam()).functions; }
  const RowFormat& format() const { return std::get<1>(GetParam()).format; }
};

TEST_P(AttentionCodesTest, RowsOfEverySizeAreWhatTheirCodesStandFor) {
  constexpr std::int32_t kSizes[][2] = {{64, 64}, {80, 80},   {96, 128},  {128, 128}, {192, 128},
                                        {72, 40}, {300, 300}, {1024, 64}, {1056, 32}, {576, 512}};
  const double most = testing::is_of_8_bits(format()) ? 1e-3 : 2e-3;
  std::int32_t round = 0;
  for (const auto& [k_dim, v_dim] : kSizes) {
    if (wanted_elements(format(), k_dim) != nullptr) continue;
    if (wanted_elements(format(), v_dim) != nullptr) continue;
    constexpr std::int32_t kLengths[] = {90, 333, 16, 512, 7};
    if (testing::kSlow && k_dim > 128) continue;
    const Case c(kLengths[round % 5], k_dim, v_dim, 1 + round * 3 % 8);
    const KvStorage stored = c.stored(format(), std::vector<std::int32_t>{16, 3, 64}[round % 3]);
    const std::vector<float> found = attend(kernels(), c, stored, Prefetch::kL1);
    const std::vector<float> expected = definition(c, stored);
    double wrong = 0, square = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const double error = found[i] - double{expected[i]};
      wrong += error * error;
      square += double{expected[i]} * expected[i];
    }
    EXPECT_LE(std::sqrt(wrong / square), most) << k_dim << " to " << v_dim;
    ++round;
  }
}

TEST_P(AttentionCodesTest, PagesPrefetchingAndOtherHeadsMoveNoBit) {
  Case c(301, 64, 96, 7);
  const std::vector<float> expected = attend(kernels(), c, c.stored(format(), 16), Prefetch::kNone);
  for (const std::int32_t page_size : {0, 1, 5, 64, 512}) {
    for (const Prefetch level : {Prefetch::kRuns, Prefetch::kL2}) {
      const auto found = attend(kernels(), c, c.stored(format(), page_size), level);
      EXPECT_EQ(0, std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)))
          << "pages of " << page_size;
    }
  }
  c.group = 1;
  const auto alone = attend(kernels(), c, c.stored(format(), 16), Prefetch::kNone);
  EXPECT_EQ(0, std::memcmp(alone.data(), expected.data(), alone.size() * sizeof(float)));
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionCodesTest,
                         ::testing::Combine(::testing::ValuesIn(all_kernels()),
                                            ::testing::ValuesIn(coded_forms())),
                         [](const auto& tried) {
                           return std::get<0>(tried.param).name + "_" +
                                  std::get<1>(tried.param).name;
                         });

}  // namespace
}  // namespace kvcache::internal
