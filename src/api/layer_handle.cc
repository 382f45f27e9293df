#include "kvcache/layer_handle.h"

#include <string>

#include "api/cache_impl.h"
#include "base/door.h"
#include "tensor/strides.h"

namespace kvcache {
inline namespace v1 {

Result<LayerFetch> LayerHandle::update_and_fetch(const TensorView& key, const TensorView& value,
                                                 std::optional<std::int64_t> mask_length,
                                                 const Mask& mask,
                                                 const ExecContext& context) const {
  return internal::at_door([&]() -> Result<LayerFetch> {
    KVC_RETURN_IF_ERROR(internal::check_mask_length(mask_length, key, cache_->layout()));
    KVC_ASSIGN_OR_RETURN(const KeyValueView rows, cache_->update(key, value, layer_, {}, context));
    const std::int64_t length = internal::kv_extents(rows.key, cache_->layout()).length;
    return LayerFetch{rows.key, rows.value, length, mask};
  });
}

Result<std::int64_t> LayerHandle::offset() const { return cache_->seq_length(layer_); }

Result<std::int64_t> LayerHandle::next_position() const { return cache_->next_position(layer_); }

Result<KeyValueView> LayerHandle::key_values() const { return cache_->get(layer_); }

Result<OwnedKvView> LayerHandle::view() const { return cache_->view(layer_); }

Status LayerHandle::rewind(std::int64_t n) const { return cache_->rewind_layer(layer_, n); }

}  // namespace v1
}  // namespace kvcache
