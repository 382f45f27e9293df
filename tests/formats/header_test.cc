#include "formats/header.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "formats/stored_texts.h"
#include "kvcache/row_format.h"

namespace kvcache::internal {
namespace {

StoredSequence any_sequence(std::mt19937& random) {
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random()) % n; };
  StoredSequence seq;
  seq.length = below(200);
  seq.coded = below(2) == 0 ? seq.length : below(seq.length + 1);
  seq.block_tokens = 1 + below(40);
  seq.space.bits[3] = std::byte{9};
  seq.space.tenant = -below(5);
  for (std::int64_t i = below(seq.length + 1); i > 0; --i) {
    seq.tokens.push_back(static_cast<std::int32_t>(random()));
  }
  const RowFormat formats[] = {plain(DType::kF32), plain(DType::kF16), coded(RowFormat::kInt8),
                               coded(RowFormat::kInt4), coded(RowFormat::kQ4_0)};
  for (std::int64_t i = 1 + below(3); i > 0; --i) {
    StoredLayer layer;
    layer.spec = LayerSpec::kv(1 + below(3), 32, 64, formats[below(5)], formats[below(5)]);
    if (below(2) == 0) {
      layer.spec.life.window = 1 + below(50);
      layer.spec.life.sink_tokens = static_cast<std::int32_t>(below(10));
      layer.first = below(seq.length + 1);
    }
    seq.layers.push_back(layer);
  }
  return seq;
}

// A layered cache whose layers differ in batch and length; some were never populated.
StoredSequence any_layers(std::mt19937& random) {
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random()) % n; };
  StoredSequence seq;
  seq.kind = FileKind::kLayers;
  seq.block_tokens = 1 + below(40);
  for (std::int64_t i = 1 + below(4); i > 0; --i) {
    StoredLayer layer;
    layer.extents = {0, 0, 0};
    if (below(4) > 0) {
      layer.spec =
          LayerSpec::kv(1 + below(3), 1 + below(20), 8, plain(DType::kF16), plain(DType::kF32));
      layer.extents = {1 + below(4), below(100), below(9)};
    }
    seq.length = std::max(seq.length, layer.extents.length);
    seq.layers.push_back(layer);
  }
  seq.coded = seq.length;
  return seq;
}

MemoryFile written(FileHeader& header) {
  MemoryFile file;
  const Status status =
      write_sequence(file, header, [](const RowPiece&, const RowArray&, std::byte*) {});
  EXPECT_TRUE(status.ok());
  return file;
}

// A small file of many layers and many empty blocks would take hours to look at.
TEST(FileHeaders, LayersTimesBlocksAreBounded) {
  StoredSequence seq;
  seq.length = seq.coded = 4097;
  seq.block_tokens = seq.length;
  StoredLayer layer;
  layer.spec = LayerSpec::kv(1, 8, 8, plain(DType::kF32), plain(DType::kF32));
  layer.spec.life.window = 1;
  layer.first = seq.length;
  seq.layers.assign(65536, layer);
  FileHeader header = make_header(seq);
  // The same in blocks of one token, none of which has a row; the sums of 4096 more take 8 pages.
  header.seq.block_tokens = 1;
  header.blocks.sums.assign(4097, 0);
  header.blocks.offsets.assign(4098, header.blocks.header_bytes() + 8 * 4096);
  const std::vector<std::byte> bytes = encode_header(header);
  const Status status = read_header(BytesFile(bytes)).status();
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_EQ(status.message(), "num_blocks: found 4097, expected 0 .. 4096");
}

