// What stands for a file in a namespace.
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

Result<std::string> digest_of_file(const std::string& path) {
  return internal::at_door([&]() -> Result<std::string> {
    constexpr std::int64_t kPiece = std::int64_t{1} << 20;  // bytes
    KVC_ASSIGN_OR_RETURN(const auto file, internal::files().open(path));
    KVC_ASSIGN_OR_RETURN(const std::int64_t size, file->size());
    internal::Sha256 digest;
    digest.add(std::as_bytes(std::span(&size, 1)));
    std::vector<std::byte> room(static_cast<std::size_t>(std::min(size, kPiece)));
    for (std::int64_t at = 0; at < size; at += kPiece) {
      const auto piece =
          std::span(room).first(static_cast<std::size_t>(std::min(kPiece, size - at)));
      KVC_RETURN_IF_ERROR(file->read_at(at, piece));
      const std::uint64_t sum = internal::xxh3(piece);
      digest.add(std::as_bytes(std::span(&sum, 1)));
    }
    const internal::Sha256Digest bytes = digest.finish();
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
}

}  // namespace v1
}  // namespace kvcache
