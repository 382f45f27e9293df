// Views with holes: pages that no query sees are gone, and no bit of a result knows; what a query
// does see must be held. And what is planned of rows outside a window: nothing.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attention/cpu/work.h"
#include "attention/units.h"
#include "attention/visible.h"
#include "support/random_attention.h"
#include "support/slow.h"

namespace kvcache::testing {
namespace {

using internal::VisibilityRules;
using internal::VisibleRows;

const ExecContext kSerial{&serial_executor(), nullptr};

VisibilityRules rules_of(const AttentionOptions& options) {
  return {options.causal, options.window, options.sink_tokens, options.chunk};
}

// The pages of each sequence that none of its queries sees, between what they see or before it.
std::vector<Hole> unseen_pages(const AttentionCase& c) {
  const KvStorage stored(c.data, c.storage);
  std::vector<Hole> holes;
  for (std::int32_t seq = 0; seq < stored.view().num_seqs; ++seq) {
    const std::int32_t queries = c.queries[static_cast<std::size_t>(seq)];
    Hole& hole = holes.emplace_back();
    if (queries == 0) continue;
    const VisibleRows seen =
        internal::visible_rows(stored.view(), 0, seq, queries, 0, queries - 1, rules_of(c.options));
    const std::int64_t size = c.storage.page_size;
    const std::int64_t sinks = seen.begin < seen.sink_end ? seen.sink_end : 0;
    hole.begin = static_cast<std::int32_t>((sinks + size - 1) / size);
    const auto end = static_cast<std::int32_t>(seen.window_begin / size);
    hole.pages = std::max(0, end - hole.begin);
  }
  return holes;
}

class AttentionHoles : public ::testing::TestWithParam<std::string> {
 protected:
  static AttentionCase plain(std::int32_t length, std::int32_t queries) {
    AttentionCase c;
    c.data = KvRowsData({length, length / 2}, 2, 40, 24);
    c.num_heads = 6;
    c.queries = {queries, queries};
    c.storage.k_dtype = c.storage.v_dtype = DType::kBF16;
    c.storage.shuffle = 3;
    std::mt19937 rng(21);
    c.randomize(rng);
    return c;
  }

  // The case over all rows, contiguous, and over the rows that are seen, in pages.
  void expect_same_with_holes(AttentionCase c, const std::vector<std::int32_t>& page_sizes) {
    c.storage.page_size = 0;
    const Attended expected = c.run(GetParam());
    for (const std::int32_t page_size : page_sizes) {
      c.storage.page_size = page_size;
      c.storage.holes = unseen_pages(c);
      expect_same_bits(c.run(GetParam()), expected, "pages of " + std::to_string(page_size));
    }
    expect_same_bits(c.run(GetParam(), *pool_), expected, "3 threads");
  }

  std::unique_ptr<Executor> pool_ = make_thread_pool(3).value();
};

TEST_P(AttentionHoles, RowsBehindAWindowMayBeGone) {
  for (const std::int32_t queries : {1, 3, 9, 40}) {
    for (const std::int32_t window : {1, 64, 700}) {
      for (const std::int32_t sinks : {0, 3, 66}) {
        if (kSlow && (queries == 3 || (window == 64) != (sinks == 3))) continue;
        AttentionCase c = plain(1500, queries);
        c.options.window = window;
        c.options.sink_tokens = sinks;
        SCOPED_TRACE(describe(c));
        expect_same_with_holes(c, unless_slow<std::vector<std::int32_t>>({1, 16, 60, 512}, {60}));
      }
    }
  }
}

TEST_P(AttentionHoles, RowsOfEarlierChunksMayBeGone) {
  for (const std::int32_t queries : {1, 3, 9, 40}) {
    for (const std::int32_t chunk : {1, 64, 300, 700, 4000}) {
      if (kSlow && (queries == 3 || chunk == 1 || chunk == 700)) continue;
      AttentionCase c = plain(1500, queries);
      c.options.chunk = chunk;
      SCOPED_TRACE(describe(c));
      expect_same_with_holes(c, unless_slow<std::vector<std::int32_t>>({1, 16, 60}, {60}));
      c.options.reproducible = true;
      c.storage.first_visible = {5, 600};
      expect_same_with_holes(c, {16});
    }
  }
}

TEST_P(AttentionHoles, RandomCallsAreTheSameWithoutWhatTheyDoNotSee) {
  int count = 0;
  for (std::uint32_t seed = 5000; seed < unless_slow(5250u, 5060u); ++seed) {
    AttentionCase c = random_case(seed);
    if (c.options.window == 0 && c.options.chunk == 0) continue;
    c.storage.positions.clear();
    c.storage.parts.clear();
    c.storage.shared.clear();
    if (c.storage.page_size == 0) c.storage.page_size = 16;
    SCOPED_TRACE(describe(c));
    expect_same_with_holes(c, {c.storage.page_size});
    ++count;
  }
  EXPECT_GT(count, unless_slow(50, 12));
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionHoles, ::testing::ValuesIn(backend_names(true)),
                         [](const auto& backend) { return backend.param; });

// --- What is refused. ---

// One sequence of 40 rows in pages of 4, of which 3 .. 7 are gone.
struct Holed {
  AttentionCase c;
  KvStorage stored;
  std::int32_t first_held[1] = {0};