// Every row that a layer has lies in one block, at one place, and no two overlap.
TEST(FileBlocks, EveryRowThatIsThereHasOnePlaceOfItsOwn) {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const StoredSequence seq = any_sequence(random);
    std::map<std::pair<std::int64_t, std::int32_t>, std::set<std::int64_t>> seen;
    for (std::int64_t block = 0; block < seq.num_blocks(); ++block) {
      std::vector<bool> taken;
      const auto take = [&](std::int64_t begin, std::int64_t size) {
        for (std::int64_t at = begin; at < begin + size; ++at) {
          if (taken.size() <= static_cast<std::size_t>(at)) {
            taken.resize(static_cast<std::size_t>(at) + 1);
          }
          EXPECT_FALSE(taken[static_cast<std::size_t>(at)]);
          taken[static_cast<std::size_t>(at)] = true;
        }
      };
      const std::int64_t bytes = walk_block(seq, block, [&](const RowPiece& p, const RowArray& a) {
        EXPECT_LT(p.begin, p.end);
        EXPECT_LE(p.at + p.end - p.begin, a.rows);
        for (std::int64_t row = p.begin; row < p.end; ++row) {
          EXPECT_EQ(row / seq.block_tokens, block);
          EXPECT_TRUE(seen[std::pair(p.layer, p.buffer)].insert(row).second);
        }
        const std::int64_t size = a.format.code_bytes(a.dim);
        const std::int64_t groups = a.format.num_scales(a.dim);
        const std::int64_t rows = p.end - p.begin;
        for (std::int64_t head = 0; head < a.heads; ++head) {
          take(a.codes + (head * a.rows + p.at) * size, rows * size);
          for (std::int64_t g = 0; g < groups; ++g) {
            take(a.scales + 2 * ((head * groups + g) * a.rows + p.at), 2 * rows);
            if (a.format.has_zeros()) take(a.zeros + (head * groups + g) * a.rows + p.at, rows);
          }
        }
        const bool is_coded =
            seq.layers[static_cast<std::size_t>(p.layer)].spec.buffers[p.buffer].format.is_coded();
        EXPECT_EQ(a.format.is_coded(), is_coded && p.begin < seq.coded);
      });
      EXPECT_EQ(bytes % kFileAlignment, 0);
      EXPECT_LE(static_cast<std::int64_t>(taken.size()), bytes);
    }
    for (std::size_t layer = 0; layer < seq.layers.size(); ++layer) {
      const StoredLayer& stored = seq.layers[layer];
      for (std::int32_t b = 0; b < stored.spec.num_buffers; ++b) {
        const auto& rows = seen[std::pair(static_cast<std::int64_t>(layer), b)];
        for (std::int64_t row = 0; row < seq.length; ++row) {
          const bool there = row >= stored.first || row < stored.spec.life.sink_tokens;
          EXPECT_EQ(rows.count(row), there ? 1u : 0u);
        }
      }
    }
  }
}

TEST(FileHeaders, ComeBackAsTheyWere) {
  std::mt19937 random(2);
  for (int i = 0; i < 100; ++i) {
    FileHeader header = make_header(any_sequence(random));
    const MemoryFile file = written(header);
    EXPECT_EQ(file.size().value(), header.blocks.file_bytes());
    const auto read = read_header(file);
    ASSERT_TRUE(read.ok()) << read.status().to_string();
    EXPECT_EQ(encode_header(*read), encode_header(header));
    EXPECT_EQ(read->seq.tokens, header.seq.tokens);
    EXPECT_EQ(read->seq.coded, header.seq.coded);
    EXPECT_TRUE(verify_blocks(file, read->blocks, {&serial_executor()}).ok());
  }
}

TEST(LayersHeaders, ComeBackAsTheyWere) {
  std::mt19937 random(3);
  for (int i = 0; i < 100; ++i) {
    FileHeader header = make_header(any_layers(random));
    const MemoryFile file = written(header);
    const auto read = read_header(file);
    ASSERT_TRUE(read.ok()) << read.status().to_string();
    EXPECT_EQ(encode_header(*read), encode_header(header));
    std::int64_t rows = 0, expected = 0;
    for (std::int64_t block = 0; block < read->seq.num_blocks(); ++block) {
      walk_block(read->seq, block, [&](const RowPiece& piece, const RowArray& array) {
        rows += (piece.end - piece.begin) * array.heads;
      });
    }
    for (const StoredLayer& layer : header.seq.layers) {
      expected += 2 * layer.extents.batch * layer.extents.length * layer.spec.key().heads;
    }
    EXPECT_EQ(rows, expected);
  }
}

