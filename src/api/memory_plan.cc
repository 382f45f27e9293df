// Bytes of a cache before it is built: the arithmetic of the storages themselves.
#include "kvcache/memory_plan.h"

#include <string>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"
#include "cache/contiguous/geometry.h"
#include "cache/paged/layout.h"

namespace kvcache {
namespace {

using internal::ContiguousGeometry;
using internal::expect_at_least;
using internal::LayerShape;
using internal::refusal;

Status too_large() { return refusal("plan", "more than 2^62 bytes", "less"); }

Status check_spec(const LayerSpec& spec, std::int64_t index) {
  const std::string layer = "layers[" + std::to_string(index) + "].";
  if (spec.num_kv_heads < 1)
    return refusal(layer + "num_kv_heads", spec.num_kv_heads, "at least 1");
  if (spec.k_head_dim < 1) return refusal(layer + "k_head_dim", spec.k_head_dim, "at least 1");
  if (spec.v_head_dim < 1) return refusal(layer + "v_head_dim", spec.v_head_dim, "at least 1");
  for (const RowFormat& format : {spec.k_format, spec.v_format}) {
    if (format.kind == RowFormat::kStrided && is_floating(format.dtype)) continue;
    return refusal(layer + "format",
                   std::string(name_of(format.dtype)) + " of kind " + std::to_string(format.kind),
                   "strided f32, f16 or bf16");
  }
  return {};
}

Status check_request(CacheKind kind, const MemoryPlanRequest& request) {
  if (request.layers.empty()) return refusal("layers", 0, "at least 1");
  KVC_RETURN_IF_ERROR(expect_at_least("batch_size", request.batch_size, 1));
  KVC_RETURN_IF_ERROR(expect_at_least("seq_length", request.seq_length, 0));
  if (kind == CacheKind::kStatic) {
    KVC_RETURN_IF_ERROR(expect_at_least("max_length", request.max_length, 1));
    if (request.seq_length > request.max_length) {
      return refusal("seq_length", request.seq_length,
                     "at most max_length, " + std::to_string(request.max_length));
    }
  }
  std::int64_t index = 0;
  for (const LayerSpec& spec : request.layers) KVC_RETURN_IF_ERROR(check_spec(spec, index++));
  return {};
}

// A cache of contiguous layers: nothing is held before the first token.
Result<PlannedBytes> plan_contiguous(CacheKind kind, const MemoryPlanRequest& request) {
  PlannedBytes plan;
  if (request.seq_length == 0) return plan;
  for (const LayerSpec& spec : request.layers) {
    const LayerShape shape{request.batch_size, spec.num_kv_heads,   spec.k_head_dim,
                           spec.v_head_dim,    spec.k_format.dtype, spec.v_format.dtype,
                           request.layout};
    ContiguousGeometry geometry;
    const bool sized = kind == CacheKind::kStatic
                           ? fixed_geometry(shape, request.max_length, &geometry)
                           : growing_geometry(shape, request.seq_length, &geometry);
    if (!sized) return too_large();
    plan.nbytes += geometry.stored_bytes(request.seq_length);
    plan.reserved_bytes += geometry.committed_bytes(request.seq_length);
    if (plan.reserved_bytes > internal::kMaxBytes) return too_large();
  }
  return plan;
}

}  // namespace

inline namespace v0 {

Result<PlannedBytes> plan_memory(CacheKind kind, const MemoryPlanRequest& request) {
  return internal::at_door([&]() -> Result<PlannedBytes> {
    KVC_RETURN_IF_ERROR(check_request(kind, request));
    switch (kind) {
      case CacheKind::kDynamic:
      case CacheKind::kStatic:
        return plan_contiguous(kind, request);
      case CacheKind::kPaged:
        return internal::plan_paged(request);
    }
    return refusal("kind", static_cast<std::int64_t>(kind), "dynamic, static or paged");
  });
}

}  // namespace v0
}  // namespace kvcache
