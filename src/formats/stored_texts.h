// What a file says of the texts of a prefix cache: docs/formats.md, kind 2, in code.
#ifndef KVCACHE_SRC_FORMATS_STORED_TEXTS_H_
#define KVCACHE_SRC_FORMATS_STORED_TEXTS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "formats/block_table.h"
#include "formats/stored_sequence.h"
#include "kvcache/prefix.h"

namespace kvcache::internal {

// A page of tokens, which is a block of the file.
struct StoredPage {
  std::int32_t parent = -1;  // the page before it, which comes before it in the file; -1: none
  std::int32_t space = 0;
  std::int32_t count = 0;  // tokens
  std::int32_t priority = 0;
  std::int64_t tokens = 0;  // where its ids begin among all
};

struct StoredTexts {
  std::int64_t page_size = 0;
  std::vector<LayerSpec> layers;
  std::vector<PrefixNamespace> spaces;
  std::vector<StoredPage> pages;
  std::vector<std::uint8_t> present;  // [num_pages, present_bytes()] a bit a layer: has its rows
  std::vector<std::int32_t> tokens;

  std::size_t present_bytes() const noexcept { return (layers.size() + 7) / 8; }
  bool has(std::size_t page, std::size_t layer) const noexcept {
    return (present[page * present_bytes() + layer / 8] >> (layer % 8) & 1) != 0;
  }
  std::span<const std::int32_t> tokens_of(const StoredPage& page) const noexcept {
    return std::span(tokens).subspan(static_cast<std::size_t>(page.tokens),
                                     static_cast<std::size_t>(page.count));
  }
};

// Calls fn(layer, buffer, const RowArray&) for the rows of a page; returns the bytes of its block.
template <typename Fn>
std::int64_t walk_page(const StoredTexts& texts, std::size_t page, Fn&& fn) {
  std::int64_t offset = 0;
  for (std::size_t layer = 0; layer < texts.layers.size(); ++layer) {
    if (!texts.has(page, layer)) continue;
    const LayerSpec& spec = texts.layers[layer];
    for (std::int32_t b = 0; b < spec.num_buffers; ++b) {
      const BufferSpec& buffer = spec.buffers[b];
      RowArray rows{buffer.format, buffer.heads, buffer.dim, texts.pages[page].count};
      const std::int64_t end = rows.place(offset);
      fn(static_cast<std::int64_t>(layer), b, rows);
      offset = round_up(end, kSectionAlignment);
    }
  }
  return round_up(offset, kFileAlignment);
}

struct TextsHeader {
  StoredTexts texts;
  BlockTable blocks;
};

// As make_header(), encode_header() and read_header() of a sequence. May throw bad_alloc.
TextsHeader make_texts_header(StoredTexts texts);
std::vector<std::byte> encode_texts_header(const TextsHeader& header);
Result<TextsHeader> read_texts_header(const HeaderBytes& start);
Result<TextsHeader> read_texts_header(const File& file);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_FORMATS_STORED_TEXTS_H_
