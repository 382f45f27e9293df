// A PrefixCache beside the plainest model there is: the texts of open sequences, and the pages that
// events say are known, each with its whole text. A row holds a number made of all tokens up to its
// own, so that rows of another text are seen at once.
#ifndef KVCACHE_TESTS_SUPPORT_PREFIX_WORLD_H_
#define KVCACHE_TESTS_SUPPORT_PREFIX_WORLD_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/kvcache.h"
#include "support/paged.h"

namespace kvcache::testing {

using Text = std::vector<std::int32_t>;

inline PrefixNamespace named(int number, std::int64_t tenant = 0) {
  PrefixNamespace name;
  name.bits[0] = static_cast<std::byte>(number);
  name.tenant = tenant;
  return name;
}

// Exact in f32; of namespace, layer and all tokens up to `end`.
inline float row_of(const PrefixNamespace& name, std::int64_t layer, const Text& text,
                    std::size_t end, std::uint64_t* state) {
  if (end == 0) {
    *state = 88172645463325252U + static_cast<std::uint64_t>(name.bits[0]) * 7919 +
             static_cast<std::uint64_t>(name.tenant) * 104729;
  }
  std::uint64_t x = *state + static_cast<std::uint64_t>(text[end]) + 1;
  x *= 6364136223846793005U;
  x ^= x >> 29;
  *state = x;
  return static_cast<float>((x + static_cast<std::uint64_t>(layer) * 977) >> 40);
}

struct PrefixWorld {
  CacheConfig config;
  PagedCache cache;
  std::optional<PrefixCache> prefixes;

  static CacheConfig config_of(std::vector<Life> lives, std::int64_t num_pages,
                               std::int64_t page_size, MemoryResource* memory = nullptr) {
    CacheConfig config;
    for (const Life& life : lives) config.layers.push_back(LayerSpec::kv(1, 1, 1).living(life));
    config.page_size = page_size;
    config.num_pages = num_pages;
    config.memory = memory;
    config.prefixes = true;
    return config;
  }

  explicit PrefixWorld(const CacheConfig& given, const PrefixOptions& options = {})
      : config(given),
        cache(PagedCache::create(given).value()),
        prefixes(PrefixCache::create(cache, options).value()) {}

  std::int64_t num_layers() const { return static_cast<std::int64_t>(config.layers.size()); }

  // Writes rows of `text` from `begin` on into an open step of one sequence.
  Status write(PagedCache::Step& step, const PrefixNamespace& name, const Text& text,
               std::size_t begin) {
    for (std::int64_t layer = 0; layer < num_layers(); ++layer) {
      std::vector<float> rows;
      std::uint64_t state = 0;
      for (std::size_t t = 0; t < text.size(); ++t) {
        const float row = row_of(name, layer, text, t, &state);
        if (t >= begin) rows.push_back(row);
      }
      const TensorView view(rows.data(), DType::kF32,
                            {static_cast<std::int64_t>(rows.size()), 1, 1});
      KVC_RETURN_IF_ERROR(cache.write(step, layer, view, view));
    }
    return {};
  }

  // Appends what the text has beyond the sequence's length, with its ids.
  Status append(SequenceId seq, const PrefixNamespace& name, const Text& text) {
    KVC_ASSIGN_OR_RETURN(const std::int64_t length, cache.seq_length(seq));
    const auto begin = static_cast<std::size_t>(length);
    const Append append{seq, static_cast<std::int64_t>(text.size() - begin),
                        std::span(text).subspan(begin)};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
    KVC_RETURN_IF_ERROR(write(step, name, text, begin));
    return cache.commit(step);
  }

  // Whether the sequence holds `text`, and in each layer its rows.
  ::testing::AssertionResult holds(SequenceId seq, const PrefixNamespace& name, const Text& text) {
    const std::int64_t length = cache.seq_length(seq).value();
    if (length != static_cast<std::int64_t>(text.size())) {
      return ::testing::AssertionFailure() << length << " tokens, not " << text.size();
    }
    for (std::int64_t layer = 0; layer < num_layers(); ++layer) {
      const std::int64_t held = cache.rows_held(layer, seq).value();
      const std::int64_t first = cache.first_position(layer, seq).value();
      std::vector<float> k(static_cast<std::size_t>(held)), v(k.size());
      const MutableTensorView key(k.data(), DType::kF32, {1, held, 1});
      const MutableTensorView value(v.data(), DType::kF32, {1, held, 1});
      const Status status = cache.gather(layer, seq, key, value);
      if (!status.ok()) return ::testing::AssertionFailure() << status.to_string();
      const std::int64_t sinks = std::min<std::int64_t>(
          config.layers[static_cast<std::size_t>(layer)].life.sink_tokens, first);
      std::uint64_t state = 0;
      std::size_t at = 0;
      for (std::size_t t = 0; t < text.size(); ++t) {
        const float row = row_of(name, layer, text, t, &state);
        const auto position = static_cast<std::int64_t>(t);
        if (position >= sinks && position < first) continue;
        if (k[at] != row || v[at] != row) {
          return ::testing::AssertionFailure() << "layer " << layer << ", row " << t << ": found "
                                               << k[at] << ", expected " << row;
        }
        ++at;
      }
    }
    return ::testing::AssertionSuccess();
  }

  // match, open, append the rest, release: the tokens found.
  std::int64_t ask(const Text& text, const PrefixNamespace& name = {}) {
    const auto handle = prefixes->match(text, name);
    EXPECT_TRUE(handle.ok()) << handle.status().to_string();
    const SequenceId seq = prefixes->open(*handle).value();
    EXPECT_TRUE(holds(seq, name, Text(text.begin(), text.begin() + handle->length())));
    EXPECT_OK(append(seq, name, text));
    EXPECT_TRUE(holds(seq, name, text));
    EXPECT_OK(cache.release(seq));
    check();
    return handle->length();
  }

  void check() {
    EXPECT_OK(cache.check_invariants());
    EXPECT_OK(prefixes->check_invariants());
  }
};

inline Text counted(std::int32_t begin, std::int32_t count) {
  Text text;
  for (std::int32_t i = 0; i < count; ++i) text.push_back(begin + i);
  return text;
}

inline Text joined(Text a, const Text& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_PREFIX_WORLD_H_
