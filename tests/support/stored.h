// Caches of any layers with random rows, and whether two sequences hold the same, bit for bit:
// what the tests of files share.
#ifndef KVCACHE_TESTS_SUPPORT_STORED_H_
#define KVCACHE_TESTS_SUPPORT_STORED_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/cache_file.h"
#include "kvcache/paged_cache.h"
#include "support/tensors.h"

namespace kvcache::testing {

inline CacheConfig stored_config(std::vector<LayerSpec> layers, std::int64_t page_size,
                                 Layout layout = Layout::kHND, std::int64_t residual = 0) {
  CacheConfig config;
  config.layers = std::move(layers);
  config.page_size = page_size;
  config.num_pages = 4096 / page_size + 8;
  config.layout = layout;
  config.residual_tokens = residual;
  return config;
}

// Rows of a token depend on its id, the layer and the role: equal texts have equal rows.
inline HostTensor stored_rows(const BufferSpec& spec, std::int64_t layer,
                              const std::vector<std::int32_t>& ids) {
  HostTensor rows(DType::kF32, {static_cast<std::int64_t>(ids.size()), spec.heads, spec.dim});
  std::int64_t at = 0;
  for (const std::int32_t id : ids) {
    std::minstd_rand random(static_cast<std::uint32_t>(1 + (id % 100000 + 100000) * 64 + layer * 4 +
                                                       static_cast<int>(spec.role)));
    for (std::int64_t i = 0; i < spec.heads * spec.dim; ++i) {
      rows.set(at++, static_cast<float>(random() % 2001) / 500.0f - 2.0f);
    }
  }
  return rows;
}

struct StoredCache {
  CacheConfig config;
  PagedCache cache;

  explicit StoredCache(const CacheConfig& given)
      : config(given), cache(PagedCache::create(given).value()) {}

  std::int64_t num_layers() const { return cache.num_layers(); }
  const LayerSpec& spec(std::int64_t layer) const {
    return config.layers[static_cast<std::size_t>(layer)];
  }

  Status write(PagedCache::Step& step, const std::vector<std::int32_t>& ids) {
    for (std::int64_t layer = 0; layer < num_layers(); ++layer) {
      KVC_RETURN_IF_ERROR(cache.write(step, layer, stored_rows(spec(layer).key(), layer, ids),
                                      stored_rows(spec(layer).value(), layer, ids)));
    }
    return {};
  }
  Status append(SequenceId seq, const std::vector<std::int32_t>& ids, bool known = true) {
    Append append{seq, static_cast<std::int64_t>(ids.size())};
    if (known) append.tokens = ids;
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
    KVC_RETURN_IF_ERROR(write(step, ids));
    return cache.commit(step);
  }
  SequenceId sequence(std::int32_t first, std::int64_t count, bool known = true) {
    const SequenceId seq = cache.open().value();
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = first + static_cast<std::int32_t>(i);
    if (!append(seq, ids, known).ok()) std::abort();
    return seq;
  }

  // K and V of a layer as they are held, decoded, heads first, and the codes of both.
  std::string rows(std::int64_t layer, SequenceId seq) const {
    const std::int64_t held = cache.rows_held(layer, seq).value();
    std::string bytes;
    const bool head_first = config.layout == Layout::kHND;
    const auto shape = [&](const BufferSpec& buffer) {
      return head_first ? std::vector<std::int64_t>{buffer.heads, held, buffer.dim}
                        : std::vector<std::int64_t>{held, buffer.heads, buffer.dim};
    };
    HostTensor k(DType::kF32, shape(spec(layer).key()));
    HostTensor v(DType::kF32, shape(spec(layer).value()));
    if (!cache.gather(layer, seq, k.mutable_view(), v.mutable_view()).ok()) return "none";
    for (const HostTensor* tensor : {&k, &v}) {
      const BufferSpec& buffer = tensor == &k ? spec(layer).key() : spec(layer).value();
      const auto* data = static_cast<const char*>(tensor->view().data);
      const std::int64_t row = buffer.dim * 4;
      for (std::int64_t head = 0; head < buffer.heads; ++head) {
        for (std::int64_t t = 0; t < held; ++t) {
          bytes.append(data + row * (head_first ? head * held + t : t * buffer.heads + head),
                       static_cast<std::size_t>(row));
        }
      }
      if (!buffer.format.is_coded()) continue;
      const RowCodes codes = cache.gather_codes(layer, seq, buffer.role).value();
      bytes.append(reinterpret_cast<const char*>(codes.codes.data()), codes.codes.size());
      bytes.append(reinterpret_cast<const char*>(codes.scales.data()), 2 * codes.scales.size());
      bytes.append(reinterpret_cast<const char*>(codes.zeros.data()), codes.zeros.size());
    }
    return bytes;
  }

  std::vector<std::byte> bytes(SequenceId seq, const PrefixNamespace& space = {}) const {
    return CacheFile::to_bytes(cache, seq, space).value();
  }
};

// "" where both hold the same, else what differs.
inline std::string difference(const StoredCache& a, SequenceId seq_a, const StoredCache& b,
                              SequenceId seq_b) {
  if (a.cache.seq_length(seq_a).value() != b.cache.seq_length(seq_b).value()) return "lengths";
  for (std::int64_t layer = 0; layer < a.num_layers(); ++layer) {
    const std::string name = " of layer " + std::to_string(layer);
    if (a.cache.first_position(layer, seq_a).value() !=
        b.cache.first_position(layer, seq_b).value()) {
      return "first_position" + name;
    }
    if (a.rows(layer, seq_a) != b.rows(layer, seq_b)) return "rows" + name;
  }
  return "";
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_STORED_H_
