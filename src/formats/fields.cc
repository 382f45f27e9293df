#include "formats/fields.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/checked_math.h"
#include "base/xxh3.h"
#include "tensor/codecs/codec.h"

namespace kvcache::internal {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

constexpr unsigned char kMagic[8] = {0x89, 'K', 'V', 'C', '\r', '\n', 0x1a, '\n'};
// Of one token's rows in all layers, so that those of a block are countable.
constexpr std::int64_t kMostTokenBytes = std::int64_t{1} << 44;

Status read_buffer(const std::string& name, FieldReader& in, BufferSpec& buffer) {
  const auto role = in.get<std::uint8_t>();
  const auto form = in.get<std::uint8_t>();
  const auto dtype = in.get<std::uint8_t>();
  const auto rotate = in.get<std::uint8_t>();
  const auto zero = in.get<std::uint32_t>();
  buffer.heads = in.get_size();
  buffer.dim = in.get_size();
  KVC_RETURN_IF_ERROR(expect_field(name + ".role", role, 0, static_cast<int>(Role::kIndex)));
  KVC_RETURN_IF_ERROR(expect_field(name + ".form", form, 0, RowFormat::kQ4_0));
  KVC_RETURN_IF_ERROR(expect_field(name + ".dtype", dtype, 0, static_cast<int>(DType::kBF16)));
  KVC_RETURN_IF_ERROR(expect_field(name + ".rotate", rotate, 0, 1));
  KVC_RETURN_IF_ERROR(expect_field(name + ".zeros", zero, 0, 0));
  KVC_RETURN_IF_ERROR(expect_field(name + ".heads", buffer.heads, 1, kMostInt32));
  KVC_RETURN_IF_ERROR(expect_field(name + ".dim", buffer.dim, 1, kMostInt32));
  buffer.role = static_cast<Role>(role);
  buffer.format = {static_cast<RowFormat::Kind>(form), static_cast<DType>(dtype), rotate == 1};
  if (form == RowFormat::kLm4 || form == RowFormat::kStrided) {
    const int wanted = form == RowFormat::kLm4 ? 1 : 0;
    KVC_RETURN_IF_ERROR(expect_field(name + ".rotate", rotate, wanted, wanted));
  }
  const char* const wanted = wanted_elements(buffer.format, buffer.dim);
  return wanted == nullptr ? Status() : corrupt(name + ".dim", buffer.dim, wanted);
}

// The most bytes of one token's rows of a buffer, as codes or plain. False where they are too many.
bool add_token_bytes(const BufferSpec& buffer, std::int64_t* total) {
  const std::int64_t row =
      std::max(buffer.format.bytes(buffer.dim), buffer.dim * size_of(buffer.format.dtype));
  std::int64_t bytes = 0;
  return checked_mul(buffer.heads, row, &bytes) && checked_add(*total, bytes, total) &&
         *total <= kMostTokenBytes;
}

// Of the first `size` bytes of a file.
Result<std::uint64_t> sum_of(const File& file, std::int64_t size) {
  std::byte room[16 << 10];
  Xxh3 sum;
  for (std::int64_t at = 0; at < size; at += std::ssize(room)) {
    const auto piece =
        std::span(room).first(static_cast<std::size_t>(std::min(std::ssize(room), size - at)));
    KVC_RETURN_IF_ERROR(file.read_at(at, piece));
    sum.add(piece);
  }
  return sum.sum();
}

Status expect_same(const std::string& name, std::int64_t found, std::int64_t expected) {
  return found == expected ? Status() : refusal(name, found, expected);
}

}  // namespace

Status corrupt(const Word& name, const Word& found, const Word& expected) {
  return refusal(StatusCode::kCorrupt, name, found, expected);
}

Status expect_field(const std::string& name, std::int64_t value, std::int64_t least,
                    std::int64_t most) {
  return expect_between(name.c_str(), value, least, most, StatusCode::kCorrupt);
}

std::int64_t FieldReader::get_size() {
  const auto number = get<std::uint64_t>();
  return number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())
             ? -1
             : static_cast<std::int64_t>(number);
}

void FieldReader::get_bytes(void* to, std::size_t size) {
  ok_ = ok_ && size <= bytes_.size() - at_;
  if (!ok_ || size == 0) return;
  std::memcpy(to, bytes_.data() + at_, size);
  at_ += size;
}

bool FieldReader::next_is_zero(std::int64_t size) const {
  FieldReader next = *this;
  return next.skip_zeros(at() + size) && next.ok();
}

bool FieldReader::skip_zeros(std::int64_t end) {
  bool zeros = true;
  ok_ = ok_ && end <= static_cast<std::int64_t>(bytes_.size());
  for (; ok_ && static_cast<std::int64_t>(at_) < end; ++at_) {
    zeros = zeros && bytes_[at_] == std::byte{0};
  }
  return zeros;
}

