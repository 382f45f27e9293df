// The plainest model of sequences whose layers drop rows: a vector of tokens for each, and for each
// layer the first that it holds. What a query sees is found by asking every position.
#ifndef KVCACHE_TESTS_SUPPORT_PAGED_MODEL_H_
#define KVCACHE_TESTS_SUPPORT_PAGED_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "kvcache/layer_spec.h"
#include "support/paged.h"

namespace kvcache::testing {

inline std::int64_t size_of_tokens(const Tokens& tokens) {
  return static_cast<std::int64_t>(tokens.size());
}

// Whether a query at position n sees an earlier one.
inline bool sees(const Life& life, std::int64_t n, std::int64_t position) {
  if (life.window > 0) return n - position < life.window || position < life.sink_tokens;
  return life.chunk == 0 || position / life.chunk == n / life.chunk;
}

// The oldest position that a query at n sees beside the sinks.
inline std::int64_t oldest_seen(const Life& life, std::int64_t n) {
  Life rest = life;
  rest.sink_tokens = 0;
  std::int64_t oldest = 0;
  while (!sees(rest, n, oldest)) ++oldest;
  return oldest;
}

// A sequence: all tokens it has been given, and from which on each layer holds them.
struct SequenceModel {
  Tokens tokens;
  Counts first;            // [num_layers]
  bool holds = false;      // all that it brings, whatever the layers
  std::int64_t coded = 0;  // rows, where newest ones stay plain

  void cut(std::int64_t length) {
    tokens.resize(static_cast<std::size_t>(length));
    coded = std::min(coded, length);
  }
};

// What a cache of these layers does to sequences.
struct PagedModel {
  std::vector<Life> lives;  // [num_layers]
  std::int64_t page_size = 1;
  std::int64_t rewind_tokens = 0;
  std::int64_t residual_tokens = 0;

  explicit PagedModel(const CacheConfig& config)
      : page_size(config.page_size),
        rewind_tokens(config.rewind_tokens),
        residual_tokens(config.residual_tokens) {
    for (const LayerSpec& spec : config.layers) lives.push_back(spec.life);
  }

  std::int64_t num_layers() const { return static_cast<std::int64_t>(lives.size()); }
  SequenceModel open() const { return {{}, Counts(lives.size(), 0), false}; }
  const Life& life(std::int64_t layer) const { return lives[static_cast<std::size_t>(layer)]; }

  // Whether a layer does not keep all.
  bool drops_rows() const {
    return std::any_of(lives.begin(), lives.end(),
                       [](const Life& life) { return life.window > 0 || life.chunk > 0; });
  }
  // What a layer holds from, beside the sinks, once a sequence has come to `length`.
  std::int64_t first(std::int64_t layer, std::int64_t length) const {
    return oldest_seen(life(layer), std::max<std::int64_t>(0, length - rewind_tokens));
  }

  // The groups, each by its first layer.
  Counts groups() const {
    Counts layers;
    for (std::size_t layer = 0; layer < lives.size(); ++layer) {
      const auto same = [&](std::int64_t other) { return life(other) == lives[layer]; };
      if (std::none_of(layers.begin(), layers.end(), same)) {
        layers.push_back(static_cast<std::int64_t>(layer));
      }
    }
    return layers;
  }

  // The positions that a layer holds, in order.
  Counts positions(const SequenceModel& seq, std::int64_t layer) const {
    const std::int64_t first = seq.first[static_cast<std::size_t>(layer)];
    Counts positions;
    for (std::int64_t p = 0; p < size_of_tokens(seq.tokens); ++p) {
      if (p < life(layer).sink_tokens || p >= first) positions.push_back(p);
    }
    return positions;
  }
  Tokens held(const SequenceModel& seq, std::int64_t layer) const {
    Tokens tokens;
    for (const std::int64_t p : positions(seq, layer)) {
      tokens.push_back(seq.tokens[static_cast<std::size_t>(p)]);
    }
    return tokens;
  }
  // The pages of the sequence, by number, that have one of them.
  std::set<std::int64_t> live_pages(const SequenceModel& seq, std::int64_t layer) const {
    std::set<std::int64_t> pages;
    for (const std::int64_t p : positions(seq, layer)) pages.insert(p / page_size);
    return pages;
  }

  // A sequence has more tokens, and what no later query sees is gone.
  void append(SequenceModel& seq, const Tokens& tokens) const {
    if (tokens.empty()) return;
    seq.tokens.insert(seq.tokens.end(), tokens.begin(), tokens.end());
    const std::int64_t due =
        std::max<std::int64_t>(0, size_of_tokens(seq.tokens) - residual_tokens);
    seq.coded = std::max(seq.coded, due / page_size * page_size);
    let_go(seq);
  }
  // Rows of coded layers that are coded: all, where none stay plain.
  std::int64_t coded_rows(const SequenceModel& seq) const {
    return residual_tokens > 0 ? seq.coded : std::numeric_limits<std::int64_t>::max();
  }
  void hold(SequenceModel& seq, bool hold) const {
    seq.holds = hold;
    let_go(seq);
  }
  void let_go(SequenceModel& seq) const {
    if (seq.holds) return;
    for (std::size_t layer = 0; layer < lives.size(); ++layer) {
      seq.first[layer] = std::max(
          seq.first[layer], first(static_cast<std::int64_t>(layer), size_of_tokens(seq.tokens)));
    }
  }

  // Whether every layer holds what a query at `length` sees.
  bool reaches(const SequenceModel& seq, std::int64_t length) const {
    if (length == size_of_tokens(seq.tokens)) return true;
    for (std::size_t layer = 0; layer < lives.size(); ++layer) {
      if (oldest_seen(lives[layer], length) < seq.first[layer]) return false;
    }
    return true;
  }
};

// Bytes of a page of each group, and of tables: the formula of paged_cache.h.
inline Counts page_bytes(const CacheConfig& config) {
  const PagedModel rules(config);
  Counts bytes;
  for (const std::int64_t group : rules.groups()) {
    std::int64_t row = 0;
    for (const LayerSpec& spec : config.layers) {
      if (spec.life == rules.life(group)) row += bytes_per_token(spec);
    }
    bytes.push_back(row * config.page_size);
  }
  return bytes;
}
inline std::int64_t table_bytes(const CacheConfig& config, std::int64_t touched,
                                std::int64_t sequences, std::int64_t entries) {
  const auto groups = static_cast<std::int64_t>(PagedModel(config).groups().size());
  return touched * (32 * groups + 4 * config.page_size + 140) +
         std::max<std::int64_t>(0, 128 * sequences + 4 * entries - touched * (132 + 4 * groups));
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_PAGED_MODEL_H_
