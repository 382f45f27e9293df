// The bits of a query row depend on its query, the keys it sees, the options, the storage format
// and the backend: on nothing else.
#include <algorithm>

#include "kernels/select.h"
#include "support/random_attention.h"
#include "support/slow.h"

namespace kvcache::testing {
namespace {

class AttentionBits : public ::testing::TestWithParam<std::string> {
 protected:
  static AttentionCase plain(std::vector<std::int32_t> lengths, std::vector<std::int32_t> queries,
                             DType dtype = DType::kBF16) {
    AttentionCase c;
    c.data = KvRowsData(std::move(lengths), 2, 40, 24);
    c.num_heads = 6;
    c.queries = std::move(queries);
    c.storage.k_dtype = c.storage.v_dtype = dtype;
    std::mt19937 rng(11);
    c.randomize(rng);
    return c;
  }

  static std::vector<float> rows(const std::vector<float>& all, std::int64_t begin,
                                 std::int64_t end, std::int64_t size) {
    return {all.begin() + begin * size, all.begin() + end * size};
  }
};

TEST_P(AttentionBits, ThreadsDoNotMatter) {
  const AttentionCase c = plain({2100, 5, 900}, {1, 3, 50});
  const Attended expected = c.run(GetParam());
  for (std::int32_t threads = 2; threads <= 4; ++threads) {
    const std::unique_ptr<Executor> pool = make_thread_pool(threads).value();
    for (int repeat = 0; repeat < 3; ++repeat) {
      expect_same_bits(c.run(GetParam(), *pool), expected, std::to_string(threads) + " threads");
    }
  }
}

TEST_P(AttentionBits, ThePrefetchLevelDoesNotMatter) {
  AttentionCase c = plain({2100, 5, 900}, {1, 3, 50});
  for (const std::int32_t page_size : {0, 16}) {
    c.storage.page_size = page_size;
    const Attended expected = c.run(GetParam());
    for (const char* level : {"none", "runs", "l1", "l2", "l3"}) {
      internal::environment().prefetch = level;
      const Attended found = c.run(GetParam());
      internal::environment().prefetch.clear();
      expect_same_bits(found, expected, level);
    }
  }
}

TEST_P(AttentionBits, ASequenceAloneIsAsInABatch) {
  std::vector<AttentionCase> batches = {plain({700, 1, 1030, 64}, {1, 1, 20, 4})};
  for (std::uint32_t seed = 3000; seed < 3020; ++seed) batches.push_back(random_case(seed));
  for (const AttentionCase& batch : batches) {
    SCOPED_TRACE(describe(batch));
    const KvStorage stored(batch.data, batch.storage);
    const Attended together = batch.run_on(stored.view(), GetParam());
    const std::vector<std::int32_t> indptr = batch.qo_indptr();
    const std::int64_t heads = batch.num_heads;
    for (std::int32_t seq = 0; seq < stored.view().num_seqs; ++seq) {
      const Attended single = batch.run_alone(stored.view(), seq, GetParam());
      const std::int64_t begin = indptr[std::size_t(seq)], end = indptr[std::size_t(seq) + 1];
      expect_same_bits(single.out, rows(together.out, begin, end, heads * batch.data.v_dim), "out");
      expect_same_bits(single.lse, rows(together.lse, begin, end, heads), "lse");
    }
  }
}

TEST_P(AttentionBits, StorageDoesNotMatter) {
  AttentionCase c = plain({700, 130}, {2, 20});
  const Attended expected = c.run(GetParam());
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const std::int32_t page_size : {0, 1, 7, 16, 64, 128, 1000}) {
      for (const std::uint32_t shuffle : {0u, 3u}) {
        c.storage.layout = layout;
        c.storage.page_size = page_size;
        c.storage.shuffle = shuffle;
        expect_same_bits(c.run(GetParam()), expected, "page size " + std::to_string(page_size));
      }
    }
  }
}

TEST_P(AttentionBits, ALongPrefillIsTheSameOnMoreThreadsWithSmallerTiles) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const AttentionCase c = plain({700, 300}, {400, 120}, dtype);
    const Attended expected = c.run(GetParam());
    for (const std::int32_t threads : {2, 4}) {
      const std::unique_ptr<Executor> pool = make_thread_pool(threads).value();
      expect_same_bits(c.run(GetParam(), *pool), expected, std::to_string(threads) + " threads");
    }
  }
}