TEST(LayersHeaders, EveryForgedFieldIsRefusedByItsName) {
  StoredSequence seq;
  seq.kind = FileKind::kLayers;
  seq.length = seq.coded = 5;
  seq.block_tokens = 16;
  StoredLayer layer;
  layer.spec = LayerSpec::kv(2, 8, 8, plain(DType::kF16), plain(DType::kF16));
  layer.extents = {3, 5, 2};
  seq.layers.assign(2, layer);
  const auto refused = [&](auto&& change, const std::string& words) {
    StoredSequence changed = seq;
    change(changed);
    FileHeader header = make_header(changed);
    const Status status = read_header(written(header)).status();
    EXPECT_EQ(status.code(), StatusCode::kCorrupt);
    EXPECT_EQ(status.message().find(words), 0u) << status.message() << ", " << words;
  };
  refused([](auto& s) { s.tokens = {1}; }, "num_tokens: found 1");
  refused([](auto& s) { s.coded = 4; }, "coded: found 4");
  refused([](auto& s) { s.layers[1].extents.batch = 0; }, "layers[1].batch: found 0");
  refused([](auto& s) { s.layers[1].extents.length = 6; }, "layers[1].length: found 6");
  refused([](auto& s) { s.layers[1].extents.position = -1; }, "layers[1].position: found -1");
  refused([](auto& s) { s.layers[0].first = 1; }, "layers[0].first: found 1");
  refused([](auto& s) { s.layers[0].spec.life.window = 4; }, "layers[0]: found other rows");
  refused([](auto& s) { s.layers[0].spec.buffers[0].format = coded(RowFormat::kQ8_0); },
          "layers[0].buffers[0].dim: found 8");
  refused([](auto& s) { s.layers[0].spec.buffers[1].role = Role::kIndex; },
          "layers[0]: found other rows");
  refused([](auto& s) { s.layers[0].spec.num_buffers = 0; }, "layers[0].batch: found 3");
}

TEST(FileBlocks, TheFirstDamagedBlockIsNamedHoweverManyTasksLook) {
  StoredSequence seq;
  seq.length = seq.coded = 400;
  seq.block_tokens = 10;
  seq.layers.assign(1, {LayerSpec::kv(1, 8, 8, DType::kF16), 0});
  FileHeader header = make_header(seq);
  MemoryFile file = written(header);
  const auto pool = make_thread_pool(4).value();
  for (const std::int64_t first : {33, 18, 7, 2}) {
    const std::byte damage{1};
    const auto block = static_cast<std::size_t>(first);
    EXPECT_TRUE(file.write_at(header.blocks.offsets[block], {&damage, 1}).ok());
    for (int i = 0; i < 50; ++i) {
      EXPECT_EQ(verify_blocks(file, header.blocks, {pool.get()}).message(),
                "sum of block " + std::to_string(first) +
                    ": found another, expected that of its "
                    "bytes");
    }
  }
}

TEST(FileHeaders, ABlockStaysWithinAMebibyteWhereItCan) {
  StoredSequence seq;
  seq.layers.assign(24, {LayerSpec::kv(2, 64, 64, DType::kF16), 0});
  EXPECT_EQ(usual_block_tokens(seq), 64);
  seq.layers.assign(80, {LayerSpec::kv(8, 128, 128, DType::kF16), 0});
  EXPECT_EQ(usual_block_tokens(seq), 16);
  seq.layers.assign(1, {LayerSpec::kv(1, 1, 1, DType::kF16), 0});
  EXPECT_EQ(usual_block_tokens(seq), 256);
}

