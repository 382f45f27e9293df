// Where rows live: address space is reserved first and committed before it is touched.
#ifndef KVCACHE_MEMORY_H_
#define KVCACHE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kvcache/status.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// A reservation of address space, page aligned. Fresh memory reads as zeros.
struct Region {
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
};

// How a region is cut into rows of growing length: row r starts at r * row_stride and holds
// used_bytes of content. Two rows never share a page of the system as long as
// row_stride >= capacity + 1 page. The last rows may hold less: who copies rows may leave out the
// rest of them, who moves their pages need not look.
struct RowSpan {
  std::int64_t num_rows = 1;
  std::int64_t row_stride = 0;       // bytes
  std::int64_t used_bytes = 0;       // bytes of each row that hold content, at the most
  std::int64_t last_rows = 0;        // of the rows, the last so many
  std::int64_t last_used_bytes = 0;  // and of each of them

  std::int64_t used_of(std::int64_t row) const noexcept {
    return row < num_rows - last_rows ? used_bytes : last_used_bytes;
  }
  std::int64_t total_bytes() const noexcept {
    return (num_rows - last_rows) * used_bytes + last_rows * last_used_bytes;
  }
};

// Gives a cache the memory of its rows and tables. Derive from it to hold caches to a budget, to
// place them, or to inject failures.
//
// `commit` is asked before bytes are first touched, and may refuse; what it granted counts until
// `decommit` or `release`. That the system itself overcommits is beyond this interface: a granted
// commit may still meet the kernel's out-of-memory killer.
//
// Thread safety: caches on different threads may share a resource, so implementations lock.
class KVC_API MemoryResource {
 public:
  virtual ~MemoryResource();

  virtual Device device() const noexcept { return {}; }

  // Address space for `bytes` > 0, none of it committed. Errors: kOutOfMemory.
  virtual Result<Region> reserve(std::int64_t bytes) noexcept = 0;

  // Asks for `bytes` more of `region` to become content. Errors: kOutOfMemory, nothing changed.
  virtual Status commit(const Region& region, std::int64_t bytes) noexcept = 0;

  // Gives `bytes` of earlier commits back. The pages from `offset` on, for `length` bytes, may be
  // returned to the system: they then read as zeros (length 0: only the account changes).
  virtual void decommit(const Region& region, std::int64_t bytes, std::int64_t offset,
                        std::int64_t length) noexcept = 0;

  // A larger region holding the rows of `from` at the stride of `to`; returns the bytes that had
  // to be copied through `copied` (0 where pages could be moved). `region` stays readable, its
  // contents unspecified, until it is released; the account of commits moves to the new region
  // (what was copied is held by both until then). REQUIRES: to.num_rows == from.num_rows,
  // to.row_stride >= from.row_stride, and both strides equal modulo the system's page size. Errors:
  // kOutOfMemory, nothing changed.
  virtual Result<Region> grow(const Region& region, const RowSpan& from, const RowSpan& to,
                              std::int64_t bytes, std::int64_t* copied) noexcept = 0;

  // Unmaps the region; `committed` bytes leave the account (0 for one that was grown from).
  virtual void release(const Region& region, std::int64_t committed) noexcept = 0;

  // A hint: bytes `offset` .. `offset` + `length` were never touched, are committed, and will now
  // be written in full. Memory of the system takes pages of 2 MiB for those that lie within, and
  // none for what sticks out, so that no more is resident than was committed (KVCACHE_HUGE_PAGES=0:
  // none at all). The default does nothing. Never followed by grow() of the region.
  virtual void will_fill(const Region& region, std::int64_t offset, std::int64_t length) noexcept;
};

// Memory of the system, without a limit of its own. Lives as long as the process.
KVC_API MemoryResource& system_memory() noexcept;

// Like `upstream`, but refuses commits past `limit_bytes` in total (kOutOfMemory). Rows that growth
// had to copy count twice, until the region they were copied out of is released.
// REQUIRES: `upstream` outlives it, and it outlives the caches that use it.
class KVC_API LimitedMemory final : public MemoryResource {
 public:
  explicit LimitedMemory(std::int64_t limit_bytes, MemoryResource& upstream = system_memory());
  ~LimitedMemory() override;

  std::int64_t committed_bytes() const noexcept;

  Device device() const noexcept override;
  Result<Region> reserve(std::int64_t bytes) noexcept override;
  Status commit(const Region& region, std::int64_t bytes) noexcept override;
  void decommit(const Region& region, std::int64_t bytes, std::int64_t offset,
                std::int64_t length) noexcept override;
  Result<Region> grow(const Region& region, const RowSpan& from, const RowSpan& to,
                      std::int64_t bytes, std::int64_t* copied) noexcept override;
  void release(const Region& region, std::int64_t committed) noexcept override;
  void will_fill(const Region& region, std::int64_t offset, std::int64_t length) noexcept override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_MEMORY_H_
