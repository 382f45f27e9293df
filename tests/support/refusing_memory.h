// A MemoryResource that refuses a call of the test's choice, and keeps the books: every commit must
// be given back exactly, by decommit or release.
#ifndef KVCACHE_TESTS_SUPPORT_REFUSING_MEMORY_H_
#define KVCACHE_TESTS_SUPPORT_REFUSING_MEMORY_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <map>

#include "kvcache/memory.h"

namespace kvcache::testing {

class RefusingMemory final : public MemoryResource {
 public:
  explicit RefusingMemory(MemoryResource& upstream = system_memory()) : upstream_(upstream) {}
  ~RefusingMemory() override { EXPECT_TRUE(accounts_.empty()) << "a region was never released"; }

  // The n-th call from now on that may fail (reserve, commit, grow; 1 is the next) fails, and with
  // `all_later` every one after it. 0: none.
  void refuse(std::int64_t n, bool all_later = false) {
    countdown_ = n;
    all_later_ = all_later;
  }
  // Whether a call was refused since the last refuse().
  bool refused() const { return countdown_ < 0; }

  // Reservations larger than this are refused; 0: none.
  void limit_reservation(std::int64_t bytes) { largest_ = bytes; }

  std::int64_t committed() const {
    std::int64_t bytes = 0;
    for (const auto& [data, account] : accounts_) bytes += account.committed;
    return bytes;
  }
  std::int64_t regions() const { return static_cast<std::int64_t>(accounts_.size()); }
  std::int64_t commits() const { return commits_; }
  std::int64_t returned_bytes() const { return returned_bytes_; }

  // What is said to be filled must be part of its region and committed.
  void will_fill(const Region& region, std::int64_t offset, std::int64_t length) noexcept override {
    EXPECT_GE(offset, 0);
    EXPECT_LE(offset + length, region.bytes);
    EXPECT_LE(length, account(region).committed);
    filled_ += length;
    upstream_.will_fill(region, offset, length);
  }
  std::int64_t filled() const { return filled_; }

  Result<Region> reserve(std::int64_t bytes) noexcept override {
    if (refuse_now() || (largest_ > 0 && bytes > largest_)) return no();
    Result<Region> region = upstream_.reserve(bytes);
    if (region.ok()) accounts_[region->data] = {*region, 0};
    return region;
  }

  Status commit(const Region& region, std::int64_t bytes) noexcept override {
    if (refuse_now()) return no();
    EXPECT_GT(bytes, 0);
    ++commits_;
    account(region).committed += bytes;
    return upstream_.commit(region, bytes);
  }

  void decommit(const Region& region, std::int64_t bytes, std::int64_t offset,
                std::int64_t length) noexcept override {
    EXPECT_GE(bytes, 0);
    EXPECT_GE(account(region).committed, bytes);
    if (length > 0) {
      EXPECT_GE(offset, 0);
      EXPECT_LE(offset + length, region.bytes);
      returned_bytes_ += length;
    }
    account(region).committed -= bytes;
    upstream_.decommit(region, bytes, offset, length);
  }

  Result<Region> grow(const Region& region, const RowSpan& from, const RowSpan& to,
                      std::int64_t bytes, std::int64_t* copied) noexcept override {
    if (refuse_now() || (largest_ > 0 && bytes > largest_)) return no();
    EXPECT_EQ(from.num_rows, to.num_rows);
    EXPECT_LE(from.used_bytes, from.row_stride);
    EXPECT_LE(to.num_rows * to.row_stride, bytes);
    Result<Region> grown = upstream_.grow(region, from, to, bytes, copied);
    if (grown.ok()) {
      accounts_[grown->data] = {*grown, account(region).committed};
      account(region).committed = 0;
    }
    return grown;
  }

  void release(const Region& region, std::int64_t committed) noexcept override {
    EXPECT_EQ(account(region).committed, committed);
    accounts_.erase(region.data);
    upstream_.release(region, committed);
  }

 private:
  struct Account {
    Region region;
    std::int64_t committed = 0;
  };

  static Status no() { return Status(StatusCode::kOutOfMemory, "refused"); }

  bool refuse_now() {
    if (countdown_ < 0 && all_later_) return true;
    if (countdown_ <= 0) return false;
    if (--countdown_ > 0) return false;
    countdown_ = -1;
    return true;
  }

  Account& account(const Region& region) {
    const auto found = accounts_.find(region.data);
    EXPECT_TRUE(found != accounts_.end()) << "not a region of this memory";
    return found->second;
  }

  MemoryResource& upstream_;
  std::map<const std::byte*, Account> accounts_;
  std::int64_t countdown_ = 0;
  bool all_later_ = false;
  std::int64_t filled_ = 0;  // bytes of will_fill
  std::int64_t largest_ = 0;
  std::int64_t commits_ = 0;
  std::int64_t returned_bytes_ = 0;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_REFUSING_MEMORY_H_