TEST(TextsHeaders, ComeBackAsTheyWereAndParentsComeFirst) {
  StoredTexts texts;
  texts.page_size = 4;
  texts.layers = {LayerSpec::kv(1, 8, 8, DType::kF16), LayerSpec::kv(2, 4, 4)};
  texts.spaces.resize(2);
  texts.pages = {{-1, 0, 4, 50, 0}, {0, 0, 3, 90, 4}, {-1, 1, 2, 0, 7}};
  texts.present = {3, 1, 3};
  texts.tokens = {1, 2, 3, 4, 5, 6, 7, -8, 9};
  const auto file_of = [](StoredTexts made) {
    TextsHeader header = make_texts_header(std::move(made));
    MemoryFile file;
    EXPECT_TRUE(write_blocks(file, header.blocks, [](std::int64_t, std::span<std::byte>) {}).ok());
    EXPECT_TRUE(file.write_at(0, encode_texts_header(header)).ok());
    return file;
  };
  const auto read = read_texts_header(file_of(texts));
  ASSERT_TRUE(read.ok()) << read.status().to_string();
  EXPECT_EQ(read->texts.tokens, texts.tokens);
  EXPECT_EQ(read->texts.present, texts.present);
  EXPECT_FALSE(read->texts.has(1, 1));
  EXPECT_EQ(read->texts.pages[1].priority, 90);
  EXPECT_EQ(read->texts.tokens_of(read->texts.pages[2])[0], -8);

  const auto refused = [&](auto&& change, const std::string& words) {
    StoredTexts changed = texts;
    change(changed);
    const Status status = read_texts_header(file_of(changed)).status();
    EXPECT_EQ(status.code(), StatusCode::kCorrupt);
    EXPECT_EQ(status.message().find(words), 0u) << status.message();
  };
  refused([](StoredTexts& t) { t.pages[1].parent = 1; }, "pages[1].parent: found 1");
  refused([](StoredTexts& t) { t.pages[1].space = 1; }, "pages[1].space: found 1");
  refused([](StoredTexts& t) { t.pages[2].space = 2; }, "pages[2].space: found 2");
  refused([](StoredTexts& t) { t.pages[2].priority = 101; }, "pages[2].priority: found 101");
  refused(
      [](StoredTexts& t) {
        t.pages[0].count = 3;
        t.tokens.erase(t.tokens.begin());
        t.pages[1].tokens = 3;
        t.pages[2].tokens = 6;
      },
      "pages[0].count: found 3");
}

// A header of texts that says of layers and counts what `change` makes of them, with a sum that
// fits and blocks that have no bytes.
MemoryFile forged_texts(const std::function<void(StoredTexts&)>& change) {
  StoredTexts texts;
  texts.page_size = 1;
  texts.layers = {LayerSpec::kv(1, 1, 1)};
  texts.layers[0].num_buffers = 1;
  texts.spaces.resize(1);
  texts.pages = {{-1, 0, 1, 50, 0}};
  texts.present = {1};
  texts.tokens = {1};
  TextsHeader header;
  header.texts = texts;
  change(header.texts);
  StoredTexts& own = header.texts;
  const auto pages = static_cast<std::int64_t>(own.pages.size());
  std::int64_t bytes = kFixedBytes + 40 * static_cast<std::int64_t>(own.spaces.size()) +
                       16 * pages + static_cast<std::int64_t>(own.present.size());
  for (const LayerSpec& spec : own.layers) bytes += kLayerBytes + kBufferBytes * spec.num_buffers;
  bytes = round_up(bytes + 4 * static_cast<std::int64_t>(own.tokens.size()), 8);
  bytes = round_up(bytes + kSumBytes * (pages + 1), kFileAlignment);
  header.blocks.sums.resize(own.pages.size());
  header.blocks.offsets.assign(own.pages.size() + 1, bytes);
  MemoryFile file;
  EXPECT_TRUE(file.write_at(0, encode_texts_header(header)).ok());
  return file;
}

