// What the tests of PagedCache share. A token is a small number; each of its elements in each layer
// is computed from it, so that a misplaced row, head, layer or element is seen at once.
#ifndef KVCACHE_TESTS_SUPPORT_PAGED_H_
#define KVCACHE_TESTS_SUPPORT_PAGED_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "kvcache/memory.h"
#include "kvcache/paged_cache.h"
#include "support/tensors.h"

namespace kvcache::testing {

using Tokens = std::vector<double>;
using Pages = std::vector<std::int32_t>;
using Counts = std::vector<std::int64_t>;

// Memory is NaN in every floating type when it is fresh and once it was given back; the k-th call
// of commit or reserve fails on demand, or calls do at random. Errors in the account show as
// committed_bytes() != 0 after the cache is gone.
class TestMemory final : public MemoryResource {
 public:
  ~TestMemory() override = default;

  void fail_after(std::int64_t calls) { calls_left_ = calls; }
  void never_fail() {
    calls_left_ = std::numeric_limits<std::int64_t>::max();
    one_in_ = 0;
  }
  // Of `one_in` calls one fails, which one depends on the seed.
  void fail_at_random(std::uint64_t seed, std::uint64_t one_in) {
    random_ = seed * 2 + 1;
    one_in_ = one_in;
  }
  std::int64_t committed_bytes() const { return committed_; }
  std::int64_t peak_bytes() const { return peak_; }  // the most that were ever committed
  std::int64_t regions() const { return regions_; }

  Result<Region> reserve(std::int64_t bytes) noexcept override {
    if (!allowed()) return Status(StatusCode::kOutOfMemory, "injected");
    auto region = system_memory().reserve(bytes);
    if (!region.ok()) return region.status();
    ++regions_;
    if (bytes <= kPoisoned) std::memset(region->data, 0xFF, static_cast<std::size_t>(bytes));
    return region;
  }
  Status commit(const Region& region, std::int64_t bytes) noexcept override {
    if (!allowed()) return Status(StatusCode::kOutOfMemory, "injected");
    committed_ += bytes;
    peak_ = std::max(peak_, committed_);
    // What is wanted whole and at once are tables, which count on zeros.
    if (bytes == region.bytes) std::memset(region.data, 0, static_cast<std::size_t>(bytes));
    return system_memory().commit(region, bytes);
  }
  void decommit(const Region& region, std::int64_t bytes, std::int64_t offset,
                std::int64_t length) noexcept override {
    committed_ -= bytes;
    system_memory().decommit(region, bytes, offset, length);
    // What was given back holds nothing that anybody may count on.
    if (length > 0 && region.bytes <= kPoisoned) {
      std::memset(region.data + offset, 0xFF, static_cast<std::size_t>(length));
    }
  }
  Result<Region> grow(const Region& region, const RowSpan& from, const RowSpan& to,
                      std::int64_t bytes, std::int64_t* copied) noexcept override {
    return system_memory().grow(region, from, to, bytes, copied);
  }
  void release(const Region& region, std::int64_t committed) noexcept override {
    committed_ -= committed;
    --regions_;
    system_memory().release(region, 0);
  }

 private:
  static constexpr std::int64_t kPoisoned = 1 << 24;

  bool allowed() noexcept {
    if (one_in_ > 0) {
      random_ = random_ * 6364136223846793005U + 1442695040888963407U;
      if ((random_ >> 33) % one_in_ == 0) return false;
    }
    return calls_left_-- > 0;
  }

  std::int64_t calls_left_ = std::numeric_limits<std::int64_t>::max();
  std::uint64_t random_ = 1, one_in_ = 0;
  std::int64_t committed_ = 0, peak_ = 0;
  std::int64_t regions_ = 0;
};

// Exact in every type for tokens below 64, 2 heads, head_dim <= 2 and a few layers.
inline double element(double token, std::int64_t layer, std::int64_t head, std::int64_t d,
                      bool value) {
  const double x =
      std::ldexp(token * 4 + static_cast<double>(head * 2 + d), static_cast<int>(layer));
  return value ? -x : x;
}

// What the resource counts. After a refusal that may be less than the cache has reserved, memory
// that was lent and not taken back (PagedStore::repay), until the next call that changes something.
inline std::int64_t settled_bytes(const TestMemory& memory, PagedCache& cache) {
  if (memory.committed_bytes() < cache.reserved_bytes()) {
    const Result<SequenceId> seq = cache.open();
    EXPECT_TRUE(!seq.ok() || cache.release(*seq).ok());
  }
  return memory.committed_bytes();
}

inline LayerSpec paged_spec(DType dtype = DType::kF32) { return LayerSpec::kv(2, 2, 1, dtype); }

// New rows of one layer, packed [num_tokens, num_kv_heads, head_dim].
inline HostTensor packed(const LayerSpec& spec, const Tokens& tokens, std::int64_t layer,
                         bool value, DType dtype = DType::kF32) {
  const auto [role, heads, dim, format] = value ? spec.value() : spec.key();
  HostTensor rows(dtype, {static_cast<std::int64_t>(tokens.size()), heads, dim});
  std::int64_t i = 0;
  for (const double token : tokens) {
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t d = 0; d < dim; ++d) rows.set(i++, element(token, layer, head, d, value));
    }
  }
  return rows;
}