void put_start(FieldWriter& out, FileKind kind, std::int64_t header_bytes,
               std::int64_t file_bytes) {
  out.put_bytes(kMagic, sizeof kMagic);
  out.put(kFormatVersion);
  out.put(static_cast<std::uint32_t>(kind));
  out.put(header_bytes);
  out.put(file_bytes);
}

std::vector<std::byte> put_end(FieldWriter& out, std::int64_t header_bytes) {
  out.fill_to(header_bytes - kSumBytes);
  out.put(xxh3(out.bytes()));
  return std::move(out.bytes());
}

Status expect_kind(FileKind found, FileKind expected) {
  if (found == expected) return {};
  constexpr const char* kWords[] = {"1, a sequence", "2, texts of a prefix cache",
                                    "3, a layered cache"};
  return refusal(StatusCode::kUnsupported, "kind", static_cast<std::int64_t>(found),
                 kWords[static_cast<std::size_t>(expected) - 1]);
}

Result<HeaderBytes> read_start(const File& file) {
  KVC_ASSIGN_OR_RETURN(const std::int64_t size, file.size());
  if (size < kFileAlignment) {
    return corrupt("file", std::to_string(size) + " bytes",
                   "at least " + std::to_string(kFileAlignment));
  }
  HeaderBytes header;
  header.bytes.resize(kFixedBytes);
  KVC_RETURN_IF_ERROR(file.read_at(0, header.bytes));
  if (std::memcmp(header.bytes.data(), kMagic, sizeof kMagic) != 0) {
    return corrupt("magic", "other bytes", "those of a cache file");
  }
  FieldReader fixed(header.bytes);
  fixed.get<std::uint64_t>();
  if (const auto version = fixed.get<std::uint32_t>(); version != kFormatVersion) {
    return refusal(StatusCode::kUnsupported, "version", version, kFormatVersion);
  }
  const auto kind = fixed.get<std::uint32_t>();
  if (kind < static_cast<std::uint32_t>(FileKind::kSequence) ||
      kind > static_cast<std::uint32_t>(FileKind::kLayers)) {
    return refusal(StatusCode::kUnsupported, "kind", kind, "1, 2 or 3");
  }
  header.kind = static_cast<FileKind>(kind);
  const std::int64_t header_bytes = fixed.get_size();
  header.file_bytes = fixed.get_size();
  KVC_RETURN_IF_ERROR(expect_field("file_bytes", header.file_bytes, size, size));
  KVC_RETURN_IF_ERROR(
      expect_field("header_bytes", header_bytes, kFileAlignment, std::min(size, kMostHeaderBytes)));
  if (header_bytes % kFileAlignment != 0) {
    return corrupt("header_bytes", header_bytes, "a multiple of 4096");
  }
  // Summed piece by piece before as much memory is asked for as it says, and as it was read then.
  KVC_ASSIGN_OR_RETURN(const std::uint64_t sum, sum_of(file, header_bytes - kSumBytes));
  std::uint64_t expected = 0;
  KVC_RETURN_IF_ERROR(
      file.read_at(header_bytes - kSumBytes, std::as_writable_bytes(std::span(&expected, 1))));
  const auto is_right = [&](std::uint64_t found) {
    return found == expected ? Status()
                             : corrupt("sum of the header", "another", "that of its bytes");
  };
  KVC_RETURN_IF_ERROR(is_right(sum));
  header.bytes.resize(static_cast<std::size_t>(header_bytes - kSumBytes));
  KVC_RETURN_IF_ERROR(file.read_at(0, header.bytes));
  KVC_RETURN_IF_ERROR(is_right(xxh3(header.bytes)));
  return header;
}

void put_layer(FieldWriter& out, const LayerSpec& spec, std::int64_t first) {
  out.put(static_cast<std::uint32_t>(spec.num_buffers));
  out.put(static_cast<std::uint32_t>(spec.life.sink_tokens));
  out.put(spec.life.window);
  out.put(spec.life.chunk);
  out.put(first);
  for (const BufferSpec& buffer : spec.used()) {
    out.put(static_cast<std::uint8_t>(buffer.role));
    out.put(static_cast<std::uint8_t>(buffer.format.kind));
    out.put(static_cast<std::uint8_t>(buffer.format.dtype));
    out.put(static_cast<std::uint8_t>(buffer.format.rotate ? 1 : 0));
    out.put(std::uint32_t{0});
    out.put(buffer.heads);
    out.put(buffer.dim);
  }
}

