// attend_cut against a float64 definition, on random tiles: every backend that runs here, and the
// algorithm in vectors of 32 and 64 bytes, whatever the processor has.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cut.h"
#include "kernels/cpu/cut_rows.h"
#include "support/slow.h"

namespace kvcache::internal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class AttentionCutTest : public ::testing::TestWithParam<Kernels> {};

TEST_P(AttentionCutTest, RandomTilesAgreeWithTheDefinition) {
  const AttentionKernels& kernels = *GetParam().functions;
  std::mt19937 random(7);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  constexpr std::int64_t kDims[] = {1, 7, 8, 24, 40, 64, 72, 80, 96, 128, 136};
  for (int round = 0; round < testing::unless_slow(400, 100); ++round) {
    QueryTile tile;
    tile.path = static_cast<Path>(round % 2);
    tile.exact = below(2) == 0;
    tile.group = static_cast<std::int32_t>(1 + below(8));
    // Some have rows enough for several bands and blocks that are packed together. Their queries
    // are scaled: of that many unscaled ones a few scores are so large that their own rounding
    // shows.
    const bool large = round % 16 == 1;
    tile.num_queries = static_cast<std::int32_t>(1 + below(large ? 60 : round % 4 == 0 ? 1 : 8));
    tile.k_dim = static_cast<std::int32_t>(kDims[below(11)]);
    tile.v_dim = static_cast<std::int32_t>(kDims[below(11)]);
    if (below(3) == 0) tile.window = 1 + below(90);
    tile.sink_tokens = tile.window > 0 ? below(5) : 0;
    if (tile.window == 0 && below(3) == 0) {
      tile.chunk = 1 + below(90);
      tile.chunk_origin = below(400);
    }
    const std::int64_t rows = std::int64_t{tile.num_queries} * tile.group;
    const std::int64_t k_stride = (tile.k_dim + kRowPadding - 1) / kRowPadding * kRowPadding;
    const std::int64_t v_stride = (tile.v_dim + kRowPadding - 1) / kRowPadding * kRowPadding;

    const std::int64_t length = 1 + below(large ? kCutKeys : 300);
    const std::int64_t page_size = round % 3 == 0 ? length : 1 + below(70);
    std::vector<std::int32_t> table;
    for (std::int64_t page = 0; page * page_size < length; ++page) {
      table.insert(table.begin() + below(page + 1), static_cast<std::int32_t>(page));
    }
    const DType k_dtype = static_cast<DType>(below(3));
    const DType v_dtype = static_cast<DType>(below(3));
    Rows k = random_rows(random, k_dtype, length, tile.k_dim, page_size, table);
    Rows v = random_rows(random, v_dtype, length, tile.v_dim, page_size, table);
    KvRows kv;
    kv.k = strided_rows(k.at(0, 0), k_dtype, page_size * tile.k_dim, 0, tile.k_dim);
    kv.v = strided_rows(v.at(0, 0), v_dtype, page_size * tile.v_dim, 0, tile.v_dim);
    kv.page_size = page_size;
    kv.block_table = table.data();
    kv.num_rows = length;
    kv.first_index = large ? below(2) * kCutKeys : below(2) * below(200);

    std::normal_distribution<float> normal;
    const float scale = large ? 1 / std::sqrt(static_cast<float>(tile.k_dim)) : 1.0f;
    std::vector<float> q(static_cast<std::size_t>(rows * k_stride));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t d = 0; d < tile.k_dim; ++d) {
        q[static_cast<std::size_t>(r * k_stride + d)] = normal(random) * scale;
      }
    }
    std::vector<std::int64_t> position;
    for (std::int32_t i = 0; i < tile.num_queries; ++i) {
      position.push_back(kv.first_index + length - tile.num_queries + i);
    }
    const bool rounds = GetParam().rounds() && tile.path == Path::kPrefill && !tile.exact;
    std::vector<float> seen_q = q;
    if (rounds && k_dtype == DType::kBF16) {
      for (float& x : seen_q) x = to_float(to_bfloat16(x));
    }
    tile.q = q.data();
    tile.position = position.data();

    CutTask task;
    task.tile = &tile;
    task.rows = &kv;
    task.begin = below(length);
    task.end = task.begin + 1 + below(length - task.begin);
    task.causal_end = below(2) == 0 ? length - tile.num_queries + 1 : 1000000;
    std::vector<float> max(static_cast<std::size_t>(rows), NAN), sum(max),
        acc(static_cast<std::size_t>(rows * v_stride), NAN);
    task.partial = {max.data(), sum.data(), acc.data()};
    std::vector<std::byte> memory(
        static_cast<std::size_t>(kernels.scratch_bytes(rows, tile.k_dim, tile.v_dim)) + 64);
    task.scratch = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
    kernels.attend_cut(task);

    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t query = r / tile.group;
      std::vector<double> scores(static_cast<std::size_t>(length), -kInfinity);
      double top = -kInfinity;
      for (std::int64_t j = task.begin; j < task.end && j < task.causal_end + query; ++j) {
        const std::int64_t at = kv.first_index + j;
        if (tile.window > 0 && position[static_cast<std::size_t>(query)] - at >= tile.window &&
            at >= tile.sink_tokens) {
          continue;
        }
        const auto chunk_of = [&](std::int64_t place) {
          return std::floor(static_cast<double>(place - tile.chunk_origin) /
                            static_cast<double>(tile.chunk));
        };
        if (tile.chunk > 0 && chunk_of(at) != chunk_of(position[static_cast<std::size_t>(query)])) {
          continue;
        }
        double s = 0;
        for (std::int64_t d = 0; d < tile.k_dim; ++d) {
          s += static_cast<double>(seen_q[static_cast<std::size_t>(r * k_stride + d)]) *
               k.values[static_cast<std::size_t>(j * tile.k_dim + d)];
        }
        scores[static_cast<std::size_t>(j)] = s;
        top = std::max(top, s);
      }
      const std::size_t row = static_cast<std::size_t>(r);
      if (top == -kInfinity) {
        EXPECT_EQ(max[row], -kInfinity) << "round " << round;
        EXPECT_EQ(sum[row], 0) << "round " << round;
        continue;
      }
      double total = 0;
      std::vector<double> expected(static_cast<std::size_t>(tile.v_dim)), magnitude = expected;
      for (std::int64_t j = 0; j < length; ++j) {
        const double weight = std::exp(scores[static_cast<std::size_t>(j)] - top);
        total += weight;
        if (weight == 0) continue;
        for (std::int64_t d = 0; d < tile.v_dim; ++d) {
          const double value = v.values[static_cast<std::size_t>(j * tile.v_dim + d)];
          expected[static_cast<std::size_t>(d)] += weight * value;
          magnitude[static_cast<std::size_t>(d)] += weight * std::abs(value);
        }
      }
      ASSERT_NEAR(max[row] + std::log(sum[row]), top + std::log(total), 2e-5) << "round " << round;
      for (std::int64_t d = 0; d < tile.v_dim; ++d) {
        // Half a unit in the last place of bf16 for each weight.
        const double rounding =
            rounds && v_dtype == DType::kBF16 ? magnitude[static_cast<std::size_t>(d)] / 256 : 0;
        ASSERT_NEAR(acc[static_cast<std::size_t>(r * v_stride + d)] / sum[row],
                    expected[static_cast<std::size_t>(d)] / total, 3e-5 + rounding / total)
            << "round " << round << ", row " << r << ", element " << d;
      }
    }
  }
}

