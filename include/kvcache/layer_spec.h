// LayerSpec: what one layer stores per token, and for how long.
#ifndef KVCACHE_LAYER_SPEC_H_
#define KVCACHE_LAYER_SPEC_H_

#include <cstdint>

#include "kvcache/row_format.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v0 {

// How long rows live. Full attention keeps all of them.
enum class Lifetime : std::uint8_t { kFull = 0 };

struct LayerSpec {
  std::int64_t num_kv_heads = 0;
  std::int64_t k_head_dim = 0;
  std::int64_t v_head_dim = 0;
  RowFormat k_format;
  RowFormat v_format;
  Lifetime lifetime = Lifetime::kFull;

  friend constexpr bool operator==(const LayerSpec&, const LayerSpec&) = default;
};

// Bytes of one token's K and V in this layer.
constexpr std::int64_t bytes_per_token(const LayerSpec& spec) noexcept {
  return spec.num_kv_heads * (spec.k_head_dim * size_of(spec.k_format.dtype) +
                              spec.v_head_dim * size_of(spec.v_format.dtype));
}

}  // namespace v0
}  // namespace kvcache

#endif  // KVCACHE_LAYER_SPEC_H_
