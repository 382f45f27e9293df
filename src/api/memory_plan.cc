// Bytes of a cache before it is built: the arithmetic of the storages themselves.
#include "kvcache/memory_plan.h"

#include <string>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"
#include "cache/contiguous/geometry.h"
#include "cache/layer_check.h"
#include "cache/paged/layout.h"

namespace kvcache {
namespace {

using internal::ContiguousGeometry;
using internal::expect_at_least;
using internal::LayerShape;
using internal::refusal;

Status too_large() { return refusal("plan", "more than 2^62 bytes", "less"); }

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
  for (const LayerSpec& spec : request.layers) {
    const std::string name = "layers[" + std::to_string(index++) + "]";
    KVC_RETURN_IF_ERROR(internal::check_layer_spec(name, spec));
    if (kind == CacheKind::kPaged) continue;
    KVC_RETURN_IF_ERROR(internal::check_keeps_all(name, spec));
  }
  return {};
}

// A cache of contiguous layers: nothing is held before the first token.
Result<PlannedBytes> plan_contiguous(CacheKind kind, const MemoryPlanRequest& request) {
  PlannedBytes plan;
  if (request.seq_length == 0) return plan;
  for (const LayerSpec& spec : request.layers) {
    const LayerShape shape{request.batch_size, spec, request.layout};
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

inline namespace v1 {

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

}  // namespace v1
}  // namespace kvcache
