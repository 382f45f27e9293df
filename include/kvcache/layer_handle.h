// LayerHandle: one layer of a cache, as an attention layer uses it.
#ifndef KVCACHE_LAYER_HANDLE_H_
#define KVCACHE_LAYER_HANDLE_H_

#include <cstdint>
#include <optional>

#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/mask.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

class Cache;

// What update_and_fetch of one layer returns. Valid until the next change of the cache.
struct LayerFetch {
  TensorView key;           // [B, H, S, Dk], all rows so far, views of the storage
  TensorView value;         // [B, H, S, Dv]
  std::int64_t length = 0;  // S
  Mask mask;                // exactly as it came in
};

// A reference to one layer: light, copied freely, owns nothing. Every call is one of the cache's,
// with its errors; a layer that the cache cannot have is kOutOfRange in each of them.
// Valid until the cache is moved from or destroyed.
// Thread safety: that of the cache.
class KVC_API LayerHandle {
 public:
  // Appends `key` [B, H, L, Dk] and `value` [B, H, L, Dv] and returns everything so far.
  // Errors: those of Cache::update; kInvalidArgument for a mask_length that is not L. The mask is
  // passed through: what it means is up to the attention that follows.
  Result<LayerFetch> update_and_fetch(const TensorView& key, const TensorView& value,
                                      std::optional<std::int64_t> mask_length = {},
                                      const Mask& mask = {}, const ExecContext& context = {}) const;

  // Tokens stored, and the position that the next token is rotated with: equal until crop().
  Result<std::int64_t> offset() const;
  Result<std::int64_t> next_position() const;

  // The filled rows; undefined tensors if there never were any.
  Result<KeyValueView> key_values() const;

  // The filled rows for attention, in place. Errors: kNotFound if there never were any.
  Result<OwnedKvView> view() const;

  // Drops the newest n tokens of this layer alone. Errors: kOutOfRange if there are fewer,
  // kInvalidArgument for n < 0.
  Status rewind(std::int64_t n) const;

 private:
  friend class Cache;
  LayerHandle(Cache* cache, std::int64_t layer_idx) noexcept : cache_(cache), layer_(layer_idx) {}

  Cache* cache_;
  std::int64_t layer_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_LAYER_HANDLE_H_
