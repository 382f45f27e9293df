// Any bytes as an attention call: shapes, storage, options, lengths around the ends of blocks and
// cuts, values that hurt. Every backend that runs here must agree with the definition, and give the
// same bits on any number of threads, whatever the pages, shared prefix or not, alone or in a
// batch.
#include <array>
#include <limits>
#include <numeric>

#include "support/fuzz.h"
#include "support/random_attention.h"

namespace kvcache::fuzz {
namespace {

using testing::Attended;
using testing::AttentionCase;
using testing::chance;
using testing::KvRowsData;
using testing::KvStorage;
using testing::pick;

// The input as a source of choices.
class Choices {
 public:
  using result_type = std::uint32_t;
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return std::numeric_limits<result_type>::max(); }

  Choices(const std::uint8_t* data, std::size_t size) : input_(data, size) {}
  // After the end of the input: nothing unlikely.
  result_type operator()() { return input_.empty() ? 1 : input_.two_bytes(); }

 private:
  Numbers input_;
};

void choose_sizes(Choices& choices, AttentionCase* c) {
  const auto kv_heads = pick<std::int32_t>(choices, {1, 2});
  c->num_heads = kv_heads * pick<std::int32_t>(choices, {1, 2, 3, 4, 7});
  const auto dim = [&] {
    return chance(choices, 2) ? pick<std::int32_t>(choices, {8, 16, 32, 64})
                              : 1 + static_cast<std::int32_t>(choices() % 40);
  };
  const std::int32_t k_dim = dim();
  const std::int32_t v_dim = dim();
  std::vector<std::int32_t> lengths;
  for (std::uint32_t count = 1 + choices() % 4; count > 0; --count) {
    const auto edge = pick<std::int32_t>(choices, {0, 64, 128, 512, 576, 1024, 2048, 2600});
    const auto beyond = static_cast<std::int32_t>(choices() % 7) - 3;
    lengths.push_back(std::max(0, edge + beyond));
    c->queries.push_back(pick<std::int32_t>(choices, {1, 0, 1, 2, 7, 8, 9, 13}));
  }
  c->data = KvRowsData(lengths, kv_heads, k_dim, v_dim);
}

// Denormals, large numbers, equal scores, a NaN or an infinity. What they make of the scores is at
// most the number returned times the length of a query row.
float disturb(Choices& choices, AttentionCase* c) {
  float largest = 0;
  for (std::size_t s = 0; s < c->data.lengths.size(); ++s) {
    std::vector<float>& k = c->data.k[s];
    std::vector<float>& v = c->data.v[s];
    switch (choices() % 8) {
      case 0:
        for (std::size_t i = 0; i < k.size(); i += 2) k[i] *= 1e-41f;
        for (std::size_t i = 1; i < v.size(); i += 2) v[i] *= 1e-41f;
        break;
      case 2:
        for (float& x : k) x = 0.25f;
        break;
      case 3:
        for (float& x : k) x *= 30;
        break;
      default:
        break;
    }
    if (!k.empty() && chance(choices, 4)) k[choices() % k.size()] = 1000;
    for (std::vector<float>* rows : {&k, &v}) {
      if (rows->empty() || !chance(choices, 6)) continue;
      (*rows)[choices() % rows->size()] = pick<float>(choices, {NAN, INFINITY, -INFINITY});
    }
    for (const float x : k) {
      if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
    }
  }
  return largest * std::sqrt(static_cast<float>(c->data.k_dim));
}

// The largest score there may be.
double largest_score(const AttentionCase& c, double longest_key) {
  double longest_query = 0;
  for (auto row = c.q.begin(); row != c.q.end(); row += c.data.k_dim) {
    const double squares = std::inner_product(row, row + c.data.k_dim, row, 0.0);
    longest_query = std::max(longest_query, std::sqrt(squares));
  }
  double score = c.options.scale.value_or(1 / std::sqrt(static_cast<float>(c.data.k_dim)));
  score *= longest_query * longest_key;
  constexpr double kFarthest = 8000;  // of two positions: rows, gaps between them, and the first
  for (const float slope : c.alibi_slopes) score = std::max(score, kFarthest * slope);
  return score + static_cast<double>(c.options.softcap);
}

void check(const AttentionCase& c, double score) {
  static const std::array pools = {make_thread_pool(2).value(), make_thread_pool(3).value(),
                                   make_thread_pool(4).value()};
  const Attended expected = c.run("reference");
  for (const std::string& backend : testing::backend_names(false)) {
    SCOPED_TRACE(backend);
    const KvStorage stored(c.data, c.storage);
    const Attended found = c.run_on(stored.view(), backend);
    // A score has an error of its own size, and so have its weight and lse.
    const double tolerance = c.rounds(backend)
                                 ? 5e-3 + score / 256
                                 : 1e-5 + 4 * score * std::numeric_limits<float>::epsilon();
    testing::expect_close(found, expected, tolerance, tolerance);
    for (const std::unique_ptr<Executor>& pool : pools) {
      testing::expect_same_bits(c.run_on(stored.view(), backend, *pool), found, "threads");
    }
    AttentionCase other = c;
    other.options.share_prefixes = false;
    testing::expect_same_bits(other.run_on(stored.view(), backend), found, "not shared");
    other.storage.page_size = c.storage.page_size == 0 ? 16 : 2 * c.storage.page_size + 1;
    other.storage.shuffle = c.storage.shuffle + 1;
    other.storage.layout = c.storage.layout == Layout::kHND ? Layout::kNHD : Layout::kHND;
    testing::expect_same_bits(other.run(backend), found, "other pages");
    const std::vector<std::int32_t> indptr = c.qo_indptr();
    for (std::size_t s = 0; s < c.queries.size(); ++s) {
      const Attended alone = c.run_alone(stored.view(), static_cast<std::int32_t>(s), backend);
      const auto rows = [&](const std::vector<float>& all, std::int64_t size) {
        return std::vector<float>(all.begin() + indptr[s] * size,
                                  all.begin() + indptr[s + 1] * size);
      };
      testing::expect_same_bits(alone.out,
                                rows(found.out, std::int64_t{c.num_heads} * c.data.v_dim), "alone");
      testing::expect_same_bits(alone.lse, rows(found.lse, c.num_heads), "lse alone");
    }
  }
}

}  // namespace
}  // namespace kvcache::fuzz

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kvcache::DType;
  using namespace kvcache::testing;
  GTEST_FLAG_SET(break_on_failure, true);
  kvcache::fuzz::Choices choices(data, size);
  AttentionCase c;
  std::mt19937 values(choices());
  kvcache::fuzz::choose_sizes(choices, &c);
  choose_storage(choices, &c);
  choose_options(choices, &c);
  if (chance(choices, 2)) choose_shared(choices, &c);
  c.q_dtype = pick(choices, {DType::kF32, DType::kF16, DType::kBF16});
  c.randomize(values);
  const float longest_key = kvcache::fuzz::disturb(choices, &c);
  c.data.share(c.storage.shared);
  SCOPED_TRACE(describe(c));
  kvcache::fuzz::check(c, kvcache::fuzz::largest_score(c, longest_key));
  return 0;
}