TEST_P(AttentionBits, AnySplitOfAPrefillGivesTheSame) {
  AttentionCase whole = plain({600}, {100});
  for (const bool reproducible : {true, false}) {
    whole.options.reproducible = reproducible;
    const Attended expected = whole.run(GetParam());
    // Chunks of decode are prefill only where reproducible.
    const std::vector<std::int32_t> chunks =
        reproducible ? std::vector{1, 3, 8, 9, 33} : std::vector{10, 20, 50};
    for (const std::int32_t chunk : chunks) {
      for (std::int32_t begin = 0; begin < 100; begin += chunk) {
        const std::int32_t end = std::min(100, begin + chunk);
        AttentionCase c = whole;
        c.data.lengths = {500 + end};
        c.data.k[0].resize(static_cast<std::size_t>(500 + end) * 2 * 40);
        c.data.v[0].resize(static_cast<std::size_t>(500 + end) * 2 * 24);
        c.queries = {end - begin};
        c.q = rows(whole.q, begin, end, 6 * 40);
        const Attended found = c.run(GetParam());
        expect_same_bits(found.out, rows(expected.out, begin, end, 6 * 24),
                         "chunk " + std::to_string(chunk));
        expect_same_bits(found.lse, rows(expected.lse, begin, end, 6), "lse");
      }
    }
  }
}

TEST_P(AttentionBits, DroppedAndHiddenRowsAreTheSame) {
  const std::int32_t dropped = 77;
  AttentionCase hidden = plain({1200}, {2});
  AttentionCase gone = hidden;
  hidden.storage.first_visible = {dropped};
  gone.storage.first_position = {dropped};
  gone.data.lengths = {1200 - dropped};
  gone.data.k[0].erase(gone.data.k[0].begin(), gone.data.k[0].begin() + dropped * 2 * 40);
  gone.data.v[0].erase(gone.data.v[0].begin(), gone.data.v[0].begin() + dropped * 2 * 24);
  expect_same_bits(gone.run(GetParam()), hidden.run(GetParam()), "77 rows");
}

TEST_P(AttentionBits, AWindowIsTheSameWithTheRowsBeforeItDropped) {
  AttentionCase all = plain({1200}, {1});
  all.options.window = 300;
  AttentionCase kept = all;
  const std::int32_t dropped = 850;
  kept.storage.first_position = {dropped};
  kept.data.lengths = {1200 - dropped};
  kept.data.k[0].erase(kept.data.k[0].begin(), kept.data.k[0].begin() + dropped * 2 * 40);
  kept.data.v[0].erase(kept.data.v[0].begin(), kept.data.v[0].begin() + dropped * 2 * 24);
  expect_same_bits(kept.run(GetParam()), all.run(GetParam()), "window");
}

TEST_P(AttentionBits, PartsThatEndAtCutsAreAsOnePart) {
  AttentionCase c = plain({1300}, {3});
  const Attended expected = c.run(GetParam());
  c.storage.parts = {{512}, {788}};
  expect_same_bits(c.run(GetParam()), expected, "two parts");
  c.storage.parts = {{512}, {0}, {512}, {276}};
  expect_same_bits(c.run(GetParam()), expected, "four parts");
}

// Six sequences: two share 1600 rows, a third 1100 of these, another two 600 of theirs with all.
AttentionCase tree(std::vector<std::int32_t> queries) {
  AttentionCase c;
  c.data = KvRowsData({1700, 1605, 1300, 700, 650, 1200}, 2, 40, 24);
  c.num_heads = 6;
  c.queries = std::move(queries);
  c.storage.k_dtype = c.storage.v_dtype = DType::kBF16;
  c.storage.page_size = 16;
  c.storage.shuffle = 5;
  c.storage.shared = {{}, {0, 1600}, {0, 1100}, {0, 600}, {3, 600}, {}};
  std::mt19937 rng(12);
  c.randomize(rng);
  c.data.share(c.storage.shared);
  return c;
}

TEST_P(AttentionBits, ASharedPrefixMovesNoBit) {
  for (const std::vector<std::int32_t>& queries : std::vector<std::vector<std::int32_t>>{
           {1, 1, 1, 1, 1, 1}, {1, 3, 8, 2, 1, 5}, {9, 12, 16, 10, 9, 11}, {1, 9, 2, 40, 16, 0}}) {
    AttentionCase c = tree(queries);
    for (const bool with_mask : {false, true}) {
      if (with_mask) {
        std::mt19937 rng(13);
        choose_mask(rng, &c);
        c.alibi_slopes = {0.1f, 0.2f, 0.3f, 0.01f, 0.02f, 0.03f};
      }
      c.options.share_prefixes = false;
      const Attended expected = c.run(GetParam());
      c.options.share_prefixes = true;
      for (std::int32_t threads = 1; threads <= 4; ++threads) {
        const std::unique_ptr<Executor> pool = make_thread_pool(threads).value();
        expect_same_bits(c.run(GetParam(), *pool), expected, std::to_string(threads) + " threads");
      }
      AttentionCase paged = c;
      for (const std::int32_t page_size : {0, 1, 7, 64, 512}) {
        if (kSlow && page_size % 7 != 0) continue;
        paged.storage.page_size = page_size;
        expect_same_bits(paged.run(GetParam()), expected, "pages of " + std::to_string(page_size));
      }
    }
  }
}

