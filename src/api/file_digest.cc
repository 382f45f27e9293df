// What stands for a file, or for bytes in memory, in a namespace.
#include <algorithm>
#include <string>
#include <vector>

#include "base/door.h"
#include "base/expect.h"
#include "base/file.h"
#include "base/sha256.h"
#include "base/xxh3.h"
#include "kvcache/prefix.h"

namespace kvcache {
inline namespace v1 {

namespace {

// Pieces of a MiB, one after the other.
class Pieces {
 public:
  static constexpr std::int64_t kPiece = std::int64_t{1} << 20;  // bytes

  explicit Pieces(std::int64_t size) { digest_.add(std::as_bytes(std::span(&size, 1))); }
  void add(std::span<const std::byte> piece) {
    const std::uint64_t sum = internal::xxh3(piece);
    digest_.add(std::as_bytes(std::span(&sum, 1)));
  }
  std::string finish() {
    const internal::Sha256Digest bytes = digest_.finish();
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  internal::Sha256 digest_;
};

}  // namespace

Result<std::string> digest_of_file(const std::string& path) {
  return internal::at_door([&]() -> Result<std::string> {
    constexpr std::int64_t kPiece = Pieces::kPiece;
    KVC_ASSIGN_OR_RETURN(const auto file, internal::files().open(path));
    KVC_ASSIGN_OR_RETURN(const std::int64_t size, file->size());
    Pieces pieces(size);
    std::vector<std::byte> room(static_cast<std::size_t>(std::min(size, kPiece)));
    for (std::int64_t at = 0; at < size; at += kPiece) {
      const auto piece =
          std::span(room).first(static_cast<std::size_t>(std::min(kPiece, size - at)));
      KVC_RETURN_IF_ERROR(file->read_at(at, piece));
      pieces.add(piece);
    }
    return pieces.finish();
  });
}

Result<std::string> digest_of(std::span<const std::byte> bytes) {
  return internal::at_door([&]() -> Result<std::string> {
    Pieces pieces(static_cast<std::int64_t>(bytes.size()));
    for (std::span<const std::byte> left = bytes; !left.empty();) {
      const auto size = std::min(left.size(), static_cast<std::size_t>(Pieces::kPiece));
      pieces.add(left.first(size));
      left = left.subspan(size);
    }
    return pieces.finish();
  });
}

}  // namespace v1
}  // namespace kvcache
