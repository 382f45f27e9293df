#include "api/c_door.h"

#include <cstdio>
#include <memory>

#include "base/expect.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache::internal {
namespace {

// Of a fixed size, so that reporting needs no memory.
thread_local char last_message[512] = "";

}  // namespace

kvc_status report(const Status& status) noexcept {
  if (!status.ok()) {
    std::snprintf(last_message, sizeof(last_message), "%s", status.message().c_str());
  }
  return static_cast<kvc_status>(status.code());
}

Status expect_not_null(const char* name, const void* pointer) {
  if (pointer != nullptr) return {};
  return refusal(name, "null", "one");
}

Status expect_array(const char* name, const void* array, std::int64_t count) {
  // Bounds what a wrong count may read or allocate.
  constexpr std::int64_t kMaxCount = std::int64_t{1} << 31;
  if (count < 0 || count > kMaxCount) {
    return refusal(std::string("number of ") + name, count, "0 .. 2^31");
  }
  return count == 0 ? Status() : expect_not_null(name, array);
}

Status check_struct_size(const char* name, const void* from, std::uint32_t struct_size,
                         std::size_t known) {
  if (struct_size < known || struct_size > kMaxStructSize) {
    return refusal(std::string(name) + ".struct_size", struct_size, known);
  }
  const auto* bytes = static_cast<const std::byte*>(from);
  if (!std::all_of(bytes + known, bytes + struct_size,
                   [](std::byte byte) { return byte == std::byte{0}; })) {
    return refusal(StatusCode::kUnsupported, name,
                   "fields beyond byte " + std::to_string(known) + " that are not 0",
                   "a library that knows them");
  }
  return {};
}

Result<DType> dtype_of(const char* name, std::int32_t dtype) {
  if (dtype >= KVC_F32 && dtype <= KVC_I64) return static_cast<DType>(dtype);
  return refusal(std::string(name) + ".dtype", dtype, "0 .. 4");
}

Result<MutableTensorView> tensor_of(const char* name, const kvc_tensor* tensor, bool optional) {
  if (tensor == nullptr && optional) return MutableTensorView();
  kvc_tensor from;
  KVC_RETURN_IF_ERROR(read_struct(name, tensor, &from));
  if (from.rank < 0 || from.rank > kMaxRank) {
    return refusal(std::string(name) + ".rank", from.rank, "0 .. 4");
  }
  MutableTensorView view;
  KVC_ASSIGN_OR_RETURN(view.dtype, dtype_of(name, from.dtype));
  view.data = from.data;
  view.rank = from.rank;
  std::uint64_t dense = 1;  // wraps for shapes that the checks behind the door refuse
  const bool strided = std::any_of(from.strides, from.strides + from.rank,
                                   [](std::int64_t stride) { return stride != 0; });
  for (std::int32_t axis = from.rank - 1; axis >= 0; --axis) {
    view.shape[axis] = from.shape[axis];
    view.strides[axis] = strided ? from.strides[axis] : static_cast<std::int64_t>(dense);
    dense *= static_cast<std::uint64_t>(from.shape[axis]);
  }
  return view;
}

Status ForeignExecutor::adopt(const kvc_executor* executor) {
  if (executor == nullptr) return {};
  KVC_RETURN_IF_ERROR(read_struct("executor", executor, &host_));
  if (host_.concurrency < 1) {
    return refusal("executor.concurrency", host_.concurrency, "at least 1");
  }
  if (host_.parallel_for == nullptr) return expect_not_null("executor.parallel_for", nullptr);
  adopted_ = true;
  return {};
}

Status make_view(const char* name, kvc_view** view, Result<OwnedKvView> owned) {
  KVC_RETURN_IF_ERROR(expect_not_null(name, view));
  KVC_RETURN_IF_ERROR(owned.status());
  auto made = std::make_unique<kvc_view>();
  made->owned = std::move(owned).value();
  made->view = made->owned->get();
  *view = made.release();
  return {};
}

}  // namespace kvcache::internal

const char* kvc_version(void) { return kvcache::version(); }

const char* kvc_status_name(kvc_status code) {
  return kvcache::name_of(static_cast<kvcache::StatusCode>(code));
}

const char* kvc_last_message(void) { return kvcache::internal::last_message; }