TEST_P(AttentionBits, ASharedPrefixOfMoreRowsThanOnePassMovesNoBit) {
  AttentionCase c;
  c.data = KvRowsData(std::vector<std::int32_t>(40, 1100), 1, 24, 24);
  c.num_heads = 5;
  c.queries.assign(40, 1);
  c.queries[7] = 3;
  c.storage.page_size = 16;
  c.storage.shared.assign(40, {0, 1056});
  c.storage.shared[0] = {};
  std::mt19937 rng(14);
  c.randomize(rng);
  c.data.share(c.storage.shared);
  c.options.share_prefixes = false;
  const Attended expected = c.run(GetParam());
  c.options.share_prefixes = true;
  for (std::int32_t threads = 1; threads <= 4; ++threads) {
    const std::unique_ptr<Executor> pool = make_thread_pool(threads).value();
    expect_same_bits(c.run(GetParam(), *pool), expected, std::to_string(threads) + " threads");
  }
  const KvStorage stored(c.data, c.storage);
  const std::vector<std::int32_t> indptr = c.qo_indptr();
  for (std::int32_t seq : {0, 7, 39}) {
    expect_same_bits(
        c.run_alone(stored.view(), seq, GetParam()).out,
        rows(expected.out, indptr[std::size_t(seq)], indptr[std::size_t(seq) + 1], 5 * 24),
        "alone");
  }
}

// Behind row 2048 decode goes by cuts of 2048 keys, prefill by cuts of 512.
TEST_P(AttentionBits, TextsOfSeveralLongCuts) {
  AttentionCase c;
  c.data = KvRowsData({6300, 6170, 4500, 4099, 2040}, 2, 40, 24);
  c.num_heads = 6;
  c.storage.k_dtype = c.storage.v_dtype = DType::kBF16;
  c.storage.page_size = 16;
  c.storage.shared = {{}, {0, 6144}, {0, 4096}, {0, 4096}, {0, 1600}};
  c.queries = {1, 2, 8, 1, 9};
  std::mt19937 rng(15);
  c.randomize(rng);
  c.data.share(c.storage.shared);
  c.options.share_prefixes = false;
  const Attended expected = c.run(GetParam());
  for (const bool share : {true, false}) {
    c.options.share_prefixes = share;
    for (std::int32_t threads = 1; threads <= 4; ++threads) {
      const std::unique_ptr<Executor> pool = make_thread_pool(threads).value();
      expect_same_bits(c.run(GetParam(), *pool), expected, std::to_string(threads) + " threads");
    }
    AttentionCase stored = c;
    for (const std::int32_t page_size : {0, 1, 3, 128}) {
      if (kSlow && page_size != 3) continue;
      stored.storage.page_size = page_size;
      expect_same_bits(stored.run(GetParam()), expected, "pages of " + std::to_string(page_size));
    }
  }
}

TEST_P(AttentionBits, RandomCallsWithAndWithoutSharing) {
  const std::unique_ptr<Executor> pool = make_thread_pool(3).value();
  for (std::uint32_t seed = 2000; seed < 2060; ++seed) {
    AttentionCase c = random_case(seed);
    SCOPED_TRACE(describe(c));
    const Attended shared = c.run(GetParam(), *pool);
    c.options.share_prefixes = false;
    expect_same_bits(shared, c.run(GetParam()), "seed " + std::to_string(seed));
  }
}

TEST_P(AttentionBits, RandomCallsOnAnyNumberOfThreads) {
  const std::unique_ptr<Executor> pool = make_thread_pool(4).value();
  for (std::uint32_t seed = 1000; seed < unless_slow(1040u, 1010u); ++seed) {
    const AttentionCase c = random_case(seed);
    SCOPED_TRACE(describe(c));
    expect_same_bits(c.run(GetParam(), *pool), c.run(GetParam()), "seed " + std::to_string(seed));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionBits, ::testing::ValuesIn(backend_names(false)),
                         [](const auto& backend) { return backend.param; });

}  // namespace
}  // namespace kvcache::testing
