// Shared prefixes: what is found in block tables, and what is not shared.
#include "attention/prefixes.h"

#include <algorithm>
#include <string>

#include "attention/cpu/work.h"
#include "gtest/gtest.h"
#include "support/kv_fixture.h"

namespace kvcache::testing {
namespace {

using internal::SharedPrefixes;
using internal::SharedRun;

class PrefixesTest : public ::testing::Test {
 protected:
  // Tables of one query a sequence and pages of 64 tokens; the first four cuts are of 512.
  void table(std::vector<std::vector<std::int32_t>> pages, std::vector<std::int32_t> lengths) {
    lengths_ = std::move(lengths);
    stride_ = 0;
    for (const auto& row : pages) stride_ = std::max(stride_, std::ssize(row));
    table_.assign(static_cast<std::size_t>(stride_) * pages.size(), -1);
    for (std::size_t s = 0; s < pages.size(); ++s) {
      std::copy(pages[s].begin(), pages[s].end(), table_.begin() + static_cast<long>(s) * stride_);
    }
    indptr_ = {0};
    for (std::size_t s = 0; s < pages.size(); ++s) indptr_.push_back(indptr_.back() + 1);
    part_ = KvPart();
    part_.page_size = 64;
    part_.block_table = table_.data();
    part_.block_table_stride = stride_;
    part_.lengths = lengths_.data();
    view_.num_seqs = static_cast<std::int32_t>(pages.size());
    view_.num_kv_heads = view_.k_head_dim = view_.v_head_dim = 1;
    view_.num_parts = 1;
    view_.parts = &part_;
  }

  // `cuts` of pages first .. of one sequence, then `own` pages from `next` on.
  static std::vector<std::int32_t> pages(std::vector<std::int32_t> firsts, std::int32_t own_first,
                                         std::int32_t own) {
    std::vector<std::int32_t> all;
    for (const std::int32_t first : firsts) {
      for (std::int32_t i = 0; i < 8; ++i) all.push_back(first + i);
    }
    for (std::int32_t i = 0; i < own; ++i) all.push_back(own_first + i);
    return all;
  }

  // The runs as text: "{0 2} 0..2 +1024 after -".
  std::vector<std::string> found() {
    prefixes_.find(view_, indptr_, rules_);
    std::vector<std::string> runs;
    for (const SharedRun& run : prefixes_.runs()) {
      std::vector<std::int32_t> seqs(prefixes_.order().begin() + run.begin,
                                     prefixes_.order().begin() + run.end);
      std::sort(seqs.begin(), seqs.end());
      std::string text;
      for (const std::int32_t seq : seqs) {
        text += (text.empty() ? "{" : " ") + std::to_string(seq);
      }
      text += "} " + std::to_string(run.unit_begin) + ".." + std::to_string(run.unit_end) + " +" +
              std::to_string(run.keys) + " after " +
              (run.parent < 0 ? "-" : std::to_string(run.keys_before));
      runs.push_back(std::move(text));
    }
    return runs;
  }

  using Runs = std::vector<std::string>;

