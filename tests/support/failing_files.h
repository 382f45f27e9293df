// Files of which the k-th call fails, and that count the calls.
#ifndef KVCACHE_TESTS_SUPPORT_FAILING_FILES_H_
#define KVCACHE_TESTS_SUPPORT_FAILING_FILES_H_

#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "base/file.h"

namespace kvcache::testing {

class FailingFiles final : public internal::FileSystem {
 public:
  explicit FailingFiles(internal::FileSystem& upstream = internal::system_files())
      : upstream_(upstream) {}

  // Calls 0 .. k - 1 succeed from now on, call k fails, and those behind it succeed.
  void fail_at(int k) {
    calls_ = 0;
    fails_at_ = k;
  }
  int calls() const { return calls_; }
  // Of writes: half of the bytes are written before it fails, as on a disk that is full.
  void fill_up() { fills_up_ = true; }
  // Calls throw bad_alloc where they would fail.
  void throw_instead() { throws_ = true; }

  Result<std::unique_ptr<internal::File>> open(const std::string& path) override {
    return wrap("open", [&] { return upstream_.open(path); });
  }
  Result<std::unique_ptr<internal::File>> create(const std::string& path) override {
    return wrap("create", [&] { return upstream_.create(path); });
  }
  Status rename(const std::string& from, const std::string& to) override {
    return call("rename", [&] { return upstream_.rename(from, to); });
  }
  Status remove(const std::string& path) override { return upstream_.remove(path); }
  Status sync_directory(const std::string& path) override {
    return call("sync_directory", [&] { return upstream_.sync_directory(path); });
  }

 private:
  bool fails() {
    const bool now = calls_++ == fails_at_;
    if (now && throws_) throw std::bad_alloc();
    return now;
  }
  static Status refuse(const char* what) {
    return Status(StatusCode::kIo, std::string("injected: ") + what);
  }
  template <typename Fn>
  Status call(const char* what, Fn&& fn) {
    return fails() ? refuse(what) : fn();
  }

  class FailingFile final : public internal::File {
   public:
    FailingFile(FailingFiles& files, std::unique_ptr<internal::File> file)
        : files_(files), file_(std::move(file)) {}

    Result<std::int64_t> size() const override {
      if (files_.fails()) return refuse("size");
      return file_->size();
    }
    Status read_at(std::int64_t offset, std::span<std::byte> out) const override {
      return files_.call("read", [&] { return file_->read_at(offset, out); });
    }
    Status write_at(std::int64_t offset, std::span<const std::byte> bytes) override {
      if (!files_.fails()) return file_->write_at(offset, bytes);
      if (files_.fills_up_) (void)file_->write_at(offset, bytes.first(bytes.size() / 2));
      return refuse("write");
    }
    Status sync() override {
      return files_.call("sync", [&] { return file_->sync(); });
    }

   private:
    FailingFiles& files_;
    std::unique_ptr<internal::File> file_;
  };

  template <typename Fn>
  Result<std::unique_ptr<internal::File>> wrap(const char* what, Fn&& fn) {
    if (fails()) return refuse(what);
    KVC_ASSIGN_OR_RETURN(auto file, fn());
    return std::unique_ptr<internal::File>(std::make_unique<FailingFile>(*this, std::move(file)));
  }

  internal::FileSystem& upstream_;
  int calls_ = 0;
  int fails_at_ = std::numeric_limits<int>::max();
  bool fills_up_ = false;
  bool throws_ = false;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_FAILING_FILES_H_
