#include "cache/layer_check.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/expect.h"
#include "tensor/codecs/codec.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

Status check_buffer(const std::string& name, const BufferSpec& buffer) {
  KVC_RETURN_IF_ERROR(expect_between((name + ".heads").c_str(), buffer.heads, 1, kMaxInt32));
  KVC_RETURN_IF_ERROR(expect_between((name + ".dim").c_str(), buffer.dim, 1, kMaxInt32));
  const RowFormat& format = buffer.format;
  KVC_RETURN_IF_ERROR(check_format(name + ".format", format));
  if (const char* const wanted = wanted_elements(format, buffer.dim); wanted != nullptr) {
    return refusal(name + ".dim", buffer.dim, std::string(wanted) + " for " + name_of(format.kind));
  }
  return {};
}

Status check_life(const std::string& name, const Life& life) {
  KVC_RETURN_IF_ERROR(expect_between((name + ".window").c_str(), life.window, 0, kMaxInt32));
  KVC_RETURN_IF_ERROR(expect_between((name + ".chunk").c_str(), life.chunk, 0, kMaxInt32));
  KVC_RETURN_IF_ERROR(
      expect_between((name + ".sink_tokens").c_str(), life.sink_tokens, 0, kMaxInt32));
  if (life.window > 0 && life.chunk > 0) {
    return refusal(name + ".chunk", life.chunk,
                   "0 beside a window of " + std::to_string(life.window));
  }
  if (life.window == 0 && life.sink_tokens > 0) {
    return refusal(name + ".sink_tokens", life.sink_tokens, "0 without a window");
  }
  if (life.state) {
    return refusal(StatusCode::kUnsupported, name + ".state", "true", "false");
  }
  return {};
}

}  // namespace

Status check_format(const std::string& name, const RowFormat& format) {
  if (format.kind > RowFormat::kQ4_0) {
    return refusal(name + ".kind", static_cast<int>(format.kind), "a kind of RowFormat");
  }
  if (!is_floating(format.dtype)) {
    return refusal(name + ".dtype", name_of(format.dtype), "f32, f16 or bf16");
  }
  if (format.rotate && !format.is_coded()) {
    return refusal(name + ".rotate", "true", "false in plain rows");
  }
  if (format.kind == RowFormat::kLm4 && !format.rotate) {
    return refusal(name + ".rotate", "false", "true, which is part of lm4");
  }
  return {};
}

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
  return check_life(name + ".life", spec.life);
}

bool is_coded(const LayerSpec& spec) noexcept {
  return std::ranges::any_of(spec.used(),
                             [](const BufferSpec& buffer) { return buffer.format.is_coded(); });
}

Status check_plain(const std::string& name, const LayerSpec& spec) {
  for (const BufferSpec& buffer : spec.used()) {
    if (!buffer.format.is_coded()) continue;
    return refusal(StatusCode::kUnsupported, name + ".format", name_of(buffer.format.kind),
                   "plain rows, which alone join a batch");
  }
  return {};
}

Status check_keeps_all(const std::string& name, const LayerSpec& spec) {
  if (spec.life == Life()) return {};
  return refusal(StatusCode::kUnsupported, name + ".life", "a bound", "none");
}

}  // namespace kvcache::internal
