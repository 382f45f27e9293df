#include "formats/header.h"

#include <bit>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "base/expect.h"
#include "base/xxh3.h"

namespace kvcache::internal {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

constexpr unsigned char kMagic[8] = {0x89, 'K', 'V', 'C', '\r', '\n', 0x1a, '\n'};
constexpr std::uint32_t kSequence = 1;
constexpr std::int64_t kFixedBytes = 128;
constexpr std::int64_t kLayerBytes = 32;
constexpr std::int64_t kBufferBytes = 24;
constexpr std::int64_t kSumBytes = 8;
constexpr std::int64_t kMostLayers = 65536;
constexpr std::int64_t kMostInt32 = std::numeric_limits<std::int32_t>::max();
// Of one token's rows in all layers, so that those of a block are countable.
constexpr std::int64_t kMostTokenBytes = std::int64_t{1} << 44;

Status corrupt(const Word& name, const Word& found, const Word& expected) {
  return refusal(StatusCode::kCorrupt, name, found, expected);
}
Status expect(const std::string& name, std::int64_t value, std::int64_t least, std::int64_t most) {
  return expect_between(name.c_str(), value, least, most, StatusCode::kCorrupt);
}

// Bytes one after the other.
class Writer {
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
  std::vector<std::byte>& bytes() { return out_; }

 private:
  std::vector<std::byte> out_;
};

// The same, read; what lies behind the end is zero, and `ok` is false then.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename Number>
  Number get() {
    Number number = 0;
    get_bytes(&number, sizeof number);
    return number;
  }
  // A number that is kept in a signed one: what does not fit is -1.
  std::int64_t get_size() {
    const auto number = get<std::uint64_t>();
    return number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())
               ? -1
               : static_cast<std::int64_t>(number);
  }
  void get_bytes(void* to, std::size_t size) {
    ok_ = ok_ && size <= bytes_.size() - at_;
    if (!ok_) return;
    std::memcpy(to, bytes_.data() + at_, size);
    at_ += size;
  }
  // Whether nothing but zeros lies up to `end`.
  bool skip_zeros(std::int64_t end) {
    bool zeros = true;
    for (; ok_ && static_cast<std::int64_t>(at_) < end; ++at_) {
      zeros = zeros && bytes_[at_] == std::byte{0};
    }
    return zeros;
  }
  std::int64_t at() const { return static_cast<std::int64_t>(at_); }
  bool ok() const { return ok_; }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
  bool ok_ = true;
};

// The bytes of a header, from what is in it.
std::int64_t bytes_of(std::int64_t layer_bytes, std::int64_t tokens, std::int64_t blocks) {
  return round_up(kFixedBytes + layer_bytes + round_up(4 * tokens, 8) + kSumBytes * (blocks + 1),
                  kFileAlignment);
}

Status read_buffer(const std::string& name, Reader& in, BufferSpec& buffer) {
  const auto role = in.get<std::uint8_t>();
  const auto form = in.get<std::uint8_t>();
  const auto dtype = in.get<std::uint8_t>();
  const auto rotate = in.get<std::uint8_t>();
  const auto zero = in.get<std::uint32_t>();
  buffer.heads = in.get_size();
  buffer.dim = in.get_size();
  KVC_RETURN_IF_ERROR(expect(name + ".role", role, 0, static_cast<int>(Role::kIndex)));
  KVC_RETURN_IF_ERROR(expect(name + ".form", form, 0, RowFormat::kQ4_0));
  KVC_RETURN_IF_ERROR(expect(name + ".dtype", dtype, 0, static_cast<int>(DType::kBF16)));
  KVC_RETURN_IF_ERROR(expect(name + ".rotate", rotate, 0, 1));
  KVC_RETURN_IF_ERROR(expect(name + ".zeros", zero, 0, 0));
  KVC_RETURN_IF_ERROR(expect(name + ".heads", buffer.heads, 1, kMostInt32));
  KVC_RETURN_IF_ERROR(expect(name + ".dim", buffer.dim, 1, kMostInt32));
  buffer.role = static_cast<Role>(role);
  buffer.format = {static_cast<RowFormat::Kind>(form), static_cast<DType>(dtype), rotate == 1};
  return {};
}

// The most bytes of one token's rows of a buffer, as codes or plain. False where they are too many.
bool add_token_bytes(const BufferSpec& buffer, std::int64_t* total) {
  const std::int64_t row =
      std::max(buffer.format.bytes(buffer.dim), buffer.dim * size_of(buffer.format.dtype));
  std::int64_t bytes = 0;
  return checked_mul(buffer.heads, row, &bytes) && checked_add(*total, bytes, total) &&
         *total <= kMostTokenBytes;
}

