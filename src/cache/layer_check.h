// What a LayerSpec may say, for every cache.
#ifndef KVCACHE_SRC_CACHE_LAYER_CHECK_H_
#define KVCACHE_SRC_CACHE_LAYER_CHECK_H_

#include <string>

#include "kvcache/layer_spec.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// Keys and values of the same number of heads, sizes of 1 .. 2^31 - 1, rows of floating types or of
// a coded form that allows their size, and a life that does not contradict itself. `name` is that
// of the spec, "layers[3]". Errors: kInvalidArgument; kUnsupported for buffers and lives that are
// not built. May throw bad_alloc.
Status check_layer_spec(const std::string& name, const LayerSpec& spec);

// A form that says what it is; `name` is its own, "keys". Errors: kInvalidArgument. May throw
// bad_alloc.
Status check_format(const std::string& name, const RowFormat& format);

// No coded rows. Errors: kUnsupported.
Status check_plain(const std::string& name, const LayerSpec& spec);

// Whether some of its rows are stored in codes.
bool is_coded(const LayerSpec& spec) noexcept;

// All tokens kept. Errors: kUnsupported.
Status check_keeps_all(const std::string& name, const LayerSpec& spec);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_LAYER_CHECK_H_
