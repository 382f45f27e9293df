// Fields of a header, one after the other, and what every kind of file begins and ends with.
#ifndef KVCACHE_SRC_FORMATS_FIELDS_H_
#define KVCACHE_SRC_FORMATS_FIELDS_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "base/expect.h"
#include "base/file.h"
#include "kvcache/layer_spec.h"
#include "kvcache/status.h"

namespace kvcache::internal {

inline constexpr std::uint32_t kFormatVersion = 1;
enum class FileKind : std::uint32_t { kSequence = 1, kTexts = 2, kLayers = 3 };

inline constexpr std::int64_t kFileAlignment = 4096;
inline constexpr std::int64_t kFixedBytes = 128;  // of a header, before its lists
inline constexpr std::int64_t kLayerBytes = 32;
inline constexpr std::int64_t kBufferBytes = 24;
inline constexpr std::int64_t kExtentBytes = 24;
inline constexpr std::int64_t kSumBytes = 8;
inline constexpr std::int64_t kMostHeaderBytes = std::int64_t{1} << 34;
inline constexpr std::int64_t kMostLayers = 65536;
inline constexpr std::int64_t kMostInt32 = std::numeric_limits<std::int32_t>::max();

Status corrupt(const Word& name, const Word& found, const Word& expected);
// least <= value <= most. Errors: kCorrupt.
Status expect_field(const std::string& name, std::int64_t value, std::int64_t least,
                    std::int64_t most);

class FieldWriter {
 public:
  template <typename Number>
  void put(Number number) {
    put_bytes(&number, sizeof number);
  }
  void put_bytes(const void* from, std::size_t size) {
    const auto* bytes = static_cast<const std::byte*>(from);
    out_.insert(out_.end(), bytes, bytes + size);
  }
  void fill_to(std::int64_t size) { out_.resize(static_cast<std::size_t>(size)); }
  std::int64_t size() const { return static_cast<std::int64_t>(out_.size()); }
  std::vector<std::byte>& bytes() { return out_; }

 private:
  std::vector<std::byte> out_;
};

// Fields are read as long as there are any: then they are 0, and ok() is false.
class FieldReader {
 public:
  explicit FieldReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename Number>
  Number get() {
    Number number = 0;
    get_bytes(&number, sizeof number);
    return number;
  }
  // A number that is kept in a signed one: what does not fit is -1.
  std::int64_t get_size();
  void get_bytes(void* to, std::size_t size);
  // Whether so many bytes are there, all zeros; they stay unread.
  bool next_is_zero(std::int64_t size) const;
  // Whether nothing but zeros lies up to `end`.
  bool skip_zeros(std::int64_t end);
  std::int64_t at() const { return static_cast<std::int64_t>(at_); }
  std::int64_t left() const { return static_cast<std::int64_t>(bytes_.size() - at_); }
  bool ok() const { return ok_; }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
  bool ok_ = true;
};

// Magic, version, kind and sizes, 32 bytes; the zeros and the sum at the end.
void put_start(FieldWriter& out, FileKind kind, std::int64_t header_bytes, std::int64_t file_bytes);
std::vector<std::byte> put_end(FieldWriter& out, std::int64_t header_bytes);

struct HeaderBytes {
  FileKind kind = FileKind::kSequence;
  std::vector<std::byte> bytes;  // without the sum, which was checked
  std::int64_t file_bytes = 0;

  std::int64_t header_bytes() const { return static_cast<std::int64_t>(bytes.size()) + kSumBytes; }
};
// Reads and checks what every file has. Errors: kCorrupt, kUnsupported for another version or kind.
Result<HeaderBytes> read_start(const File& file);
// Errors: kUnsupported for another kind.
Status expect_kind(FileKind found, FileKind expected);

void put_layer(FieldWriter& out, const LayerSpec& spec, std::int64_t first);
// `token_bytes` counts the most bytes of one token's rows, which stay countable.
Status read_layer(const std::string& name, FieldReader& in, LayerSpec& spec, std::int64_t* first,
                  std::int64_t most_first, std::int64_t* token_bytes);

// What follows a layer of a layered cache: its batch, tokens, and the position of the first one. A
// layer that was never populated has no buffers, and zeros.
struct LayerExtents {
  std::int64_t batch = 1, length = 0, position = 0;
};
void put_extents(FieldWriter& out, const LayerExtents& extents);
// The layer and what follows it. Errors: kCorrupt, as also for layers that are not keys and values,
// all kept.
Status read_layer_with_extents(const std::string& name, FieldReader& in, LayerSpec& spec,
                               LayerExtents& extents, std::int64_t most_length,
                               std::int64_t* token_bytes);

// Whether rows of a file are stored as those of the cache. Errors: kInvalidArgument naming what is
// not.
Status expect_format(const std::string& name, const RowFormat& found, const RowFormat& expected);

// Whether a file's layer is one of the cache's. Errors: kInvalidArgument naming the field.
Status expect_spec(const std::string& name, const LayerSpec& found, const LayerSpec& expected);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_FORMATS_FIELDS_H_