  static AttentionCase make() {
    AttentionCase c;
    c.data = KvRowsData({40}, 1, 4, 4);
    c.storage.page_size = 4;
    c.storage.holes = {{3, 4}};
    std::mt19937 rng(1);
    c.queries = {1};
    c.randomize(rng);
    return c;
  }
  Holed() : c(make()), stored(c.data, c.storage) { stored.part(0).first_held = first_held; }

  std::string plan(const AttentionOptions& options, std::int32_t queries = 1) {
    internal::Plan plan;
    return plan.plan(stored.view(), std::vector<std::int32_t>{0, queries}, 1, options, kSerial)
        .message();
  }
  std::string plan_window(std::int32_t window, std::int32_t queries = 1) {
    AttentionOptions options;
    options.window = window;
    return plan(options, queries);
  }
};

TEST(AttentionHeld, AQueryThatSeesAPageThatIsGoneIsRefused) {
  Holed view;
  EXPECT_EQ(view.plan_window(12), "");
  EXPECT_EQ(view.plan_window(13),
            "kv.parts[0].first_held[0]: found 28, expected at most 27, which a query sees");
  EXPECT_EQ(view.plan_window(12, 2),
            "kv.parts[0].first_held[0]: found 28, expected at most 27, which a query sees");
  EXPECT_EQ(view.plan_window(11, 2), "");
  EXPECT_EQ(view.plan({}),
            "kv.parts[0].first_held[0]: found 28, expected at most 0, which a query sees");
  AttentionOptions sinks;
  sinks.window = 4;
  sinks.sink_tokens = 12;
  EXPECT_EQ(view.plan(sinks), "");
  sinks.sink_tokens = 13;
  EXPECT_EQ(view.plan(sinks),
            "kv.parts[0].first_held[0]: found 28, expected at most 12, which a query sees");
}

TEST(AttentionHeld, SoIsOneThatSeesARowThatWasDroppedThoughItsPageIsThere) {
  Holed view;
  view.first_held[0] = 30;
  EXPECT_EQ(view.plan_window(10), "");
  EXPECT_EQ(view.plan_window(11),
            "kv.parts[0].first_held[0]: found 30, expected at most 29, which a query sees");
  AttentionOptions chunk;
  chunk.chunk = 6;  // the query at 39 is in the chunk of 36
  EXPECT_EQ(view.plan(chunk), "");
  chunk.chunk = 13;  // in that of 39
  EXPECT_EQ(view.plan(chunk), "");
  chunk.chunk = 11;  // in that of 33
  EXPECT_EQ(view.plan(chunk), "");
  chunk.chunk = 14;  // in that of 28
  EXPECT_EQ(view.plan(chunk),
            "kv.parts[0].first_held[0]: found 30, expected at most 28, which a query sees");
  AttentionOptions sinks;
  sinks.window = 4;
  sinks.sink_tokens = 2;
  EXPECT_EQ(view.plan(sinks),
            "kv.parts[0].first_held[0]: found 30, expected at most 0, which a query sees");
  view.stored.part(0).held_sink_tokens = 2;
  EXPECT_EQ(view.plan(sinks), "");
}

TEST(AttentionHeld, AWiderWindowThanRowsWereKeptForIsRefusedWhateverIsThere) {
  AttentionCase c = Holed::make();
  c.storage.holes.clear();
  KvStorage stored(c.data, c.storage);
  KvPart& part = stored.part(0);
  const auto plan = [&](std::int32_t window, std::int32_t sinks, std::int32_t chunk) {
    AttentionOptions options;
    options.window = window;
    options.sink_tokens = sinks;
    options.chunk = chunk;
    internal::Plan made;
    return made.plan(stored.view(), std::vector<std::int32_t>{0, 1}, 1, options, kSerial).message();
  };
  EXPECT_EQ(plan(0, 0, 0), "");
  part.held_window = 8;
  part.held_sink_tokens = 2;
  EXPECT_EQ(plan(8, 2, 0), "");
  EXPECT_EQ(plan(1, 0, 0), "");
  EXPECT_EQ(plan(9, 2, 0),
            "options.window: found 9, expected 1 .. 8, as the view's rows were kept");
  EXPECT_EQ(plan(0, 0, 0),
            "options.window: found 0, expected 1 .. 8, as the view's rows were kept");
  EXPECT_EQ(plan(0, 0, 4),
            "options.window: found 0, expected 1 .. 8, as the view's rows were kept");
  EXPECT_EQ(plan(8, 3, 0),
            "options.sink_tokens: found 3, expected at most 2, as the view's rows were kept");
  part.held_window = part.held_sink_tokens = 0;
  part.held_chunk = 8;
  EXPECT_EQ(plan(0, 0, 8), "");
  EXPECT_EQ(plan(0, 0, 9), "options.chunk: found 9, expected 1 .. 8, as the view's rows were kept");
  EXPECT_EQ(plan(4, 0, 0), "options.chunk: found 0, expected 1 .. 8, as the view's rows were kept");
}

TEST(AttentionHeld, FieldsThatFitNoViewAreRefusedByName) {
  const auto message = [](auto change) {
    Holed view;
    change(view.stored.part(0));
    return view.plan_window(1);
  };
  static constexpr std::int32_t kMinus[] = {-1}, kSeven[] = {7}, kFar[] = {41};
  EXPECT_EQ(message([](KvPart& p) { p.hole_begin = nullptr; }),
            "kv.parts[0].hole_begin: found null, expected [num_seqs] beside hole_pages");
  EXPECT_EQ(message([](KvPart& p) { p.hole_begin = kMinus; }),
            "kv.parts[0].hole_begin[0]: found -1, expected >= 0");
  EXPECT_EQ(message([](KvPart& p) { p.hole_begin = kSeven; }),
            "kv.parts[0].hole_pages[0]: found 4, expected 0 .. 3");
  EXPECT_EQ(message([](KvPart& p) { p.hole_pages = kMinus; }),
            "kv.parts[0].hole_pages[0]: found -1, expected 0 .. 7");
  EXPECT_EQ(message([](KvPart& p) { p.first_held = kFar; }),
            "kv.parts[0].first_held[0]: found 41, expected 0 .. 40");
  EXPECT_EQ(message([](KvPart& p) { p.block_table = nullptr; }),
            "kv.parts[0].hole_pages: found holes, expected none without a block_table");
  EXPECT_EQ(message([](KvPart& p) { p.positions = kFar; }),
            "kv.parts[0].hole_pages: found holes, expected none beside positions of each row");
  EXPECT_EQ(message([](KvPart& p) { p.held_window = -1; }),
            "kv.parts[0].held_window: found -1, expected >= 0");
  EXPECT_EQ(message([](KvPart& p) { p.held_chunk = -1; }),
            "kv.parts[0].held_chunk: found -1, expected >= 0");
  EXPECT_EQ(message([](KvPart& p) { p.held_sink_tokens = -1; }),
            "kv.parts[0].held_sink_tokens: found -1, expected >= 0");
}

TEST(AttentionHeld, ARunOverAnotherHoleThanThePlannedIsRefused) {
  Holed view;
  view.first_held[0] = 28;
  AttentionOptions options;
  options.window = 2;
  internal::Plan plan;
  ASSERT_TRUE(
      plan.plan(view.stored.view(), std::vector<std::int32_t>{0, 1}, 1, options, kSerial).ok());
  const HostTensor q = tensor_of<float>({1, 1, 4}, view.c.q, DType::kF32);
  HostTensor out(DType::kF32, {1, 1, 4});
  const auto run = [&] {
    return plan.run(q, view.stored.view(), out.mutable_view(), {}, options, kSerial).message();
  };
  EXPECT_EQ(run(), "");
  static constexpr std::int32_t kTwo[] = {2}, kFive[] = {5};
  KvPart& part = view.stored.part(0);
  const KvPart planned = part;
  part.hole_begin = kTwo;
  EXPECT_EQ(run(), "kv.parts[0].hole_begin[0]: found 2, expected 3 as planned");
  part = planned;
  part.hole_pages = kFive;
  EXPECT_EQ(run(), "kv.parts[0].hole_pages[0]: found 5, expected 4 as planned");
  part = planned;
  part.first_held = nullptr;
  EXPECT_EQ(run(), "kv.parts[0].first_held[0]: found 0, expected 28 as planned");
  part = planned;
  part.held_window = 3;
  EXPECT_EQ(run(),
            "kv.parts[0]: found other formats, positions or held rows, expected those as planned");
  part = planned;
  part.page_size = 5;  // the hole is another run of rows
  EXPECT_EQ(run(),
            "kv.parts[0]: found other formats, positions or held rows, expected those as planned");
  EXPECT_FALSE(
      plan.check_fits(view.stored.view(), std::vector<std::int32_t>{0, 1}, 1, options, kSerial)
          .ok());
}

// --- What is planned. ---

// The work of one new token over `length` rows, whose memory nobody looks at.
internal::WorkSize decode_work(std::int32_t length, const VisibilityRules& rules,
                               std::int32_t queries = 1) {
  KvPart part;
  part.page_size = length;
  part.lengths = &length;
  KvView view;
  view.num_seqs = view.num_kv_heads = view.k_head_dim = view.v_head_dim = view.num_parts = 1;
  view.parts = &part;
  const std::int32_t indptr[] = {0, queries};
  internal::WorkShape shape;
  shape.concurrency = 2;
  shape.v_dim = 16;
  shape.rules = rules;
  internal::SharedPrefixes prefixes;
  prefixes.find(view, indptr, {false, true, false, internal::tile_queries(1)});
  internal::WorkSize size;
  EXPECT_TRUE(internal::measure_work(view, indptr, prefixes, shape, &size).ok());
  internal::WorkList work;
  work.reserve(size);
  work.fill(view, indptr, prefixes, shape, size);
  std::int64_t units = 0;
  for (const internal::WorkItem& item : work.items()) units += item.unit_end - item.unit_begin;
  EXPECT_LE(units, (1024 + queries) / 512 + 4) << length;
  return size;
}

// Counting them one by one for every query would take minutes.
TEST(AttentionWork, RowsOfEarlierChunksAreNotCountedOneByOne) {
  constexpr std::int32_t kRows = 1 << 22, kQueries = 1 << 16, kChunk = 1 << 10;
  for (const std::int32_t behind : {0, 1}) {  // rows of the second part
    const std::int32_t lengths[] = {kRows, behind}, first_position[] = {0, kRows};
    KvPart parts[2];
    for (int p = 0; p < 2; ++p) {
      parts[p].page_size = kRows;
      parts[p].lengths = &lengths[p];
      parts[p].first_position = &first_position[p];
    }
    KvView view;
    view.num_seqs = view.num_kv_heads = view.k_head_dim = view.v_head_dim = 1;
    view.num_parts = 2;
    view.parts = parts;
    // The first query's chunk begins with it, or one row before it.
    EXPECT_EQ(internal::count_visible_rows(view, 0, kQueries, {true, 0, 0, kChunk}),
              kQueries + behind);
  }
}

TEST(AttentionWork, OutsideAWindowNothingIsPlanned) {
  for (const VisibilityRules& rules :
       {VisibilityRules{true, 1024, 0, 0}, VisibilityRules{true, 1024, 4, 0},
        VisibilityRules{true, 0, 0, 1024}}) {
    // Lengths that end alike within a cut, behind those of the first 2048 keys.
    const internal::WorkSize near = decode_work(4096, rules);
    const internal::WorkSize far = decode_work(4096 + 2048 * 50, rules);
    EXPECT_EQ(near.num_items, far.num_items);
    EXPECT_EQ(near.workspace_floats, far.workspace_floats);
    EXPECT_EQ(near.target_cost, far.target_cost);
  }
}

}  // namespace
}  // namespace kvcache::testing
