// What is measured is checked: right answers pass, wrong ones are found, in every storage.
#include "bench/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "bench/attention_check.h"
#include "bench/kv_ring.h"
#include "bench/report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/attention.h"

namespace kvcache::bench {
namespace {

AttentionShape small(std::int64_t page_size = 0, Layout layout = Layout::kHND) {
  AttentionShape shape;
  shape.kv_len = 70;
  shape.queries = 2;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = 16;
  shape.v_head_dim = 8;
  shape.batch = 3;
  shape.ragged = true;
  shape.page_size = page_size;
  shape.layout = layout;
  shape.dtype = DType::kF16;
  return shape;
}

constexpr std::int64_t kLittleMemory = 1 << 20;

// An attention call over a ring, and its answer.
struct Answered {
  explicit Answered(const AttentionShape& shape_in)
      : shape(shape_in),
        ring(KvRing::create(shape, lengths_of(shape, 5), 5, kLittleMemory).value()) {
    const std::int64_t rows = shape.batch * shape.queries;
    std::mt19937 random(6);
    std::normal_distribution<float> normal;
    q.resize(static_cast<std::size_t>(rows * shape.heads * shape.head_dim));
    for (float& x : q) x = normal(random);
    out.resize(static_cast<std::size_t>(rows * shape.heads * shape.v_dim()), NAN);
    const std::int32_t indptr[] = {0, 2, 4, 6};
    const Status status =
        attend(TensorView(q.data(), DType::kF32, {rows, shape.heads, shape.head_dim}), indptr,
               ring.view(0),
               MutableTensorView(out.data(), DType::kF32, {rows, shape.heads, shape.v_dim()}));
    EXPECT_TRUE(status.ok()) << status.to_string();
  }

  double error() const {
    const auto found = check_attention({ring.view(0), shape.queries, shape.heads, q, out}, 1, {});
    EXPECT_TRUE(found.ok()) << found.status().to_string();
    return found.ok() ? *found : std::numeric_limits<double>::infinity();
  }

  AttentionShape shape;
  KvRing ring;
  std::vector<float> q, out;
};

TEST(CheckAttention, ARightAnswerPassesInEveryStorage) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const std::int64_t page_size : {0, 1, 16}) {
      EXPECT_LT(Answered(small(page_size, layout)).error(), 1e-5)
          << name_of(layout) << ", page size " << page_size;
    }
  }
  AttentionShape shared = small(8);
  shared.shared_prefix = 48;
  EXPECT_LT(Answered(shared).error(), 1e-5);
}

TEST(CheckAttention, OneWrongElementIsFoundWhereverItIs) {
  Answered answered(small(16));
  for (const std::size_t at : {std::size_t{0}, answered.out.size() / 2, answered.out.size() - 1}) {
    const float right = answered.out[at];
    answered.out[at] = right + 0.01f;
    EXPECT_GT(answered.error(), 1e-5) << at;
    answered.out[at] = right;
  }
}

TEST(CheckAttention, RowsThatWereNeverWrittenAreFound) {
  Answered answered(small());
  answered.out[7] = std::numeric_limits<float>::quiet_NaN();  // the poison
  EXPECT_TRUE(std::isinf(answered.error()));
}

TEST(CheckAttention, SequencesSwappedAreFound) {
  Answered answered(small());
  std::swap_ranges(answered.out.begin(), answered.out.begin() + 64, answered.out.begin() + 64);
  EXPECT_GT(answered.error(), 0.1);
}

TEST(KvRing, EntriesHoldDifferentRowsAndFillTheMemoryAllowed) {
  const AttentionShape shape = small();
  const auto ring = KvRing::create(shape, lengths_of(shape, 1), 1, kLittleMemory);
  ASSERT_TRUE(ring.ok());
  EXPECT_GT(ring->num_entries(), 1);
  const auto first = ring->memory(0);
  EXPECT_LE(ring->num_entries() * static_cast<std::int64_t>(first.size()), kLittleMemory);
  EXPECT_NE(std::memcmp(first.data(), ring->memory(1).data(), first.size()), 0);
  EXPECT_EQ(ring->memory(ring->num_entries()).data(), first.data());
  EXPECT_EQ(ring->view(1).parts[0].k.data, static_cast<const void*>(ring->memory(1).data()));
}