Status read_layer(const std::string& name, FieldReader& in, LayerSpec& spec, std::int64_t* first,
                  std::int64_t most_first, std::int64_t* token_bytes) {
  const auto buffers = in.get<std::uint32_t>();
  const auto sinks = in.get<std::uint32_t>();
  spec.life.window = in.get_size();
  spec.life.chunk = in.get_size();
  *first = in.get_size();
  if (!in.ok()) return corrupt(name, "the header's end", "a layer");
  KVC_RETURN_IF_ERROR(expect_field(name + ".num_buffers", buffers, 1, LayerSpec::kMaxBuffers));
  KVC_RETURN_IF_ERROR(expect_field(name + ".sink_tokens", sinks, 0, kMostInt32));
  KVC_RETURN_IF_ERROR(expect_field(name + ".window", spec.life.window, 0, kMaxBytes));
  KVC_RETURN_IF_ERROR(expect_field(name + ".chunk", spec.life.chunk, 0, kMaxBytes));
  KVC_RETURN_IF_ERROR(expect_field(name + ".first", *first, 0, most_first));
  spec.num_buffers = static_cast<std::int32_t>(buffers);
  spec.life.sink_tokens = static_cast<std::int32_t>(sinks);
  for (std::int32_t b = 0; b < spec.num_buffers; ++b) {
    const std::string buffer = name + ".buffers[" + std::to_string(b) + "]";
    KVC_RETURN_IF_ERROR(read_buffer(buffer, in, spec.buffers[b]));
    if (!add_token_bytes(spec.buffers[b], token_bytes)) {
      return corrupt(buffer + ".heads", spec.buffers[b].heads,
                     "fewer: a token has at most 2^44 bytes");
    }
  }
  return {};
}

void put_extents(FieldWriter& out, const LayerExtents& extents) {
  out.put(extents.batch);
  out.put(extents.length);
  out.put(extents.position);
}

Status read_layer_with_extents(const std::string& name, FieldReader& in, LayerSpec& spec,
                               LayerExtents& extents, std::int64_t most_length,
                               std::int64_t* token_bytes) {
  std::int64_t first = 0, own_bytes = 0;
  if (in.next_is_zero(kLayerBytes)) {  // no buffers, and nothing else
    in.skip_zeros(in.at() + kLayerBytes);
  } else {
    KVC_RETURN_IF_ERROR(read_layer(name, in, spec, &first, 0, &own_bytes));
  }
  const bool is_populated = spec.num_buffers > 0;
  extents.batch = in.get_size();
  extents.length = in.get_size();
  extents.position = in.get_size();
  if (!in.ok()) return corrupt(name, "the header's end", "a layer");
  const std::int64_t most = is_populated ? std::min(kMostInt32, kMostTokenBytes / own_bytes) : 0;
  KVC_RETURN_IF_ERROR(expect_field(name + ".batch", extents.batch, is_populated ? 1 : 0, most));
  KVC_RETURN_IF_ERROR(
      expect_field(name + ".length", extents.length, 0, is_populated ? most_length : 0));
  KVC_RETURN_IF_ERROR(
      expect_field(name + ".position", extents.position, 0, is_populated ? kMaxBytes : 0));
  if (!is_populated) return {};
  *token_bytes += own_bytes * extents.batch;
  KVC_RETURN_IF_ERROR(expect_field("bytes of a token", *token_bytes, 0, kMostTokenBytes));
  const bool is_kept = spec == LayerSpec::kv(spec.key().heads, spec.key().dim, spec.value().dim,
                                             spec.key().format, spec.value().format);
  return is_kept ? Status() : corrupt(name, "other rows", "keys and values, all kept");
}

Status expect_format(const std::string& name, const RowFormat& found, const RowFormat& expected) {
  if (found.kind != expected.kind) {
    return refusal(name + ".form", name_of(found.kind), name_of(expected.kind));
  }
  if (found.dtype != expected.dtype) {
    return refusal(name + ".dtype", name_of(found.dtype), name_of(expected.dtype));
  }
  return expect_same(name + ".rotate", found.rotate ? 1 : 0, expected.rotate ? 1 : 0);
}

Status expect_spec(const std::string& name, const LayerSpec& found, const LayerSpec& expected) {
  KVC_RETURN_IF_ERROR(expect_same(name + ".num_buffers", found.num_buffers, expected.num_buffers));
  KVC_RETURN_IF_ERROR(expect_same(name + ".window", found.life.window, expected.life.window));
  KVC_RETURN_IF_ERROR(expect_same(name + ".chunk", found.life.chunk, expected.life.chunk));
  KVC_RETURN_IF_ERROR(
      expect_same(name + ".sink_tokens", found.life.sink_tokens, expected.life.sink_tokens));
  for (std::int32_t b = 0; b < found.num_buffers; ++b) {
    const std::string buffer = name + ".buffers[" + std::to_string(b) + "]";
    const BufferSpec& mine = found.buffers[b];
    const BufferSpec& its = expected.buffers[b];
    KVC_RETURN_IF_ERROR(expect_same(buffer + ".role", static_cast<std::int64_t>(mine.role),
                                    static_cast<std::int64_t>(its.role)));
    KVC_RETURN_IF_ERROR(expect_same(buffer + ".heads", mine.heads, its.heads));
    KVC_RETURN_IF_ERROR(expect_same(buffer + ".dim", mine.dim, its.dim));
    KVC_RETURN_IF_ERROR(expect_format(buffer, mine.format, its.format));
  }
  return {};
}

}  // namespace kvcache::internal