Status read_layers(Reader& in, StoredSequence& seq) {
  std::int64_t token_bytes = 0;
  for (std::size_t i = 0; i < seq.layers.size(); ++i) {
    const std::string name = "layers[" + std::to_string(i) + "]";
    StoredLayer& layer = seq.layers[i];
    LayerSpec& spec = layer.spec;
    const auto buffers = in.get<std::uint32_t>();
    const auto sinks = in.get<std::uint32_t>();
    spec.life.window = in.get_size();
    spec.life.chunk = in.get_size();
    layer.first = in.get_size();
    if (!in.ok()) return corrupt(name, "the header's end", "a layer");
    KVC_RETURN_IF_ERROR(expect(name + ".num_buffers", buffers, 1, LayerSpec::kMaxBuffers));
    KVC_RETURN_IF_ERROR(expect(name + ".sink_tokens", sinks, 0, kMostInt32));
    KVC_RETURN_IF_ERROR(expect(name + ".window", spec.life.window, 0, kMaxBytes));
    KVC_RETURN_IF_ERROR(expect(name + ".chunk", spec.life.chunk, 0, kMaxBytes));
    KVC_RETURN_IF_ERROR(expect(name + ".first", layer.first, 0, seq.length));
    spec.num_buffers = static_cast<std::int32_t>(buffers);
    spec.life.sink_tokens = static_cast<std::int32_t>(sinks);
    for (std::int32_t b = 0; b < spec.num_buffers; ++b) {
      const std::string buffer = name + ".buffers[" + std::to_string(b) + "]";
      KVC_RETURN_IF_ERROR(read_buffer(buffer, in, spec.buffers[b]));
      if (!add_token_bytes(spec.buffers[b], &token_bytes)) {
        return corrupt(buffer + ".heads", spec.buffers[b].heads,
                       "fewer: a token has at most 2^44 bytes");
      }
    }
  }
  return {};
}

// Where blocks begin, as long as they end within the file.
Status place_blocks(FileHeader& header, std::int64_t header_bytes, std::int64_t file_bytes) {
  const StoredSequence& seq = header.seq;
  header.offsets.reserve(static_cast<std::size_t>(seq.num_blocks()) + 1);
  std::int64_t at = header_bytes;
  header.offsets.push_back(at);
  for (std::int64_t b = 0; b < seq.num_blocks(); ++b) {
    at += block_bytes(seq, b);  // less than 2^62, and so is what came before
    if (at > file_bytes) break;
    header.offsets.push_back(at);
  }
  if (at == file_bytes) return {};
  return corrupt(
      "file_bytes", file_bytes,
      at > file_bytes ? "more, for its blocks" : std::to_string(at) + ", for its blocks");
}

}  // namespace

std::int64_t usual_block_tokens(const StoredSequence& seq) {
  std::int64_t bytes = 0;
  for (const StoredLayer& layer : seq.layers) bytes += bytes_per_token(layer.spec);
  std::int64_t tokens = 256;
  while (tokens > 16 && tokens * bytes > (std::int64_t{1} << 20)) tokens /= 2;
  return tokens;
}

std::int64_t FileHeader::most_block_bytes() const noexcept {
  std::int64_t most = 0;
  for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
    most = std::max(most, offsets[b + 1] - offsets[b]);
  }
  return most;
}

FileHeader make_header(StoredSequence seq) {
  FileHeader header;
  header.seq = std::move(seq);
  std::int64_t layer_bytes = 0;
  for (const StoredLayer& layer : header.seq.layers) {
    layer_bytes += kLayerBytes + kBufferBytes * layer.spec.num_buffers;
  }
  const std::int64_t blocks = header.seq.num_blocks();
  header.sums.resize(static_cast<std::size_t>(blocks));
  std::int64_t at =
      bytes_of(layer_bytes, static_cast<std::int64_t>(header.seq.tokens.size()), blocks);
  header.offsets.push_back(at);
  for (std::int64_t b = 0; b < blocks; ++b) {
    header.offsets.push_back(at += block_bytes(header.seq, b));
  }
  return header;
}

std::vector<std::byte> encode_header(const FileHeader& header) {
  const StoredSequence& seq = header.seq;
  Writer out;
  out.put_bytes(kMagic, sizeof kMagic);
  out.put(kFormatVersion);
  out.put(kSequence);
  out.put(header.header_bytes());
  out.put(header.file_bytes());
  out.put_bytes(seq.space.bits.data(), seq.space.bits.size());
  out.put(seq.space.tenant);
  out.put(seq.length);
  out.put(static_cast<std::int64_t>(seq.tokens.size()));
  out.put(seq.coded);
  out.put(static_cast<std::uint32_t>(seq.layers.size()));
  out.put(static_cast<std::uint32_t>(seq.block_tokens));
  out.put(static_cast<std::uint32_t>(header.sums.size()));
  out.fill_to(kFixedBytes);
  for (const StoredLayer& layer : seq.layers) {
    out.put(static_cast<std::uint32_t>(layer.spec.num_buffers));
    out.put(static_cast<std::uint32_t>(layer.spec.life.sink_tokens));
    out.put(layer.spec.life.window);
    out.put(layer.spec.life.chunk);
    out.put(layer.first);
    for (const BufferSpec& buffer : layer.spec.used()) {
      out.put(static_cast<std::uint8_t>(buffer.role));
      out.put(static_cast<std::uint8_t>(buffer.format.kind));
      out.put(static_cast<std::uint8_t>(buffer.format.dtype));
      out.put(static_cast<std::uint8_t>(buffer.format.rotate ? 1 : 0));
      out.put(std::uint32_t{0});
      out.put(buffer.heads);
      out.put(buffer.dim);
    }
  }
  out.put_bytes(seq.tokens.data(), 4 * seq.tokens.size());
  out.fill_to(round_up(static_cast<std::int64_t>(out.bytes().size()), 8));
  out.put_bytes(header.sums.data(), 8 * header.sums.size());
  out.fill_to(header.header_bytes() - kSumBytes);
  out.put(xxh3(out.bytes()));
  return std::move(out.bytes());
}