TEST(KvRing, PagesOfSequencesAreDistinctButForTheSharedPrefix) {
  AttentionShape shape = small(8);
  shape.ragged = false;
  shape.shared_prefix = 16;
  const auto ring = KvRing::create(shape, lengths_of(shape, 1), 1, kLittleMemory);
  ASSERT_TRUE(ring.ok());
  const KvView view = ring->view(0);
  const KvPart& part = view.parts[0];
  std::vector<std::int32_t> owners(2 + 3 * 7, 0);
  for (std::int64_t seq = 0; seq < 3; ++seq) {
    for (std::int64_t p = 0; p < 9; ++p) {
      const std::int32_t page = part.block_table[seq * part.block_table_stride + p];
      ASSERT_GE(page, 0);
      ASSERT_LT(page, static_cast<std::int32_t>(owners.size()));
      owners[static_cast<std::size_t>(page)] += 1;
      if (p < 2) {
        EXPECT_EQ(page, part.block_table[p]);
      }
    }
  }
  EXPECT_EQ(std::count(owners.begin(), owners.end(), 3), 2);
  EXPECT_EQ(std::count(owners.begin(), owners.end(), 1), 21);
}

TEST(KvRing, CachedRowsAreFewWhateverTheLength) {
  AttentionShape shape = small();
  shape.kv_len = 4000;
  const auto ring = KvRing::create(shape, lengths_of(shape, 1), 1, 4 * kLittleMemory);
  ASSERT_TRUE(ring.ok());
  const KvView view = ring->cached_view();
  const KvPart& part = view.parts[0];
  std::int32_t most = 0;
  for (std::int64_t p = 0; p < 3 * part.block_table_stride; ++p) {
    ASSERT_GE(part.block_table[p], 0);
    most = std::max(most, part.block_table[p]);
  }
  const std::int64_t bytes = (most + 1) * 16 * 2 * (16 + 8) * 2;
  EXPECT_LE(bytes, second_level_bytes());
  EXPECT_EQ(part.lengths, ring->view(0).parts[0].lengths);
}

TEST(RunAttention, MeasuresAndChecksACase) {
  AttentionShape shape = small(16);
  shape.dtype = DType::kBF16;
  AttentionRun run;
  run.repeats = 2;
  run.ring_bytes = kLittleMemory;
  for (const Clock clock : {Clock::kWall, Clock::kCpu}) {
    run.clock = clock;
    const auto found = run_attention(shape, run);
    ASSERT_TRUE(found.ok()) << found.status().to_string();
    EXPECT_TRUE(check_answers({*found}).ok());
    EXPECT_EQ(found->unit, "GFLOP/s");
    EXPECT_GT(found->achieved, 0);
    EXPECT_GT(found->roof, 0);
    EXPECT_GT(found->ratio, 0);
  }
}

TEST(RunAttention, ASharedPrefixIsComparedWithReadingItForEachSequence) {
  AttentionShape shape = small(8);
  shape.kv_len = 530;
  shape.ragged = false;
  shape.shared_prefix = 512;
  AttentionRun run;
  run.repeats = 2;
  run.ring_bytes = kLittleMemory;
  const auto found = run_attention(shape, run);
  ASSERT_TRUE(found.ok()) << found.status().to_string();
  EXPECT_TRUE(check_answers({*found}).ok());
  const auto detail = [&](const std::string& name) {
    for (const auto& [other, value] : found->details) {
      if (other == name) return value;
    }
    return -1.0;
  };
  EXPECT_EQ(detail("rows counted"), 512 + 3 * 18);
  EXPECT_EQ(detail("rows unshared"), 3 * 530);
  EXPECT_NEAR(detail("times fewer bytes"), 3 * 530 / 566.0, 1e-9);
  EXPECT_GT(detail("ms unshared"), 0);
  EXPECT_GT(detail("times faster"), 0);
}

TEST(RunAttention, ForwardsWhatIsWrong) {
  AttentionShape shape = small();
  shape.backend = "abacus";
  EXPECT_EQ(run_attention(shape, {}).status().code(), StatusCode::kUnavailable);
  shape = small();
  shape.kv_heads = 3;
  EXPECT_EQ(run_attention(shape, {}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvcache::bench