// A cache of a few layers of paged_spec(), and the words that the tests are written in.
struct PagedFixture {
  std::vector<LayerSpec> specs;  // [num_layers]
  std::int64_t num_layers;
  Layout layout;
  PagedCache cache;

  static CacheConfig config(Layout layout = Layout::kHND, DType dtype = DType::kF32,
                            std::int64_t num_pages = 8, std::int64_t page_size = 4,
                            std::int64_t num_layers = 2) {
    CacheConfig config;
    config.layers.assign(static_cast<std::size_t>(num_layers), paged_spec(dtype));
    config.page_size = page_size;
    config.num_pages = num_pages;
    config.layout = layout;
    return config;
  }

  // REQUIRES: a config that create() takes.
  explicit PagedFixture(const CacheConfig& config = PagedFixture::config())
      : specs(config.layers),
        num_layers(static_cast<std::int64_t>(config.layers.size())),
        layout(config.layout),
        cache(PagedCache::create(config).value()) {}

  const LayerSpec& spec(std::int64_t layer = 0) const {
    const bool known = layer >= 0 && layer < num_layers;
    return specs[static_cast<std::size_t>(known ? layer : 0)];
  }
  SequenceId open() { return cache.open().value(); }

  Status write_layer(PagedCache::Step& step, std::int64_t layer, const Tokens& tokens,
                     DType dtype = DType::kF32) {
    const HostTensor k = packed(spec(layer), tokens, layer, false, dtype);
    const HostTensor v = packed(spec(layer), tokens, layer, true, dtype);
    return cache.write(step, layer, k, v);
  }
  Status write(PagedCache::Step& step, const Tokens& tokens) {
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      KVC_RETURN_IF_ERROR(write_layer(step, layer, tokens));
    }
    return {};
  }
  Result<PagedCache::Step> reserve(SequenceId seq, std::int64_t count) {
    const Append append{seq, count};
    return cache.reserve({&append, 1});
  }
  // reserve, write, commit.
  Status append(SequenceId seq, const Tokens& tokens) {
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step,
                         reserve(seq, static_cast<std::int64_t>(tokens.size())));
    KVC_RETURN_IF_ERROR(write(step, tokens));
    return cache.commit(step);
  }

  // The token whose elements these are; NaN if they are no token's.
  double decode(const TensorView& rows, std::int64_t layer, std::int64_t row, bool value) const {
    const bool head_first = layout == Layout::kHND;
    const auto [role, heads, dim, format] = value ? spec(layer).value() : spec(layer).key();
    double token = 0;
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t d = 0; d < dim; ++d) {
        const std::int64_t at = head * rows.strides[head_first ? 0 : 1] +
                                row * rows.strides[head_first ? 1 : 0] + d * rows.strides[2];
        const double x = read_element(
            static_cast<const std::byte*>(rows.data) + at * size_of(rows.dtype), rows.dtype);
        if (head == 0 && d == 0) token = std::ldexp(value ? -x : x, -static_cast<int>(layer)) / 4;
        if (!(x == element(token, layer, head, d, value))) return std::nan("");
      }
    }
    return token;
  }

  // The tokens that one layer holds of a sequence, as gather() shows them, K and V.
  Tokens held(std::int64_t layer, SequenceId seq, DType dtype = DType::kF32) const {
    const std::int64_t rows = cache.rows_held(layer, seq).value();
    Tokens result(static_cast<std::size_t>(rows));
    const auto shape = [&](std::int64_t dim) {
      const std::int64_t heads = spec(layer).key().heads;
      return layout == Layout::kHND ? Counts{heads, rows, dim} : Counts{rows, heads, dim};
    };
    HostTensor k(dtype, shape(spec(layer).key().dim));
    HostTensor v(dtype, shape(spec(layer).value().dim));
    const Status status = cache.gather(layer, seq, k.mutable_view(), v.mutable_view());
    if (!status.ok()) return {std::nan("")};
    for (std::int64_t row = 0; row < rows; ++row) {
      double& token = result[static_cast<std::size_t>(row)];
      token = decode(k, layer, row, false);
      if (decode(v, layer, row, true) != token) token = std::nan("");
    }
    return result;
  }

  // What every layer that lives as the first does holds of a sequence.
  Tokens tokens(SequenceId seq, DType dtype = DType::kF32) const {
    const Tokens result = held(0, seq, dtype);
    for (std::int64_t layer = 1; layer < num_layers; ++layer) {
      if (spec(layer).life == spec(0).life && held(layer, seq, dtype) != result) {
        return {std::nan("")};
      }
    }
    return result;
  }

  // The tokens held of sequence `index` of a view of `layer`, through its table and strides.
  Tokens tokens(const KvView& view, std::int32_t index, std::int64_t layer = 0) const {
    const KvPart& part = view.parts[0];
    const std::int32_t first = part.first_held == nullptr ? 0 : part.first_held[index];
    Tokens result;
    for (std::int32_t row = 0; row < part.lengths[index]; ++row) {
      if (row >= part.held_sink_tokens && row < first) continue;
      std::int32_t entry = row / part.page_size;
      if (part.hole_pages != nullptr && entry >= part.hole_begin[index]) {
        entry -= part.hole_pages[index];
      }
      const std::int32_t page = part.block_table[index * part.block_table_stride + entry];
      const std::int32_t slot = row % part.page_size;
      const auto rows_at = [&](const RowsView& stored, std::int64_t dim) {
        TensorView rows;
        rows.data = stored.row_at(page, 0, slot);
        rows.rank = 3;
        rows.dtype = stored.format.dtype;
        const bool head_first = layout == Layout::kHND;
        rows.shape[head_first ? 0 : 1] = view.num_kv_heads;
        rows.strides[head_first ? 0 : 1] = stored.head_stride / size_of(rows.dtype);
        rows.shape[head_first ? 1 : 0] = 1;
        rows.shape[2] = dim;
        rows.strides[2] = 1;
        return rows;
      };
      const double token = decode(rows_at(part.k, view.k_head_dim), layer, 0, false);
      const double by_value = decode(rows_at(part.v, view.v_head_dim), layer, 0, true);
      result.push_back(token == by_value ? token : std::nan(""));
    }
    return result;
  }

  Pages pages(SequenceId seq, std::int64_t layer = 0) const {
    return cache.block_table(layer, {&seq, 1}).value().pages;
  }
};

