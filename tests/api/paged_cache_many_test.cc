// Memory of a pool is taken region by region: caches that may grow large live beside one another,
// and where address space is scarce.
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/paged_cache.h"

namespace kvcache {
namespace {

constexpr std::int64_t kLayers = 32;
constexpr std::int64_t kHeads = 8;
constexpr std::int64_t kDim = 128;

// Room for 131 072 tokens: 16 GiB of rows.
Result<PagedCache> large_cache() {
  CacheConfig config = CacheConfig::uniform(kLayers, kHeads, kDim, DType::kBF16);
  config.page_size = 16;
  config.num_pages = 8192;
  config.layout = Layout::kNHD;  // a token touches one page of the system in each buffer
  return PagedCache::create(config);
}

// One token of `value` in every layer. Errors: of any call.
Status append_token(PagedCache& cache, SequenceId seq, float value) {
  const std::vector<BFloat16> rows(kHeads * kDim, to_bfloat16(value));
  const TensorView packed(rows.data(), DType::kBF16, {1, kHeads, kDim});
  const Append append{seq, 1};
  KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    KVC_RETURN_IF_ERROR(cache.write(step, layer, packed, packed));
  }
  return cache.commit(step);
}

TEST(PagedCaches, AThousandLargeOnesLiveBesideOneAnother) {
  struct One {
    PagedCache cache;
    SequenceId seq = {};
  };
  std::vector<One> all;
  for (int i = 0; i < 1000; ++i) {
    Result<PagedCache> cache = large_cache();
    ASSERT_TRUE(cache.ok()) << i << ": " << cache.status().to_string();
    all.push_back({std::move(*cache), {}});
    One& one = all.back();
    const Result<SequenceId> seq = one.cache.open();
    ASSERT_TRUE(seq.ok()) << i << ": " << seq.status().to_string();
    one.seq = *seq;
    const Status status = append_token(one.cache, one.seq, static_cast<float>(i % 256));
    ASSERT_TRUE(status.ok()) << i << ": " << status.to_string();
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (const std::int64_t layer : {std::int64_t{0}, kLayers - 1}) {
      const Result<OwnedKvView> view = all[i].cache.view(layer, {&all[i].seq, 1});
      ASSERT_TRUE(view.ok());
      const KvPart& part = view->get().parts[0];
      ASSERT_EQ(part.lengths[0], 1);
      const auto* row =
          reinterpret_cast<const BFloat16*>(part.v.row_at(part.block_table[0], kHeads - 1, 0));
      ASSERT_EQ(to_float(row[kDim - 1]), static_cast<float>(i % 256)) << i;
    }
  }
}

// Sanitizers map terabytes for themselves.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
Status one_token_below(std::uint64_t address_space) {
  const rlimit limit = {address_space, address_space};
  if (::setrlimit(RLIMIT_AS, &limit) != 0) return Status(StatusCode::kIo, "setrlimit");
  KVC_ASSIGN_OR_RETURN(PagedCache cache, large_cache());
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, cache.open());
  return append_token(cache, seq, 1);
}

TEST(PagedCaches, ALargeOneLivesWhereAddressSpaceIsScarce) {
  const auto exit_of = [](std::uint64_t address_space) {
    const Status status = one_token_below(address_space);
    std::fputs(status.to_string().c_str(), stderr);
    std::_Exit(status.ok() ? 0 : 1);
  };
  EXPECT_EXIT(exit_of(std::uint64_t{16} << 30), ::testing::ExitedWithCode(0), "");
}
#endif

}  // namespace
}  // namespace kvcache
