// Memory from calloc, for systems without mremap. Large blocks of calloc are fresh pages of the
// system, so reserving costs no memory there either.
#include <cstdlib>
#include <cstring>

#include "base/door.h"
#include "base/immortal.h"
#include "base/memory_kinds.h"

namespace kvcache::internal {
namespace {

// The sanitizers' allocators end the program above this; the others refuse far later than sense.
constexpr std::int64_t kMaxBlockBytes = (std::int64_t{1} << 40) - (std::int64_t{1} << 20);

class PortableMemory final : public MemoryResource {
 public:
  Result<Region> reserve(std::int64_t bytes) noexcept override {
    // The word before the region holds what calloc returned.
    const std::int64_t extra = page_bytes() + static_cast<std::int64_t>(sizeof(void*));
    if (bytes <= 0 || bytes > kMaxBlockBytes) return out_of_memory();
    void* block = std::calloc(1, static_cast<std::size_t>(bytes + extra));
    if (block == nullptr) return out_of_memory();
    const std::uintptr_t page = static_cast<std::uintptr_t>(page_bytes());
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(block) + sizeof(void*);
    std::byte* data = static_cast<std::byte*>(block) + sizeof(void*) + (page - start % page) % page;
    std::memcpy(data - sizeof(void*), &block, sizeof(void*));
    return Region{data, bytes};
  }

  Status commit(const Region&, std::int64_t) noexcept override { return {}; }

  // The pages stay: there is no portable way to return the middle of a block.
  void decommit(const Region&, std::int64_t, std::int64_t, std::int64_t) noexcept override {}

  Result<Region> grow(const Region& region, const RowSpan& from, const RowSpan& to,
                      std::int64_t bytes, std::int64_t* copied) noexcept override {
    Result<Region> grown = reserve(bytes);
    if (!grown.ok()) return grown;
    if (from.used_bytes > 0) {
      for (std::int64_t row = 0; row < from.num_rows; ++row) {
        std::memcpy(grown->data + row * to.row_stride, region.data + row * from.row_stride,
                    static_cast<std::size_t>(from.used_of(row)));
      }
    }
    *copied = from.total_bytes();
    return grown;
  }

  void release(const Region& region, std::int64_t) noexcept override {
    if (region.data == nullptr) return;
    void* block = nullptr;
    std::memcpy(&block, region.data - sizeof(void*), sizeof(void*));
    std::free(block);
  }
};

}  // namespace

MemoryResource& portable_memory() noexcept {
  static Immortal<PortableMemory> memory;
  return *memory;
}

}  // namespace kvcache::internal