// All that can be seen of a cache: equal before and after a failing call.
struct PagedState {
  std::vector<Tokens> tokens;
  std::vector<Pages> pages;
  Counts numbers;

  friend bool operator==(const PagedState&, const PagedState&) = default;
};

inline PagedState state_of(const PagedFixture& f, const std::vector<SequenceId>& seqs) {
  PagedState state;
  for (const SequenceId seq : seqs) {
    state.numbers.push_back(f.cache.seq_length(seq).value());
    for (std::int64_t layer = 0; layer < f.num_layers; ++layer) {
      state.tokens.push_back(f.held(layer, seq));
      state.pages.push_back(f.pages(seq, layer));
      state.numbers.push_back(f.cache.first_position(layer, seq).value());
    }
  }
  const PagedStats stats = f.cache.stats();
  for (const std::int64_t number :
       {f.cache.nbytes(), f.cache.reserved_bytes(), f.cache.free_pages(), stats.pages_held,
        stats.pages_reserved, stats.pages_high_water, stats.pages_copied, stats.rows_copied,
        stats.sequences, stats.open_steps}) {
    state.numbers.push_back(number);
  }
  EXPECT_TRUE(f.cache.check_invariants().ok()) << f.cache.check_invariants().to_string();
  return state;
}

// Pages of 4 tokens, in both layouts and every element type.
class PagedTest : public ::testing::TestWithParam<std::tuple<Layout, DType>> {
 public:
  static std::string name(const ::testing::TestParamInfo<std::tuple<Layout, DType>>& each) {
    return std::string(name_of(std::get<0>(each.param))) + "_" + name_of(std::get<1>(each.param));
  }

 protected:
  static Layout layout() { return std::get<0>(GetParam()); }
  static DType dtype() { return std::get<1>(GetParam()); }
  static PagedFixture make(std::int64_t num_pages = 8) {
    return PagedFixture(PagedFixture::config(layout(), dtype(), num_pages));
  }
};

inline auto every_paged_case() {
  return ::testing::Combine(::testing::Values(Layout::kHND, Layout::kNHD),
                            ::testing::Values(DType::kF32, DType::kF16, DType::kBF16));
}

}  // namespace kvcache::testing

#define EXPECT_OK(expr)                                   \
  do {                                                    \
    const ::kvcache::Status expect_ok = (expr);           \
    EXPECT_TRUE(expect_ok.ok()) << expect_ok.to_string(); \
  } while (false)

#define ASSERT_OK(expr)                                   \
  do {                                                    \
    const ::kvcache::Status assert_ok = (expr);           \
    ASSERT_TRUE(assert_ok.ok()) << assert_ok.to_string(); \
  } while (false)

// `expr`, a Status, fails with `code_in` and the cache of fixture `f` looks as before.
#define EXPECT_REFUSED(f, seqs, code_in, expr)                         \
  do {                                                                 \
    const auto before_call = ::kvcache::testing::state_of(f, seqs);    \
    const ::kvcache::Status refused = (expr);                          \
    EXPECT_EQ(refused.code(), code_in) << refused.to_string();         \
    EXPECT_NE(refused.message(), "");                                  \
    EXPECT_TRUE(::kvcache::testing::state_of(f, seqs) == before_call); \
  } while (false)

#endif  // KVCACHE_TESTS_SUPPORT_PAGED_H_
