// What the C door's files share: handles, versioned structs, and the thread's last message.
#ifndef KVCACHE_SRC_API_C_DOOR_H_
#define KVCACHE_SRC_API_C_DOOR_H_

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

// Larger than any struct will grow: what lies beyond is not a size but a mistake.
inline constexpr std::uint32_t kMaxStructSize = 4096;

Status check_struct_size(const char* name, const void* from, std::uint32_t struct_size,
                         std::size_t known);

// A copy of the caller's struct, which may be larger than ours if the rest of it is 0.
template <typename Struct>
Status read_struct(const char* name, const Struct* from, Struct* to) {
  static_assert(std::is_trivially_copyable_v<Struct>);
  KVC_RETURN_IF_ERROR(expect_not_null(name, from));
  std::uint32_t struct_size = 0;
  std::memcpy(&struct_size, from, sizeof(struct_size));
  KVC_RETURN_IF_ERROR(check_struct_size(name, from, struct_size, sizeof(Struct)));
  std::memcpy(to, from, sizeof(Struct));
  return {};
}

// A struct that is written: nothing but its struct_size is looked at, and what is beyond ours is
// left as it is.
template <typename Struct>
Status expect_written_struct(const char* name, const Struct* to) {
  KVC_RETURN_IF_ERROR(expect_not_null(name, to));
  if (to->struct_size >= sizeof(Struct) && to->struct_size <= kMaxStructSize) return {};
  return refusal(std::string(name) + ".struct_size", to->struct_size, sizeof(Struct));
}

// Calls fn(i, element) for every element of an array whose elements have the size of the first.
template <typename Struct, typename Fn>
Status for_each_struct(const char* name, const Struct* array, std::int64_t count, Fn&& fn) {
  KVC_RETURN_IF_ERROR(expect_array(name, array, count));
  const auto* bytes = reinterpret_cast<const std::byte*>(array);
  const std::size_t stride = count == 0 ? 0 : array->struct_size;
  for (std::int64_t i = 0; i < count; ++i, bytes += stride) {
    std::uint32_t struct_size = 0;
    std::memcpy(&struct_size, bytes, sizeof(struct_size));
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

// kvc_view_create and what a cache hands out end here.
Status make_view(const char* name, kvc_view** view, Result<OwnedKvView> owned);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_API_C_DOOR_H_
