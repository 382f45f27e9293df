// Attention calls over all options, layouts, types and sizes, chosen by a seed, or by whatever a
// source of 32-bit choices gives (a fuzz target's has the bytes of its input).
#ifndef KVCACHE_TESTS_SUPPORT_RANDOM_ATTENTION_H_
#define KVCACHE_TESTS_SUPPORT_RANDOM_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "support/attention_case.h"

namespace kvcache::testing {

template <typename T, typename Rng>
T pick(Rng& rng, std::initializer_list<T> list) {
  return list.begin()[rng() % list.size()];
}
template <typename Rng>
bool chance(Rng& rng, int one_in) {
  return rng() % static_cast<unsigned>(one_in) == 0;
}

inline void choose_sizes(std::mt19937& rng, AttentionCase* c) {
  const auto kv_heads = pick<std::int32_t>(rng, {1, 1, 2, 3});
  c->num_heads = kv_heads * pick<std::int32_t>(rng, {1, 2, 4, 5, 7});
  const auto k_dim = pick<std::int32_t>(rng, {1, 4, 5, 16, 33, 64, 80, 128});
  const auto v_dim = chance(rng, 2) ? k_dim : pick<std::int32_t>(rng, {1, 8, 15, 48, 64, 130});
  std::vector<std::int32_t> lengths;
  const int num_seqs = 1 + static_cast<int>(rng() % (chance(rng, 3) ? 6 : 3));
  for (int s = 0; s < num_seqs; ++s) {
    lengths.push_back(pick<std::int32_t>(
        rng, {0, 1, 2, 63, 64, 65, 127, 130, 511, 512, 513, 700, 1024, 1030, 1100, 2050, 2600}));
    c->queries.push_back(pick<std::int32_t>(rng, {0, 1, 1, 2, 4, 8, 9, 17, 40}));
  }
  c->data = KvRowsData(lengths, kv_heads, k_dim, v_dim);
}

template <typename Rng>
void choose_storage(Rng& rng, AttentionCase* c) {
  KvStorageOptions& storage = c->storage;
  storage.k_dtype = pick(rng, {DType::kF32, DType::kF16, DType::kBF16});
  storage.v_dtype =
      chance(rng, 4) ? pick(rng, {DType::kF32, DType::kF16, DType::kBF16}) : storage.k_dtype;
  storage.layout = pick(rng, {Layout::kHND, Layout::kNHD});
  storage.page_size = pick<std::int32_t>(rng, {0, 1, 3, 16, 64, 100});
  storage.shuffle = chance(rng, 2) ? rng() | 1u : 0;
  if (chance(rng, 3)) storage.chunk_shift = pick<std::int32_t>(rng, {0, 1, 3});
  const std::size_t num_seqs = c->data.lengths.size();
  if (chance(rng, 3)) {
    for (std::size_t s = 0; s < num_seqs; ++s) {
      storage.first_position.push_back(static_cast<std::int32_t>(rng() % 1500));
    }
  }
  if (chance(rng, 3)) {
    for (std::size_t s = 0; s < num_seqs; ++s) {
      storage.first_visible.push_back(
          static_cast<std::int32_t>(rng() % (static_cast<unsigned>(c->data.lengths[s]) + 2)));
    }
  }
  if (chance(rng, 3)) {
    std::vector<std::int32_t> rest = c->data.lengths;
    const std::size_t parts = 2 + rng() % 2;
    for (std::size_t p = 0; p < parts; ++p) {
      std::vector<std::int32_t> taken;
      for (std::int32_t& left : rest) {
        const auto take =
            p + 1 == parts ? left
                           : static_cast<std::int32_t>(rng() % (static_cast<unsigned>(left) + 1));
        taken.push_back(take);
        left -= take;
      }
      storage.parts.push_back(taken);
    }
  }
  if (chance(rng, 4)) {
    std::mt19937 gaps(rng());
    for (std::int32_t length : c->data.lengths) {
      std::vector<std::int32_t> positions;
      std::int32_t position = static_cast<std::int32_t>(gaps() % 20);
      for (std::int32_t row = 0; row < length; ++row) {
        positions.push_back(position);
        position += chance(gaps, 10) ? static_cast<std::int32_t>(gaps() % 30) : 1;
      }
      storage.positions.push_back(positions);
    }
  }
}

// Some sequences begin with pages of earlier ones, near and beyond the ends of cuts.
template <typename Rng>
void choose_shared(Rng& rng, AttentionCase* c) {
  KvStorageOptions& storage = c->storage;
  const std::vector<std::int32_t>& lengths = c->data.lengths;
  storage.shared.resize(lengths.size());
  for (std::size_t s = 1; s < lengths.size(); ++s) {
    SharedRows& shared = storage.shared[s];
    shared.of = static_cast<std::int32_t>(rng() % s);
    shared.rows = std::min({lengths[s], lengths[static_cast<std::size_t>(shared.of)],
                            pick<std::int32_t>(rng, {0, 511, 512, 513, 700, 1024, 1100, 5000})});
  }
  // Rows are shared at the same place of their sequences only.
  if (!chance(rng, 4)) {
    for (std::int32_t& first : storage.first_position) first = storage.first_position[0];
    for (std::int32_t& first : storage.first_visible) first = storage.first_visible[0];
    for (std::vector<std::int32_t>& part : storage.parts) {
      // All but the last part end at the same row of every sequence.
      const std::int32_t least = *std::min_element(part.begin(), part.end());
      if (&part != &storage.parts.back()) std::fill(part.begin(), part.end(), least);
    }
    for (std::size_t s = 0; s < lengths.size() && !storage.parts.empty(); ++s) {
      std::int32_t rest = lengths[s];
      for (std::size_t p = 0; p + 1 < storage.parts.size(); ++p) rest -= storage.parts[p][s];
      storage.parts.back()[s] = rest;
    }
  }
}

template <typename Rng>
void choose_mask(Rng& rng, AttentionCase* c) {
  const std::int32_t queries =
      *std::max_element(c->queries.begin(), c->queries.end()) + static_cast<int>(rng() % 2);
  const std::int32_t keys = *std::max_element(c->data.lengths.begin(), c->data.lengths.end()) +
                            static_cast<int>(rng() % 3);
  const std::int64_t batch = chance(rng, 2) ? 1 : static_cast<std::int64_t>(c->data.lengths.size());
  const std::int64_t heads = chance(rng, 2) ? 1 : c->num_heads;
  c->mask = HostTensor(DType::kF32, {batch, heads, queries, keys});
  std::mt19937 values(rng());
  std::uniform_real_distribution<double> bias(-2, 2);
  for (std::int64_t i = 0; i < c->mask.num_elements(); ++i) {
    c->mask.set(i, chance(values, 3) ? -INFINITY : bias(values));
  }
  c->has_mask = true;
}

template <typename Rng>
void choose_options(Rng& rng, AttentionCase* c) {
  AttentionOptions& options = c->options;
  options.causal = !chance(rng, 3);
  if (chance(rng, 4)) options.scale = 0.3f;
  if (chance(rng, 4)) options.softcap = pick(rng, {0.5f, 5.0f, 50.0f});
  if (chance(rng, 3)) {
    options.window = pick<std::int32_t>(rng, {1, 2, 63, 64, 100, 600});
    options.sink_tokens = pick<std::int32_t>(rng, {0, 0, 1, 4, 70});
  } else if (chance(rng, 4)) {
    options.chunk = pick<std::int32_t>(rng, {1, 2, 63, 64, 100, 600});
  }
  std::mt19937 values(rng());
  std::uniform_real_distribution<float> uniform(0.001f, 0.5f);
  if (chance(rng, 4)) {
    for (std::int32_t head = 0; head < c->num_heads; ++head) {
      c->alibi_slopes.push_back(uniform(values));
    }
  }
  if (chance(rng, 4)) {
    for (std::int32_t head = 0; head < c->num_heads; ++head) {
      c->sinks.push_back(4 * uniform(values) - 1);
    }
  }
  options.partial = chance(rng, 6);
  options.reproducible = chance(rng, 6);
  if (chance(rng, 4)) choose_mask(rng, c);
}

inline AttentionCase random_case(std::uint32_t seed) {
  std::mt19937 rng(seed);
  AttentionCase c;
  choose_sizes(rng, &c);
  choose_storage(rng, &c);
  choose_options(rng, &c);
  c.q_dtype = chance(rng, 3) ? pick(rng, {DType::kF16, DType::kBF16}) : DType::kF32;
  if (chance(rng, 2)) choose_shared(rng, &c);
  c.randomize(rng);
  c.data.share(c.storage.shared);
  return c;
}

inline std::string describe(const AttentionCase& c) {
  std::ostringstream text;
  const auto list = [&](const char* name, const auto& values) {
    text << name << " [";
    for (const auto& value : values) text << value << " ";
    text << "] ";
  };
  text << "heads " << c.num_heads << "/" << c.data.num_kv_heads << " dims " << c.data.k_dim << "/"
       << c.data.v_dim << " ";
  list("lengths", c.data.lengths);
  list("queries", c.queries);
  for (const SharedRows& shared : c.storage.shared) {
    text << "shared " << shared.rows << " of " << shared.of << " ";
  }
  text << name_of(c.storage.k_dtype) << "/" << name_of(c.storage.v_dtype) << " q "
       << name_of(c.q_dtype) << " " << name_of(c.storage.layout) << " page " << c.storage.page_size
       << " ";
  list("first_position", c.storage.first_position);
  list("first_visible", c.storage.first_visible);
  for (const auto& part : c.storage.parts) list("part", part);
  text << (c.storage.positions.empty() ? "" : "positions ") << (c.options.causal ? "causal " : "")
       << "window " << c.options.window << "+" << c.options.sink_tokens << " chunk "
       << c.options.chunk << " softcap " << c.options.softcap
       << (c.alibi_slopes.empty() ? "" : " alibi") << (c.sinks.empty() ? "" : " sinks")
       << (c.has_mask ? " mask" : "") << (c.options.partial ? " partial" : "")
       << (c.options.reproducible ? " reproducible" : "");
  return text.str();
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_RANDOM_ATTENTION_H_