Result<FileHeader> read_header(const File& file) {
  KVC_ASSIGN_OR_RETURN(const std::int64_t size, file.size());
  KVC_RETURN_IF_ERROR(expect("file", size, kFileAlignment, kMaxBytes));
  std::vector<std::byte> bytes(kFixedBytes);
  KVC_RETURN_IF_ERROR(file.read_at(0, bytes));
  if (std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    return corrupt("magic", "other bytes", "those of a cache file");
  }
  Reader fixed(bytes);
  fixed.get<std::uint64_t>();
  if (const auto version = fixed.get<std::uint32_t>(); version != kFormatVersion) {
    return refusal(StatusCode::kUnsupported, "version", version, kFormatVersion);
  }
  if (const auto kind = fixed.get<std::uint32_t>(); kind != kSequence) {
    return refusal(StatusCode::kUnsupported, "kind", kind, "1, a sequence");
  }
  const std::int64_t header_bytes = fixed.get_size();
  const std::int64_t file_bytes = fixed.get_size();
  KVC_RETURN_IF_ERROR(expect("file_bytes", file_bytes, size, size));
  KVC_RETURN_IF_ERROR(expect("header_bytes", header_bytes, kFileAlignment, size));
  if (header_bytes % kFileAlignment != 0) {
    return corrupt("header_bytes", header_bytes, "a multiple of 4096");
  }
  bytes.resize(static_cast<std::size_t>(header_bytes));
  KVC_RETURN_IF_ERROR(file.read_at(0, bytes));
  const std::span<const std::byte> summed(bytes.data(), bytes.size() - kSumBytes);
  std::uint64_t sum = 0;
  std::memcpy(&sum, bytes.data() + summed.size(), sizeof sum);
  if (sum != xxh3(summed)) return corrupt("sum of the header", "another", "that of its bytes");

  Reader in(summed);
  in.skip_zeros(32);  // checked already
  FileHeader header;
  StoredSequence& seq = header.seq;
  in.get_bytes(seq.space.bits.data(), seq.space.bits.size());
  seq.space.tenant = in.get<std::int64_t>();
  seq.length = in.get_size();
  const std::int64_t num_tokens = in.get_size();
  seq.coded = in.get_size();
  const auto num_layers = in.get<std::uint32_t>();
  seq.block_tokens = in.get<std::uint32_t>();
  const auto num_blocks = in.get<std::uint32_t>();
  KVC_RETURN_IF_ERROR(expect("length", seq.length, 0, kMostInt32));
  KVC_RETURN_IF_ERROR(expect("num_tokens", num_tokens, 0, seq.length));
  KVC_RETURN_IF_ERROR(expect("coded", seq.coded, 0, seq.length));
  KVC_RETURN_IF_ERROR(expect("num_layers", num_layers, 1, kMostLayers));
  KVC_RETURN_IF_ERROR(expect("block_tokens", seq.block_tokens, 1, kMostBlockTokens));
  KVC_RETURN_IF_ERROR(expect("num_blocks", num_blocks, seq.num_blocks(), seq.num_blocks()));
  if (!in.skip_zeros(kFixedBytes)) return corrupt("bytes 108 .. 127", "others", "zeros");
  const std::int64_t least = num_layers * (kLayerBytes + kBufferBytes);
  KVC_RETURN_IF_ERROR(expect("header_bytes", header_bytes, bytes_of(least, num_tokens, num_blocks),
                             std::numeric_limits<std::int64_t>::max()));
  seq.layers.resize(num_layers);
  KVC_RETURN_IF_ERROR(read_layers(in, seq));
  const std::int64_t wanted = bytes_of(in.at() - kFixedBytes, num_tokens, num_blocks);
  KVC_RETURN_IF_ERROR(expect("header_bytes", header_bytes, wanted, wanted));
  seq.tokens.resize(static_cast<std::size_t>(num_tokens));
  in.get_bytes(seq.tokens.data(), 4 * seq.tokens.size());
  bool zeros = in.skip_zeros(round_up(in.at(), 8));
  header.sums.resize(num_blocks);
  in.get_bytes(header.sums.data(), 8 * header.sums.size());
  zeros = in.skip_zeros(header_bytes - kSumBytes) && zeros;
  if (!zeros || !in.ok()) return corrupt("bytes that fill the header up", "others", "zeros");
  KVC_RETURN_IF_ERROR(place_blocks(header, header_bytes, file_bytes));
  return header;
}

}  // namespace kvcache::internal
