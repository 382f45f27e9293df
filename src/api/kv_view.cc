// Views over rows that no cache of ours holds.
#include "kvcache/kv_view.h"

#include <string>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"
#include "cache/contiguous/view.h"
#include "tensor/strides.h"

namespace kvcache {
namespace {

using internal::kAnyExtent;
using internal::KvExtents;

Status check_rows(const char* name, const TensorView& rows, Layout layout,
                  const KvExtents& extents) {
  KVC_RETURN_IF_ERROR(internal::expect_kv(name, rows, layout, extents));
  if (rows.shape[3] <= 1 || rows.strides[3] == 1) return {};
  return internal::refusal(name, "elements " + std::to_string(rows.strides[3]) + " apart",
                           "dense rows of head_dim elements");
}

}  // namespace

inline namespace v0 {

KvPart dense_part(const KeyValueView& rows, Layout layout) noexcept {
  return internal::part_of(rows, layout);
}

Result<OwnedKvView> dense_view(const KeyValueView& rows, Layout layout,
                               std::int64_t first_position) {
  return internal::at_door([&]() -> Result<OwnedKvView> {
    KVC_RETURN_IF_ERROR(
        check_rows("key", rows.key, layout, {kAnyExtent, kAnyExtent, kAnyExtent, kAnyExtent}));
    KvExtents expected = internal::kv_extents(rows.key, layout);
    expected.dim = kAnyExtent;
    KVC_RETURN_IF_ERROR(check_rows("value", rows.value, layout, expected));
    KVC_RETURN_IF_ERROR(internal::expect_between("first_position", first_position, 0,
                                                 internal::kMaxBytes, StatusCode::kOutOfRange));
    return internal::view_of(rows, layout, first_position);
  });
}

}  // namespace v0
}  // namespace kvcache
