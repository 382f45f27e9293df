// LayerSpec: what one layer stores per token, and for how long.
#ifndef KVCACHE_LAYER_SPEC_H_
#define KVCACHE_LAYER_SPEC_H_

#include <cstdint>
#include <span>

#include "kvcache/row_format.h"
#include "kvcache/status.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// What the rows of a buffer are to the layer. Caches take a key and a value buffer; the others are
// kUnsupported until built.
enum class Role : std::uint8_t {
  kKey = 0,
  kValue = 1,
  kLatent = 2,  // one row that is both: K, and V in its first elements
  kIndex = 3,   // what a sparse indexer reads
  kState = 4,   // a block a sequence, not a row a token
};

// The coded form of this name. Errors: kInvalidArgument naming `field` and the forms there are.
KVC_API Result<RowFormat::Kind> coded_form(const char* field, const char* name);

// One tensor of rows, [num_tokens, heads, dim].
struct BufferSpec {
  Role role = Role::kKey;
  std::int64_t heads = 0;
  std::int64_t dim = 0;  // elements of a row of one head
  RowFormat format;

  // Bytes of one token's rows, all heads.
  constexpr std::int64_t token_bytes() const noexcept { return heads * format.bytes(dim); }

  friend constexpr bool operator==(const BufferSpec&, const BufferSpec&) = default;
};

// Which tokens' rows a layer keeps, by what its queries see: see `window` and `chunk` of
// AttentionOptions. The default keeps all of them. Held at length n of a sequence are rows before
// sink_tokens, and those from first(n) on, a number that never falls (rewind_tokens:
// CacheConfig's):
//   window  first(n) = max(0, n + 1 - window - rewind_tokens)
//   chunk   first(n) = chunk * floor(max(0, n - rewind_tokens) / chunk)
// Errors where it is checked: kInvalidArgument for a negative number, window and chunk both, sinks
// without a window; kUnsupported for a state.
struct Life {
  std::int64_t window = 0;       // tokens, the query's own included; 0: no bound
  std::int64_t chunk = 0;        // tokens; 0: none
  std::int32_t sink_tokens = 0;  // the first ones, kept in spite of `window`
  bool state = false;            // the newest only: kUnsupported until built

  friend constexpr bool operator==(const Life&, const Life&) = default;
};

struct LayerSpec {
  static constexpr std::int32_t kMaxBuffers = 3;

  BufferSpec buffers[kMaxBuffers];
  std::int32_t num_buffers = 0;
  Life life;

  // Keys and values of `heads` KV heads each, all tokens kept.
  static constexpr LayerSpec kv(std::int64_t heads, std::int64_t k_dim, std::int64_t v_dim,
                                const RowFormat& k, const RowFormat& v) noexcept {
    LayerSpec spec;
    spec.buffers[0] = {Role::kKey, heads, k_dim, k};
    spec.buffers[1] = {Role::kValue, heads, v_dim, v};
    spec.num_buffers = 2;
    return spec;
  }
  static constexpr LayerSpec kv(std::int64_t heads, std::int64_t k_dim, std::int64_t v_dim,
                                DType dtype = DType::kF32) noexcept {
    return kv(heads, k_dim, v_dim, plain(dtype), plain(dtype));
  }

  // The same with another life.
  constexpr LayerSpec living(const Life& wanted) const noexcept {
    LayerSpec spec = *this;
    spec.life = wanted;
    return spec;
  }

  constexpr std::span<const BufferSpec> used() const noexcept {
    return {buffers, static_cast<std::size_t>(num_buffers)};
  }

  // REQUIRES: a spec made by kv().
  constexpr const BufferSpec& key() const noexcept { return buffers[0]; }
  constexpr const BufferSpec& value() const noexcept { return buffers[1]; }

  friend constexpr bool operator==(const LayerSpec&, const LayerSpec&) = default;
};

// Bytes of one token's rows in this layer.
constexpr std::int64_t bytes_per_token(const LayerSpec& spec) noexcept {
  std::int64_t bytes = 0;
  for (const BufferSpec& buffer : spec.used()) bytes += buffer.token_bytes();
  return bytes;
}

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_LAYER_SPEC_H_