TEST_P(AttentionCutTest, ANanReachesOnlyTheQueriesThatSeeIt) {
  const AttentionKernels& kernels = *GetParam().functions;
  constexpr std::int64_t kLength = 270, kDim = 24, kQueries = 120, kStride = 32;
  std::mt19937 random(11);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const Path path : {Path::kDecode, Path::kPrefill}) {
      Rows k = random_rows(random, dtype, kLength, kDim, kLength, {0});
      Rows v = random_rows(random, dtype, kLength, kDim, kLength, {0});
      // Query i sees keys up to kLength - kQueries + i.
      constexpr std::int64_t kBroken = kLength - 3;
      float stored = 0;
      put(dtype, NAN, v.at(0, kBroken), &stored);
      std::vector<float> q(kQueries * kStride, 0.0f);
      std::vector<std::int64_t> position;
      for (std::int64_t i = 0; i < kQueries; ++i) {
        position.push_back(kLength - kQueries + i);
        for (std::int64_t d = 0; d < kDim; ++d) q[static_cast<std::size_t>(i * kStride + d)] = 0.1f;
      }
      QueryTile tile;
      tile.path = path;
      tile.group = 1;
      tile.num_queries = kQueries;
      tile.k_dim = tile.v_dim = kDim;
      tile.q = q.data();
      tile.position = position.data();
      KvRows kv;
      kv.k = strided_rows(k.at(0, 0), dtype, 0, 0, kDim);
      kv.v = strided_rows(v.at(0, 0), dtype, 0, 0, kDim);
      kv.page_size = kv.num_rows = kLength;
      CutTask task;
      task.tile = &tile;
      task.rows = &kv;
      task.end = kLength;
      task.causal_end = kLength - kQueries + 1;
      std::vector<float> max(kQueries), sum(kQueries), acc(kQueries * kStride);
      task.partial = {max.data(), sum.data(), acc.data()};
      std::vector<std::byte> memory(
          static_cast<std::size_t>(kernels.scratch_bytes(kQueries, kDim, kDim)) + 64);
      task.scratch = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
      kernels.attend_cut(task);
      for (std::int64_t i = 0; i < kQueries; ++i) {
        const bool sees = kLength - kQueries + i >= kBroken;
        EXPECT_EQ(std::isnan(acc[static_cast<std::size_t>(i * kStride)]), sees) << "query " << i;
        EXPECT_FALSE(std::isnan(acc[static_cast<std::size_t>(i * kStride + 1)])) << "query " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionCutTest, ::testing::ValuesIn(all_kernels()),
                         [](const auto& kernels) { return kernels.param.name; });

}  // namespace
}  // namespace kvcache::internal
