#include "formats/header.h"

#include <string>
#include <utility>

namespace kvcache::internal {
namespace {

// The bytes of a header, from what is in it.
std::int64_t bytes_of(std::int64_t layer_bytes, std::int64_t tokens, std::int64_t blocks) {
  return round_up(kFixedBytes + layer_bytes + round_up(4 * tokens, 8) + kSumBytes * (blocks + 1),
                  kFileAlignment);
}

Status read_layers(FieldReader& in, StoredSequence& seq) {
  std::int64_t token_bytes = 0;
  for (std::size_t i = 0; i < seq.layers.size(); ++i) {
    StoredLayer& layer = seq.layers[i];
    const std::string name = "layers[" + std::to_string(i) + "]";
    if (seq.kind == FileKind::kLayers) {
      KVC_RETURN_IF_ERROR(
          read_layer_with_extents(name, in, layer.spec, layer.extents, seq.length, &token_bytes));
    } else {
      KVC_RETURN_IF_ERROR(read_layer(name, in, layer.spec, &layer.first, seq.length, &token_bytes));
    }
  }
  return {};
}

// Where blocks begin, as long as they end within the file.
Status place_blocks(FileHeader& header, std::int64_t header_bytes, std::int64_t file_bytes) {
  const StoredSequence& seq = header.seq;
  const std::int64_t most_blocks = kMostLayerBlocks / std::ssize(seq.layers);
  KVC_RETURN_IF_ERROR(expect_field("num_blocks", seq.num_blocks(), 0, most_blocks));
  std::vector<std::int64_t>& offsets = header.blocks.offsets;
  offsets.reserve(static_cast<std::size_t>(seq.num_blocks()) + 1);
  std::int64_t at = header_bytes;
  offsets.push_back(at);
  for (std::int64_t b = 0; b < seq.num_blocks(); ++b) {
    at += block_bytes(seq, b);  // less than 2^62, and so is what came before
    if (at > file_bytes) break;
    offsets.push_back(at);
  }
  if (at == file_bytes) return {};
  return corrupt(
      "file_bytes", file_bytes,
      at > file_bytes ? "more, for its blocks" : std::to_string(at) + ", for its blocks");
}

}  // namespace

std::int64_t usual_block_tokens(const StoredSequence& seq) {
  std::int64_t bytes = 0;
  for (const StoredLayer& layer : seq.layers) {
    bytes += layer.extents.batch * bytes_per_token(layer.spec);
  }
  std::int64_t tokens = 256;
  while (tokens > 16 && tokens * bytes > (std::int64_t{1} << 20)) tokens /= 2;
  const std::int64_t most_blocks = kMostLayerBlocks / std::ssize(seq.layers);
  while (tokens < kMostBlockTokens && seq.length / tokens >= most_blocks) tokens *= 2;
  return tokens;
}

FileHeader make_header(StoredSequence seq) {
  FileHeader header;
  header.seq = std::move(seq);
  std::int64_t layer_bytes = 0;
  for (const StoredLayer& layer : header.seq.layers) {
    layer_bytes += kLayerBytes + kBufferBytes * layer.spec.num_buffers;
    if (header.seq.kind == FileKind::kLayers) layer_bytes += kExtentBytes;
  }
  const std::int64_t blocks = header.seq.num_blocks();
  header.blocks.sums.resize(static_cast<std::size_t>(blocks));
  std::int64_t at =
      bytes_of(layer_bytes, static_cast<std::int64_t>(header.seq.tokens.size()), blocks);
  header.blocks.offsets.push_back(at);
  for (std::int64_t b = 0; b < blocks; ++b) {
    header.blocks.offsets.push_back(at += block_bytes(header.seq, b));
  }
  return header;
}

std::vector<std::byte> encode_header(const FileHeader& header) {
  const StoredSequence& seq = header.seq;
  const std::vector<std::uint64_t>& sums = header.blocks.sums;
  FieldWriter out;
  put_start(out, seq.kind, header.blocks.header_bytes(), header.blocks.file_bytes());
  out.put_bytes(seq.space.bits.data(), seq.space.bits.size());
  out.put(seq.space.tenant);
  out.put(seq.length);
  out.put(static_cast<std::int64_t>(seq.tokens.size()));
  out.put(seq.coded);
  out.put(static_cast<std::uint32_t>(seq.layers.size()));
  out.put(static_cast<std::uint32_t>(seq.block_tokens));
  out.put(static_cast<std::uint32_t>(sums.size()));
  out.fill_to(kFixedBytes);
  for (const StoredLayer& layer : seq.layers) {
    put_layer(out, layer.spec, layer.first);
    if (seq.kind == FileKind::kLayers) put_extents(out, layer.extents);
  }
  out.put_bytes(seq.tokens.data(), 4 * seq.tokens.size());
  out.fill_to(round_up(out.size(), 8));
  out.put_bytes(sums.data(), 8 * sums.size());
  return put_end(out, header.blocks.header_bytes());
}

Result<FileHeader> read_header(const File& file) {
  KVC_ASSIGN_OR_RETURN(const HeaderBytes start, read_start(file));
  return read_header(start);
}

Result<FileHeader> read_header(const HeaderBytes& start) {
  if (start.kind != FileKind::kLayers) {
    KVC_RETURN_IF_ERROR(expect_kind(start.kind, FileKind::kSequence));
  }
  const std::int64_t header_bytes = start.header_bytes();
  FieldReader in(start.bytes);
  in.skip_zeros(32);  // checked already
  FileHeader header;
  StoredSequence& seq = header.seq;
  seq.kind = start.kind;
  const bool is_layers = seq.kind == FileKind::kLayers;
  in.get_bytes(seq.space.bits.data(), seq.space.bits.size());
  seq.space.tenant = in.get<std::int64_t>();
  seq.length = in.get_size();
  const std::int64_t num_tokens = in.get_size();
  seq.coded = in.get_size();
  const auto num_layers = in.get<std::uint32_t>();
  seq.block_tokens = in.get<std::uint32_t>();
  const auto num_blocks = in.get<std::uint32_t>();
  KVC_RETURN_IF_ERROR(expect_field("length", seq.length, 0, kMostInt32));
  KVC_RETURN_IF_ERROR(expect_field("num_tokens", num_tokens, 0, is_layers ? 0 : seq.length));
  KVC_RETURN_IF_ERROR(expect_field("coded", seq.coded, is_layers ? seq.length : 0, seq.length));
  KVC_RETURN_IF_ERROR(expect_field("num_layers", num_layers, 1, kMostLayers));
  KVC_RETURN_IF_ERROR(expect_field("block_tokens", seq.block_tokens, 1, kMostBlockTokens));
  KVC_RETURN_IF_ERROR(expect_field("num_blocks", num_blocks, seq.num_blocks(), seq.num_blocks()));
  if (!in.skip_zeros(kFixedBytes)) return corrupt("bytes 108 .. 127", "others", "zeros");
  const std::int64_t least = num_layers * (kLayerBytes + (is_layers ? kExtentBytes : kBufferBytes));
  KVC_RETURN_IF_ERROR(expect_field("header_bytes", header_bytes,
                                   bytes_of(least, num_tokens, num_blocks),
                                   std::numeric_limits<std::int64_t>::max()));
  seq.layers.resize(num_layers);
  KVC_RETURN_IF_ERROR(read_layers(in, seq));
  const std::int64_t wanted = bytes_of(in.at() - kFixedBytes, num_tokens, num_blocks);
  KVC_RETURN_IF_ERROR(expect_field("header_bytes", header_bytes, wanted, wanted));
  seq.tokens.resize(static_cast<std::size_t>(num_tokens));
  in.get_bytes(seq.tokens.data(), 4 * seq.tokens.size());
  bool zeros = in.skip_zeros(round_up(in.at(), 8));
  header.blocks.sums.resize(num_blocks);
  in.get_bytes(header.blocks.sums.data(), 8 * header.blocks.sums.size());
  zeros = in.skip_zeros(header_bytes - kSumBytes) && zeros;
  if (!zeros || !in.ok()) return corrupt("bytes that fill the header up", "others", "zeros");
  KVC_RETURN_IF_ERROR(place_blocks(header, header_bytes, start.file_bytes));
  return header;
}

}  // namespace kvcache::internal
