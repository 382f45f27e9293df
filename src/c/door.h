// What the C door's files share: handles, versioned structs, and the thread's last message.
#ifndef KVCACHE_SRC_C_DOOR_H_
#define KVCACHE_SRC_C_DOOR_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/door.h"
#include "base/expect.h"
#include "kvcache/attention.h"
#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache_c.h"

// Over the caller's rows (`parts`), or a cache's (`owned`).
struct kvc_view {
  std::vector<kvcache::KvPart> parts;
  std::optional<kvcache::OwnedKvView> owned;
  kvcache::KvView view;
};

namespace kvcache::internal {

// Keeps the message of a failure for kvc_last_message(), and gives its code.
kvc_status report(const Status& status) noexcept;

// One call of the C door.
template <typename Fn>
kvc_status c_call(Fn&& fn) noexcept {
  return report(at_door(std::forward<Fn>(fn)));
}

Status expect_not_null(const char* name, const void* pointer);

// Checks a count that goes with an array.
Status expect_array(const char* name, const void* array, std::int64_t count);

// What the least caller has of a struct: its size in version 0.1.0, or in that which brought it.
template <typename Struct>
inline constexpr std::size_t kLeastSize = sizeof(Struct);
template <>
inline constexpr std::size_t kLeastSize<kvc_attention_options> = offsetof(kvc_attention_options,
                                                                          separate_prefixes);
template <>
inline constexpr std::size_t kLeastSize<kvc_paged_config> = offsetof(kvc_paged_config, memory);
template <>
inline constexpr std::size_t kLeastSize<kvc_part> = offsetof(kvc_part, hole_begin);
template <>
inline constexpr std::size_t kLeastSize<kvc_layer_spec> = offsetof(kvc_layer_spec, window);
template <>
inline constexpr std::size_t kLeastSize<kvc_paged_stats> = offsetof(kvc_paged_stats, rows_encoded);

// Larger than any struct will grow: what lies beyond is not a size but a mistake.
inline constexpr std::uint32_t kMaxStructSize = 4096;

std::uint32_t struct_size_of(const void* given) noexcept;

Status check_struct_size(const char* name, std::uint32_t struct_size, std::size_t least,
                         std::size_t ours);

// Checks that what a larger struct has beyond ours is 0.
Status check_beyond(const char* name, const void* from, std::uint32_t struct_size,
                    std::size_t ours);

// A copy of the caller's struct: what a smaller one lacks is 0, and so is what a larger one has
// beyond ours.
template <typename Struct>
Status read_struct(const char* name, const Struct* from, Struct* to) {
  static_assert(std::is_trivially_copyable_v<Struct>);
  KVC_RETURN_IF_ERROR(expect_not_null(name, from));
  const std::uint32_t size = struct_size_of(from);
  KVC_RETURN_IF_ERROR(check_struct_size(name, size, kLeastSize<Struct>, sizeof(Struct)));
  KVC_RETURN_IF_ERROR(check_beyond(name, from, size, sizeof(Struct)));
  *to = {};
  std::memcpy(to, from, std::min<std::size_t>(size, sizeof(Struct)));
  return {};
}

// Writes a struct of the caller's: as much of ours as theirs has room for. Nothing but their
// struct_size is looked at, and it and what they have beyond ours stay as they are.
template <typename Struct>
Status write_struct(const char* name, Struct ours, Struct* to) {
  static_assert(std::is_trivially_copyable_v<Struct>);
  KVC_RETURN_IF_ERROR(expect_not_null(name, to));
  ours.struct_size = struct_size_of(to);
  KVC_RETURN_IF_ERROR(
      check_struct_size(name, ours.struct_size, kLeastSize<Struct>, sizeof(Struct)));
  std::memcpy(to, &ours, std::min<std::size_t>(ours.struct_size, sizeof(Struct)));
  return {};
}

// Calls fn(i, element) for every element of an array whose elements have the size of the first.
template <typename Struct, typename Fn>
Status for_each_struct(const char* name, const Struct* array, std::int64_t count, Fn&& fn) {
  KVC_RETURN_IF_ERROR(expect_array(name, array, count));
  const auto* bytes = reinterpret_cast<const std::byte*>(array);
  const std::size_t stride = count == 0 ? 0 : struct_size_of(array);
  for (std::int64_t i = 0; i < count; ++i, bytes += stride) {
    const std::uint32_t struct_size = struct_size_of(bytes);
    if (struct_size != stride) {
      return refusal(name, "struct_size " + std::to_string(struct_size),
                     std::to_string(stride) + " as in the first element");
    }
    Struct element;
    KVC_RETURN_IF_ERROR(read_struct(name, reinterpret_cast<const Struct*>(bytes), &element));
    KVC_RETURN_IF_ERROR(fn(i, element));
  }
  return {};
}

// Checks a field that has no meaning yet.
Status expect_unused(const char* name, std::int32_t reserved);

Result<DType> dtype_of(const char* name, std::int32_t dtype);

// Null is an undefined tensor where `optional`, an error elsewhere.
Result<MutableTensorView> tensor_of(const char* name, const kvc_tensor* tensor,
                                    bool optional = false);

// The host's executor as ours.
class ForeignExecutor final : public Executor {
 public:
  Status adopt(const kvc_executor* executor);

  void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept override {
    host_.parallel_for(host_.self, num_tasks, fn, context);
  }
  std::int32_t concurrency() const noexcept override { return host_.concurrency; }

  // For a call; valid as long as this object.
  ExecContext context() noexcept { return {adopted_ ? this : nullptr, nullptr}; }

 private:
  kvc_executor host_ = {};
  bool adopted_ = false;
};

// The host's memory as ours, for caches whose pages never move to a larger region.
class ForeignMemory final : public MemoryResource {
 public:
  Status adopt(const kvc_memory* memory);

  Result<Region> reserve(std::int64_t bytes) noexcept override;
  Status commit(const Region& region, std::int64_t bytes) noexcept override;
  void decommit(const Region& region, std::int64_t bytes, std::int64_t,
                std::int64_t) noexcept override {
    host_.decommit(host_.self, region.data, bytes);
  }
  Result<Region> grow(const Region&, const RowSpan&, const RowSpan&, std::int64_t,
                      std::int64_t*) noexcept override;
  void release(const Region& region, std::int64_t committed) noexcept override {
    host_.release(host_.self, region.data, region.bytes, committed);
  }

 private:
  kvc_memory host_ = {};
};

// kvc_view_create and what a cache hands out end here.
Status make_view(const char* name, kvc_view** view, Result<OwnedKvView> owned);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_C_DOOR_H_
