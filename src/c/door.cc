#include "c/door.h"

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

std::uint32_t struct_size_of(const void* given) noexcept {
  std::uint32_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  return size;
}

Status check_struct_size(const char* name, std::uint32_t struct_size, std::size_t least,
                         std::size_t ours) {
  if (struct_size >= least && struct_size <= kMaxStructSize) return {};
  return refusal(std::string(name) + ".struct_size", struct_size,
                 std::to_string(ours) +
                     (least < ours ? ", or " + std::to_string(least) + " of version 0.1.0" : ""));
}

Status check_beyond(const char* name, const void* from, std::uint32_t struct_size,
                    std::size_t ours) {
  if (struct_size <= ours) return {};
  const auto* bytes = static_cast<const std::byte*>(from);
  if (std::all_of(bytes + ours, bytes + struct_size,
                  [](std::byte byte) { return byte == std::byte{0}; })) {
    return {};
  }
  return refusal(StatusCode::kUnsupported, name,
                 "fields beyond byte " + std::to_string(ours) + " that are not 0",
                 "a library that knows them");
}

Status expect_unused(const char* name, std::int32_t reserved) {
  if (reserved == 0) return {};
  return refusal(StatusCode::kUnsupported, name, reserved, "0");
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

Status ForeignMemory::adopt(const kvc_memory* memory) {
  KVC_RETURN_IF_ERROR(read_struct("memory", memory, &host_));
  KVC_RETURN_IF_ERROR(expect_unused("memory.reserved", host_.reserved));
  if (host_.reserve == nullptr) return expect_not_null("memory.reserve", nullptr);
  if (host_.commit == nullptr) return expect_not_null("memory.commit", nullptr);
  if (host_.decommit == nullptr) return expect_not_null("memory.decommit", nullptr);
  if (host_.release == nullptr) return expect_not_null("memory.release", nullptr);
  return {};
}

namespace {

Status out_of_host(const char* name, std::int64_t bytes) noexcept {
  return at_door([&] {
    return refusal(StatusCode::kOutOfMemory, name, "no room", std::to_string(bytes) + " bytes");
  });
}

}  // namespace

Result<Region> ForeignMemory::reserve(std::int64_t bytes) noexcept {
  constexpr std::uintptr_t kAlignment = 4096;
  void* data = nullptr;
  if (host_.reserve(host_.self, bytes, &data) != KVC_OK || data == nullptr) {
    return out_of_host("memory.reserve", bytes);
  }
  const Region region{static_cast<std::byte*>(data), bytes};
  if (reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0) return region;
  release(region, 0);
  return at_door(
      [] { return refusal("memory.reserve", "an address between pages", "a multiple of 4096"); });
}

Status ForeignMemory::commit(const Region& region, std::int64_t bytes) noexcept {
  if (host_.commit(host_.self, region.data, bytes) == KVC_OK) return {};
  return out_of_host("memory.commit", bytes);
}

Result<Region> ForeignMemory::grow(const Region&, const RowSpan&, const RowSpan&, std::int64_t,
                                   std::int64_t*) noexcept {
  return at_door(
      [] { return refusal(StatusCode::kUnsupported, "memory", "growth", "regions of one size"); });
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