  std::vector<std::int32_t> lengths_, table_, indptr_;
  std::int64_t stride_ = 0;
  KvPart part_;
  KvView view_;
  internal::SharingRules rules_{true, true, false, 24};
  SharedPrefixes prefixes_;
};

TEST_F(PrefixesTest, WholeCutsOfTheSamePagesAreARun) {
  table({pages({0, 8}, 100, 2), pages({0, 8}, 110, 1), pages({0, 8}, 120, 5)}, {1100, 1060, 1300});
  EXPECT_EQ(found(), Runs{"{0 1 2} 0..2 +1024 after -"});
}

TEST_F(PrefixesTest, ACutWithOneOtherPageIsNotShared) {
  auto other = pages({0, 8}, 110, 2);
  other[15] = 90;
  table({pages({0, 8}, 100, 2), other}, {1100, 1100});
  EXPECT_EQ(found(), Runs{"{0 1} 0..1 +512 after -"});
  table_[static_cast<std::size_t>(stride_)] = 91;
  EXPECT_EQ(found(), Runs{});
}

TEST_F(PrefixesTest, RunsFormATree) {
  table({pages({0, 8, 16}, 100, 1), pages({0, 24}, 110, 1), pages({0, 8, 16}, 120, 1),
         pages({0, 24}, 130, 1), pages({0, 32}, 140, 1), pages({40, 8, 16}, 150, 1)},
        {1540, 1030, 1540, 1030, 1030, 1540});
  Runs runs = found();
  ASSERT_EQ(runs.size(), 3U);
  EXPECT_EQ(runs[0], "{0 1 2 3 4} 0..1 +512 after -");
  std::sort(runs.begin(), runs.end());
  EXPECT_EQ(runs[1], "{0 2} 1..3 +1024 after 512");
  EXPECT_EQ(runs[2], "{1 3} 1..2 +512 after 512");
  for (std::int32_t at = 0; at < 6; ++at) {
    const std::int32_t seq = prefixes_.order()[static_cast<std::size_t>(at)];
    EXPECT_EQ(prefixes_.last_run(at) < 0, seq == 5);
  }
}

TEST_F(PrefixesTest, ChainsOfLongerAndLongerPrefixes) {
  // Decode's first four cuts are of 8 pages, the others of 32.
  const std::vector<std::vector<std::int32_t>> cuts = {
      {0}, {8}, {16}, {24}, {32, 40, 48, 56}, {64, 72, 80, 88}};
  std::vector<std::int32_t> shared;
  std::vector<std::vector<std::int32_t>> tables;
  std::vector<std::int32_t> lengths;
  for (std::int32_t s = 0; s < 6; ++s) {
    const std::vector<std::int32_t>& cut = cuts[static_cast<std::size_t>(s)];
    shared.insert(shared.end(), cut.begin(), cut.end());
    tables.push_back(pages(shared, 100 + s, 1));
    lengths.push_back(static_cast<std::int32_t>(shared.size()) * 512 + 1);
  }
  table(tables, lengths);
  const Runs runs = found();
  ASSERT_EQ(runs.size(), 5U);  // the last one shares its last cut with nobody
  EXPECT_EQ(runs[0], "{0 1 2 3 4 5} 0..1 +512 after -");
  EXPECT_EQ(runs[3], "{3 4 5} 3..4 +512 after 1536");
  EXPECT_EQ(runs[4], "{4 5} 4..5 +2048 after 2048");
}

TEST_F(PrefixesTest, BehindItsFirstCutsDecodeSharesCutsOf2048AndPrefillOf512) {
  // Two sequences with 3584 rows alike, of a length that one query a sequence sees whole.
  const std::vector<std::int32_t> alike = {0, 8, 16, 24, 32, 40, 48};
  table({pages(alike, 100, 1), pages(alike, 110, 1)}, {3600, 3600});
  EXPECT_EQ(found(), Runs{"{0 1} 0..4 +2048 after -"});
  rules_.reproducible = true;
  EXPECT_EQ(found(), Runs{"{0 1} 0..7 +3584 after -"});
}

TEST_F(PrefixesTest, TheRowsOfTheQueriesThemselvesAreNotShared) {
  table({pages({0, 8}, 0, 0), pages({0, 8}, 100, 1)}, {1024, 1025});
  EXPECT_EQ(found(), Runs{"{0 1} 0..2 +1024 after -"});  // the last row is its query's own
  indptr_ = {0, 2, 3};
  EXPECT_EQ(found(), Runs{"{0 1} 0..1 +512 after -"});  // the first of two queries sees 1023
  rules_.causal = false;
  EXPECT_EQ(found(), Runs{"{0 1} 0..2 +1024 after -"});
}

TEST_F(PrefixesTest, PathsDoNotMixUnlessTheyAreOne) {
  table({pages({0}, 100, 2), pages({0}, 110, 2), pages({0}, 120, 2), pages({0}, 130, 2)},
        {600, 600, 600, 600});
  indptr_ = {0, 8, 17, 18, 28};
  EXPECT_EQ(found(), (Runs{"{1 3} 0..1 +512 after -", "{0 2} 0..1 +512 after -"}));
  rules_.reproducible = true;
  EXPECT_EQ(found(), Runs{"{0 1 2 3} 0..1 +512 after -"});
}

TEST_F(PrefixesTest, SequencesOfManyOrNoQueriesShareNothing) {
  table({pages({0}, 100, 2), pages({0}, 110, 2), pages({0}, 120, 2), pages({0}, 130, 2)},
        {600, 600, 600, 600});
  indptr_ = {0, 1, 26, 26, 27};
  EXPECT_EQ(found(), Runs{"{0 3} 0..1 +512 after -"});
  EXPECT_EQ(std::ssize(prefixes_.order()), 3);
  rules_.enabled = false;
  EXPECT_EQ(found(), Runs{});
}

TEST_F(PrefixesTest, HiddenAndDroppedRowsMustBeTheSame) {
  table({pages({0, 8}, 100, 1), pages({0, 8}, 110, 1)}, {1030, 1030});
  std::vector<std::int32_t> first = {100, 100};
  part_.first_visible = first.data();
  EXPECT_EQ(found(), Runs{"{0 1} 0..2 +924 after -"});
  first = {600, 600};
  EXPECT_EQ(found(), Runs{"{0 1} 0..2 +424 after -"});
  first = {100, 101};
  EXPECT_EQ(found(), Runs{});
  part_.first_visible = nullptr;
  first = {300, 300};
  part_.first_position = first.data();
  EXPECT_EQ(found(), Runs{"{0 1} 0..2 +724 after -"});  // cuts end at rows 212 and 724
  first = {300, 301};
  EXPECT_EQ(found(), Runs{});
}

TEST_F(PrefixesTest, RowsWithPositionsOfTheirOwnAreNotShared) {
  table({pages({0}, 100, 1), pages({0}, 110, 1)}, {520, 520});
  const std::vector<std::int32_t> positions(1040, 7);
  part_.positions = positions.data();
  part_.positions_stride = 520;
  EXPECT_EQ(found(), Runs{});
}

TEST_F(PrefixesTest, WithoutATableThereIsNothingToShare) {
  table({pages({0}, 100, 1), pages({0}, 110, 1)}, {520, 520});
  part_.block_table = nullptr;
  EXPECT_EQ(found(), Runs{});
}

TEST_F(PrefixesTest, PartsShareOneAfterTheOther) {
  table({pages({0}, 100, 1), pages({0}, 110, 1)}, {512, 512});
  const KvPart parts[] = {part_, part_};
  view_.parts = parts;
  view_.num_parts = 2;
  EXPECT_EQ(found(), Runs{"{0 1} 0..2 +1024 after -"});
}

}  // namespace
}  // namespace kvcache::testing
