#include "formats/stored_texts.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/checked_math.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kSpaceBytes = 40;
constexpr std::int64_t kPageBytes = 16;

std::int64_t page_bytes(const StoredTexts& texts, std::size_t page) {
  return walk_page(texts, page, [](std::int64_t, std::int32_t, const RowArray&) {});
}

// The bytes of a header: `fields` of them before the ids.
std::int64_t bytes_of(std::int64_t fields, std::int64_t tokens, std::int64_t pages) {
  return round_up(round_up(fields + 4 * tokens, 8) + kSumBytes * (pages + 1), kFileAlignment);
}

std::int64_t fields_of(std::int64_t layers_end, const StoredTexts& texts) {
  return layers_end + kSpaceBytes * static_cast<std::int64_t>(texts.spaces.size()) +
         kPageBytes * static_cast<std::int64_t>(texts.pages.size()) +
         static_cast<std::int64_t>(texts.present.size());
}

// `most_count`: tokens of a page of which the rows and ids are countable.
Status read_page(FieldReader& in, StoredTexts& texts, std::size_t i, std::int64_t most_count) {
  const std::string name = "pages[" + std::to_string(i) + "]";
  StoredPage& page = texts.pages[i];
  page.parent = in.get<std::int32_t>();
  page.space = in.get<std::int32_t>();
  page.count = in.get<std::int32_t>();
  page.priority = in.get<std::uint8_t>();
  const bool zeros = in.skip_zeros(in.at() + 3);
  page.tokens = i == 0 ? 0 : texts.pages[i - 1].tokens + texts.pages[i - 1].count;
  KVC_RETURN_IF_ERROR(
      expect_field(name + ".parent", page.parent, -1, static_cast<std::int64_t>(i) - 1));
  KVC_RETURN_IF_ERROR(expect_field(name + ".space", page.space, 0,
                                   static_cast<std::int64_t>(texts.spaces.size()) - 1));
  KVC_RETURN_IF_ERROR(expect_field(name + ".count", page.count, 1, most_count));
  KVC_RETURN_IF_ERROR(expect_field(name + ".priority", page.priority, 0, 100));
  if (!zeros) return corrupt(name, "others in its zeros", "zeros");
  if (page.parent < 0) return {};
  const StoredPage& before = texts.pages[static_cast<std::size_t>(page.parent)];
  if (before.space != page.space) {
    return corrupt(name + ".space", page.space, std::to_string(before.space) + ", its parent's");
  }
  return expect_field("pages[" + std::to_string(page.parent) + "].count", before.count,
                      texts.page_size, texts.page_size);
}

Status read_lists(FieldReader& in, StoredTexts& texts) {
  std::int64_t token_bytes = 0, first = 0;
  for (std::size_t i = 0; i < texts.layers.size(); ++i) {
    KVC_RETURN_IF_ERROR(read_layer("layers[" + std::to_string(i) + "]", in, texts.layers[i], &first,
                                   0, &token_bytes));
  }
  for (PrefixNamespace& space : texts.spaces) {
    in.get_bytes(space.bits.data(), space.bits.size());
    space.tenant = in.get<std::int64_t>();
  }
  const std::int64_t countable =
      std::min(texts.page_size, kMaxBytes / 2 / std::max<std::int64_t>(1, token_bytes));
  const std::int64_t most_ids = in.left() / 4;
  for (std::size_t i = 0; i < texts.pages.size(); ++i) {
    const std::int64_t left =
        i == 0 ? most_ids : most_ids - texts.pages[i - 1].tokens - texts.pages[i - 1].count;
    KVC_RETURN_IF_ERROR(read_page(in, texts, i, std::min(countable, left)));
  }
  in.get_bytes(texts.present.data(), texts.present.size());
  return {};
}

}  // namespace

TextsHeader make_texts_header(StoredTexts texts) {
  TextsHeader header;
  header.texts = std::move(texts);
  const StoredTexts& own = header.texts;
  std::int64_t layers_end = kFixedBytes;
  for (const LayerSpec& spec : own.layers) {
    layers_end += kLayerBytes + kBufferBytes * spec.num_buffers;
  }
  header.blocks.sums.resize(own.pages.size());
  std::int64_t at =
      bytes_of(fields_of(layers_end, own), static_cast<std::int64_t>(own.tokens.size()),
               static_cast<std::int64_t>(own.pages.size()));
  header.blocks.offsets.push_back(at);
  for (std::size_t page = 0; page < own.pages.size(); ++page) {
    header.blocks.offsets.push_back(at += page_bytes(own, page));
  }
  return header;
}

