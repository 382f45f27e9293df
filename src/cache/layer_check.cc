#include "cache/layer_check.h"

#include <cstdint>
#include <limits>

#include "base/expect.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

Status check_buffer(const std::string& name, const BufferSpec& buffer) {
  KVC_RETURN_IF_ERROR(expect_between((name + ".heads").c_str(), buffer.heads, 1, kMaxInt32));
  KVC_RETURN_IF_ERROR(expect_between((name + ".dim").c_str(), buffer.dim, 1, kMaxInt32));
  if (buffer.format.kind != RowFormat::kStrided) {
    return refusal(name + ".format.kind", static_cast<int>(buffer.format.kind), "kStrided");
  }
  if (is_floating(buffer.format.dtype)) return {};
  return refusal(name + ".format.dtype", name_of(buffer.format.dtype), "f32, f16 or bf16");
}

}  // namespace

Status check_layer_spec(const std::string& name, const LayerSpec& spec) {
  if (spec.num_buffers != 2 || spec.key().role != Role::kKey || spec.value().role != Role::kValue) {
    return refusal(StatusCode::kUnsupported, name + ".num_buffers", spec.num_buffers,
                   "a key and a value buffer, as LayerSpec::kv makes them");
  }
  KVC_RETURN_IF_ERROR(check_buffer(name + ".key", spec.key()));
  KVC_RETURN_IF_ERROR(check_buffer(name + ".value", spec.value()));
  if (spec.key().heads != spec.value().heads) {
    return refusal(name + ".value.heads", spec.value().heads,
                   std::to_string(spec.key().heads) + ", as many as of keys");
  }
  if (spec.life != Life()) {
    return refusal(StatusCode::kUnsupported, name + ".life", "a bound", "none");
  }
  return {};
}

}  // namespace kvcache::internal
