// The functions of the kernel table, alone, on every backend that runs here.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cpu/cut.h"

namespace kvcache::internal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<std::string> kernel_backends() {
  std::vector<std::string> names;
  std::int32_t count = 0;
  const Backend* all = all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    if (all[i].availability.here && all[i].attends == Attends::kByCuts)
      names.push_back(all[i].name);
  }
  return names;
}

class AttentionKernelsTest : public ::testing::TestWithParam<std::string> {
 protected:
  // One row of 16 values.
  struct Partial {
    float max[16];
    float sum[16];
    float acc[16];

    Partial(float m, float l, float value) {
      max[0] = m;
      sum[0] = l;
      for (float& x : acc) x = value;
    }
    PartialRows rows() { return {max, sum, acc}; }
  };

  const AttentionKernels& kernels() const { return *find_backend(GetParam().c_str())->cuts; }
};

TEST_P(AttentionKernelsTest, MergeWithAnEmptyPartKeepsTheBits) {
  Partial full(1.25f, 3.5f, 0.7f), empty(-kInfinity, 0, 0);
  kernels().merge(full.rows(), empty.rows(), 1, 16);
  EXPECT_EQ(full.max[0], 1.25f);
  EXPECT_EQ(full.sum[0], 3.5f);
  EXPECT_EQ(full.acc[15], 0.7f);
  kernels().merge(empty.rows(), full.rows(), 1, 16);
  EXPECT_EQ(empty.max[0], 1.25f);
  EXPECT_EQ(empty.sum[0], 3.5f);
  EXPECT_EQ(empty.acc[15], 0.7f);
}

TEST_P(AttentionKernelsTest, MergeWeighsByTheMaxima) {
  Partial a(0, 1, 4), b(std::log(3.0f), 1, 8);
  kernels().merge(a.rows(), b.rows(), 1, 16);
  EXPECT_FLOAT_EQ(a.max[0], std::log(3.0f));
  EXPECT_NEAR(a.sum[0], 4.0f / 3, 1e-6f);
  for (float x : a.acc) EXPECT_NEAR(x / a.sum[0], 7, 1e-5f);
}

TEST_P(AttentionKernelsTest, MergeKeepsANaN) {
  Partial nan(-kInfinity, NAN, NAN), full(1, 2, 3);
  kernels().merge(nan.rows(), full.rows(), 1, 16);
  EXPECT_TRUE(std::isnan(nan.sum[0]));
  EXPECT_TRUE(std::isnan(nan.acc[0]));
}

TEST_P(AttentionKernelsTest, ATailOfMissingRowsIsNotRead) {
  // 3 rows of 2 elements in memory that ends behind them: a reader beyond is the sanitizer's.
  const std::vector<float> k = {0, 0, std::log(3.0f), 0, 0, 0}, v = {4, 1, 8, 2, 20, 3};
  const std::vector<float> q = [] {
    std::vector<float> row(16);
    row[0] = 1;
    return row;
  }();
  const std::int64_t position = 2;
  QueryTile tile;
  tile.num_queries = tile.group = 1;
  tile.k_dim = tile.v_dim = 2;
  tile.q = q.data();
  tile.position = &position;
  KvRows rows;
  rows.k = strided_rows(k.data(), DType::kF32, 0, 0, 2);
  rows.v = strided_rows(v.data(), DType::kF32, 0, 0, 2);
  rows.page_size = rows.num_rows = 3;
  std::vector<std::byte> memory(static_cast<std::size_t>(kernels().scratch_bytes(1, 2, 2)) + 64);
  Partial result(0, 0, NAN);
  CutTask task;
  task.tile = &tile;
  task.rows = &rows;
  task.end = 3;
  task.causal_end = 2;
  task.partial = result.rows();
  task.scratch = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
  kernels().attend_cut(task);
  EXPECT_NEAR(result.acc[0] / result.sum[0], 7, 1e-5f);  // row 2 is hidden by causality
  EXPECT_NEAR(result.acc[1] / result.sum[0], 1.75f, 1e-5f);
  task.causal_end = 3;
  kernels().attend_cut(task);
  EXPECT_NEAR(result.acc[0] / result.sum[0], 9.6f, 1e-5f);
  EXPECT_NEAR(result.max[0] + std::log(result.sum[0]), std::log(5.0f), 1e-6f);
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionKernelsTest, ::testing::ValuesIn(kernel_backends()),
                         [](const auto& backend) { return backend.param; });

}  // namespace
}  // namespace kvcache::internal