std::vector<std::byte> encode_texts_header(const TextsHeader& header) {
  const StoredTexts& texts = header.texts;
  FieldWriter out;
  put_start(out, FileKind::kTexts, header.blocks.header_bytes(), header.blocks.file_bytes());
  out.put(static_cast<std::uint32_t>(texts.layers.size()));
  out.put(static_cast<std::uint32_t>(texts.page_size));
  out.put(static_cast<std::uint32_t>(texts.spaces.size()));
  out.put(static_cast<std::uint32_t>(texts.pages.size()));
  out.fill_to(kFixedBytes);
  for (const LayerSpec& spec : texts.layers) put_layer(out, spec, 0);
  for (const PrefixNamespace& space : texts.spaces) {
    out.put_bytes(space.bits.data(), space.bits.size());
    out.put(space.tenant);
  }
  for (const StoredPage& page : texts.pages) {
    out.put(page.parent);
    out.put(page.space);
    out.put(page.count);
    out.put(page.priority);  // its first byte, and zeros
  }
  out.put_bytes(texts.present.data(), texts.present.size());
  out.put_bytes(texts.tokens.data(), 4 * texts.tokens.size());
  out.fill_to(round_up(out.size(), 8));
  out.put_bytes(header.blocks.sums.data(), 8 * header.blocks.sums.size());
  return put_end(out, header.blocks.header_bytes());
}

Result<TextsHeader> read_texts_header(const File& file) {
  KVC_ASSIGN_OR_RETURN(const HeaderBytes start, read_start(file));
  return read_texts_header(start);
}

Result<TextsHeader> read_texts_header(const HeaderBytes& start) {
  KVC_RETURN_IF_ERROR(expect_kind(start.kind, FileKind::kTexts));
  const std::int64_t header_bytes = start.header_bytes();
  FieldReader in(start.bytes);
  in.skip_zeros(32);  // checked already
  TextsHeader header;
  StoredTexts& texts = header.texts;
  const auto num_layers = in.get<std::uint32_t>();
  texts.page_size = in.get<std::uint32_t>();
  const auto num_spaces = in.get<std::uint32_t>();
  const auto num_pages = in.get<std::uint32_t>();
  KVC_RETURN_IF_ERROR(expect_field("num_layers", num_layers, 1, kMostLayers));
  KVC_RETURN_IF_ERROR(expect_field("page_size", texts.page_size, 1, kMostInt32));
  // Each takes its bytes in the header, so that lists are no longer than what is there.
  KVC_RETURN_IF_ERROR(
      expect_field("num_layers", num_layers, 1, in.left() / (kLayerBytes + kBufferBytes)));
  KVC_RETURN_IF_ERROR(expect_field("num_spaces", num_spaces, 0, in.left() / kSpaceBytes));
  KVC_RETURN_IF_ERROR(expect_field("num_pages", num_pages, 0, in.left() / kPageBytes));
  if (!in.skip_zeros(kFixedBytes)) return corrupt("bytes 48 .. 127", "others", "zeros");
  texts.layers.resize(num_layers);
  texts.spaces.resize(num_spaces);
  texts.pages.resize(num_pages);
  KVC_RETURN_IF_ERROR(expect_field(
      "header_bytes", header_bytes,
      bytes_of(kFixedBytes + static_cast<std::int64_t>(num_pages * texts.present_bytes()), 0, 0),
      std::numeric_limits<std::int64_t>::max()));
  texts.present.resize(num_pages * texts.present_bytes());
  KVC_RETURN_IF_ERROR(read_lists(in, texts));
  const std::int64_t num_tokens =
      texts.pages.empty() ? 0 : texts.pages.back().tokens + texts.pages.back().count;
  const std::int64_t wanted = bytes_of(in.at(), num_tokens, num_pages);
  KVC_RETURN_IF_ERROR(expect_field("header_bytes", header_bytes, wanted, wanted));
  texts.tokens.resize(static_cast<std::size_t>(num_tokens));
  in.get_bytes(texts.tokens.data(), 4 * texts.tokens.size());
  bool zeros = in.skip_zeros(round_up(in.at(), 8));
  header.blocks.sums.resize(num_pages);
  in.get_bytes(header.blocks.sums.data(), 8 * header.blocks.sums.size());
  zeros = in.skip_zeros(header_bytes - kSumBytes) && zeros;
  if (!zeros || !in.ok()) return corrupt("bytes that fill the header up", "others", "zeros");
  std::int64_t at = header_bytes;
  header.blocks.offsets.push_back(at);
  for (std::size_t page = 0; page < num_pages && at <= start.file_bytes; ++page) {
    header.blocks.offsets.push_back(at += page_bytes(texts, page));
  }
  KVC_RETURN_IF_ERROR(expect_field("file_bytes", start.file_bytes, at, at));
  return header;
}

}  // namespace kvcache::internal