// Sizes of which the product is no number of 64 bits are found out where they are read.
TEST(TextsHeaders, PagesOfMoreBytesThanCanBeCountedAreRefused) {
  for (const int bits : {19, 20}) {
    for (const int dim_bits : {20, 21}) {
      const auto file = forged_texts([&](StoredTexts& texts) {
        texts.layers[0].buffers[0].heads = std::int64_t{1} << 21;
        texts.layers[0].buffers[0].dim = std::int64_t{1} << dim_bits;
        texts.page_size = texts.pages[0].count = 1 << bits;
        texts.tokens.resize(std::size_t{1} << bits);
      });
      const Status status = read_texts_header(file).status();
      EXPECT_EQ(status.code(), StatusCode::kCorrupt);
    }
  }
  const auto file = forged_texts([](StoredTexts& texts) {
    texts.layers[0].buffers[0].heads = texts.layers[0].buffers[0].dim = std::int64_t{1} << 21;
    texts.page_size = texts.pages[0].count = 1 << 20;
    texts.tokens.resize(std::size_t{1} << 20);
  });
  EXPECT_EQ(read_texts_header(file).status().message(),
            "pages[0].count: found 1048576, expected 1 .. 131072");
}

TEST(TextsHeaders, CountsOfMoreIdsThanTheHeaderHasAreRefusedByThePage) {
  const auto file = forged_texts([](StoredTexts& texts) {
    texts.page_size = (std::int64_t{1} << 31) - 1;
    texts.pages.assign(3, {-1, 0, static_cast<std::int32_t>(texts.page_size), 50, 0});
    texts.present.assign(3, 1);
  });
  EXPECT_EQ(read_texts_header(file).status().message().find("pages[0].count: found 2147483647"),
            0u);
}

TEST(TextsHeaders, EveryForgedFieldIsRefusedByItsName) {
  const auto refused = [&](auto&& change, const std::string& words) {
    const Status status = read_texts_header(forged_texts(change)).status();
    EXPECT_EQ(status.code(), StatusCode::kCorrupt);
    EXPECT_EQ(status.message().find(words), 0u) << status.message() << ", " << words;
  };
  refused([](StoredTexts& t) { t.page_size = 0; }, "page_size: found 0");
  refused([](StoredTexts& t) { t.page_size = std::int64_t{1} << 31; }, "page_size: found");
  refused([](StoredTexts& t) { t.layers.clear(); }, "num_layers: found 0");
  refused([](StoredTexts& t) { t.layers[0].buffers[0].heads = 0; },
          "layers[0].buffers[0].heads: found 0");
  refused([](StoredTexts& t) { t.layers[0].buffers[0].dim = std::int64_t{1} << 31; },
          "layers[0].buffers[0].dim: found");
  refused([](StoredTexts& t) { t.layers[0].life.window = -1; }, "layers[0].window: found -1");
  refused([](StoredTexts& t) { t.layers[0].life.sink_tokens = -1; }, "layers[0].sink_tokens");
  refused([](StoredTexts& t) { t.pages[0].parent = -2; }, "pages[0].parent: found -2");
  refused([](StoredTexts& t) { t.pages[0].parent = 0; }, "pages[0].parent: found 0");
  refused([](StoredTexts& t) { t.pages[0].space = -1; }, "pages[0].space: found -1");
  refused([](StoredTexts& t) { t.pages[0].count = 0; }, "pages[0].count: found 0");
  refused([](StoredTexts& t) { t.pages[0].count = 2; }, "pages[0].count: found 2");
  refused([](StoredTexts& t) { t.pages[0].priority = 257; }, "pages[0]: found others");
  refused([](StoredTexts&) {}, "file_bytes: found");  // its block is missing
}

}  // namespace
}  // namespace kvcache::internal
