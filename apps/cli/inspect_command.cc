// `kvcache inspect`: what a file of a cache says of itself, in words, as JSON and as a picture.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "kvcache/cache_file.h"

namespace kvcache::cli {
namespace {

struct Flags {
  std::string file;
  std::string svg;
  bool json = false;
};

using Kind = CacheFileInfo::Kind;

std::string hex(const PrefixNamespace& space) {
  std::string text;
  for (const std::byte byte : space.bits) text += fmt::format("{:02x}", std::to_integer<int>(byte));
  return text;
}

std::string words_of(const BufferSpec& buffer) {
  const RowFormat& format = buffer.format;
  const std::string form = format.is_coded() ? name_of(format.kind) : name_of(format.dtype);
  return fmt::format("{} x {} {}{}", buffer.heads, buffer.dim, form,
                     format.rotate && format.is_coded() ? " rotated" : "");
}

const char* word_of(Role role) {
  switch (role) {
    case Role::kKey:
      return "K";
    case Role::kValue:
      return "V";
    case Role::kLatent:
      return "latent";
    default:
      return "index";
  }
}

const char* word_of(Kind kind) {
  switch (kind) {
    case Kind::kTexts:
      return "texts";
    case Kind::kLayers:
      return "layers";
    default:
      return "sequence";
  }
}

std::string words_of(const Life& life) {
  if (life.chunk > 0) return fmt::format("chunks of {}", life.chunk);
  if (life.window == 0) return "all tokens";
  const std::string window = fmt::format("a window of {}", life.window);
  return life.sink_tokens == 0 ? window : fmt::format("{}, {} sinks", window, life.sink_tokens);
}

// Tokens of each page's text, those before it included; and how many texts go through it.
struct Trees {
  std::vector<std::int64_t> ends, texts;
};
Trees trees_of(const CacheFileInfo& info) {
  Trees trees;
  trees.texts.assign(info.pages.size(), 0);
  std::vector<bool> goes_on(info.pages.size());
  for (const CacheFilePage& page : info.pages) {
    const auto parent = static_cast<std::size_t>(page.parent);
    trees.ends.push_back(page.count + (page.parent < 0 ? 0 : trees.ends[parent]));
    if (page.parent >= 0) goes_on[parent] = true;
  }
  for (std::size_t i = info.pages.size(); i-- > 0;) {
    if (!goes_on[i]) ++trees.texts[i];
    if (info.pages[i].parent >= 0) {
      trees.texts[static_cast<std::size_t>(info.pages[i].parent)] += trees.texts[i];
    }
  }
  return trees;
}

// --- JSON. ---

nlohmann::ordered_json json_of(const CacheFileInfo& info) {
  nlohmann::ordered_json out;
  out["version"] = info.version;
  out["kind"] = word_of(info.kind);
  out["file_bytes"] = info.file_bytes;
  out["header_bytes"] = info.header_bytes;
  if (info.kind == Kind::kTexts) {
    out["page_size"] = info.page_size;
    out["namespaces"] = nlohmann::json::array();
    for (const PrefixNamespace& space : info.spaces) {
      out["namespaces"].push_back({{"bits", hex(space)}, {"tenant", space.tenant}});
    }
    out["pages"] = nlohmann::json::array();
    for (const CacheFilePage& page : info.pages) {
      out["pages"].push_back({{"parent", page.parent},
                              {"namespace", page.space},
                              {"tokens", page.count},
                              {"priority", page.priority}});
    }
  } else {
    out["namespace"] = hex(info.space);
    out["tenant"] = info.space.tenant;
    out["length"] = info.length;
    out["coded"] = info.coded;
    out["block_tokens"] = info.block_tokens;
  }
  out["tokens"] = info.tokens;
  out["layers"] = nlohmann::json::array();
  for (std::size_t i = 0; i < info.layers.size(); ++i) {
    const LayerSpec& spec = info.layers[i];
    nlohmann::ordered_json layer = {{"window", spec.life.window},
                                    {"chunk", spec.life.chunk},
                                    {"sink_tokens", spec.life.sink_tokens}};
    if (info.kind != Kind::kTexts) layer["first_position"] = info.first_positions[i];
    if (info.kind == Kind::kLayers) {
      layer["batch"] = info.batches[i];
      layer["length"] = info.lengths[i];
    }
    layer["buffers"] = nlohmann::json::array();
    for (const BufferSpec& buffer : spec.used()) {
      layer["buffers"].push_back({{"heads", buffer.heads},
                                  {"dim", buffer.dim},
                                  {"form", name_of(buffer.format.kind)},
                                  {"dtype", name_of(buffer.format.dtype)},
                                  {"rotate", buffer.format.rotate}});
    }
    out["layers"].push_back(std::move(layer));
  }
  out["sums"] = nlohmann::json::array();
  for (const std::uint64_t sum : info.sums) out["sums"].push_back(fmt::format("{:016x}", sum));
  return out;
}

// --- Words. ---

void print_layers(const CacheFileInfo& info) {
  for (std::size_t i = 0; i < info.layers.size();) {
    std::size_t end = i + 1;
    const auto first = [&](std::size_t layer) {
      return info.kind == Kind::kTexts ? 0 : info.first_positions[layer];
    };
    const auto is_same = [&](std::size_t layer) {
      return info.layers[layer] == info.layers[i] && first(layer) == first(i) &&
             (info.kind != Kind::kLayers ||
              (info.batches[layer] == info.batches[i] && info.lengths[layer] == info.lengths[i]));
    };
    while (end < info.layers.size() && is_same(end)) ++end;
    const LayerSpec& spec = info.layers[i];
    std::string line =
        end == i + 1 ? fmt::format("layer {}", i) : fmt::format("layers {} .. {}", i, end - 1);
    const char* before = ": ";
    for (const BufferSpec& buffer : spec.used()) {
      line += fmt::format("{}{} {}", before, word_of(buffer.role), words_of(buffer));
      before = ", ";
    }
    if (info.kind != Kind::kLayers) {
      line += "; " + words_of(spec.life);
    } else if (spec.num_buffers == 0) {
      line += ": never populated";
    } else {
      line += fmt::format("; a batch of {}, {} tokens", info.batches[i],
                          with_thousands(info.lengths[i]));
    }
    if (first(i) > 0) line += fmt::format(", from position {} on", first(i));
    print("{}\n", line);
    i = end;
  }
}

void print_words(const CacheFileInfo& info) {
  if (info.kind == Kind::kTexts) {
    const Trees trees = trees_of(info);
    std::int64_t texts = 0, tokens = 0;
    for (std::size_t i = 0; i < info.pages.size(); ++i) {
      if (info.pages[i].parent < 0) texts += trees.texts[i];
      tokens += info.pages[i].count;
    }
    print("texts of a prefix cache, version {}: {} texts, {} tokens in {} pages of {}, {}\n",
          info.version, texts, with_thousands(tokens), info.pages.size(), info.page_size,
          human_bytes(info.file_bytes));
    for (const PrefixNamespace& space : info.spaces) {
      print("namespace {}, tenant {}\n", hex(space), space.tenant);
    }
  } else if (info.kind == Kind::kLayers) {
    print("a layered cache, version {}: {} layers, {} in {} blocks of {} tokens\n", info.version,
          info.layers.size(), human_bytes(info.file_bytes), info.sums.size(), info.block_tokens);
    print("namespace {}, tenant {}\n", hex(info.space), info.space.tenant);
  } else {
    print("a sequence, version {}: {} tokens, {} of them with ids, {} in {} blocks of {}\n",
          info.version, with_thousands(info.length), with_thousands(std::ssize(info.tokens)),
          human_bytes(info.file_bytes), info.sums.size(), info.block_tokens);
    print("namespace {}, tenant {}\n", hex(info.space), info.space.tenant);
    if (info.coded < info.length) {
      print("coded layers: the newest {} tokens are plain\n", info.length - info.coded);
    }
  }
  print_layers(info);
}

// --- The picture: what is there, block by block, and who shares it. ---

constexpr int kCell = 12;
// A picture is for looking at: so many boxes of a kind in it, and the title says how many are left
// out.
constexpr std::int64_t kMostRows = 256, kMostColumns = 1024, kMostPages = 4096;

std::string left_out(std::int64_t count, const char* what) {
  return count > 0 ? fmt::format(", {} more {} left out", with_thousands(count), what) : "";
}

constexpr const char* kColours[] = {"#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756"};

std::string box(std::int64_t x, std::int64_t y, std::int64_t width, const char* colour,
                double opacity, const std::string& title) {
  return fmt::format(
      "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\" fill-opacity=\"{:.2f}\" "
      "stroke=\"#333\" stroke-width=\"0.5\"><title>{}</title></rect>\n",
      x, y, width, kCell, colour, opacity, title);
}

std::string picture(std::int64_t width, std::int64_t height, const std::string& title,
                    const std::string& body) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" "
      "font-family=\"sans-serif\" font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"white\"/>\n<text x=\"8\" y=\"16\">{}</text>\n{}</svg>\n",
      std::max<std::int64_t>(width, 24 + 6 * std::ssize(title)), height, title, body);
}

// Layers from top to bottom, blocks from left to right, as dark as they have rows.
std::string draw_sequence(const CacheFileInfo& info) {
  std::string body;
  const bool is_layered = info.kind == Kind::kLayers;
  const std::int64_t all_blocks = std::ssize(info.sums), all_layers = std::ssize(info.layers);
  const std::int64_t blocks = std::min(all_blocks, kMostColumns);
  const std::int64_t layers = std::min(all_layers, kMostRows);
  for (std::size_t layer = 0; layer < static_cast<std::size_t>(layers); ++layer) {
    const std::int64_t y = 28 + static_cast<std::int64_t>(layer) * (kCell + 2);
    body += fmt::format("<text x=\"8\" y=\"{}\">layer {}</text>\n", y + 10, layer);
    const std::int64_t length = is_layered ? info.lengths[layer] : info.length;
    const std::int64_t first = is_layered ? 0 : info.first_positions[layer];
    const std::int64_t sinks = std::min<std::int64_t>(info.layers[layer].life.sink_tokens, first);
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t begin = b * info.block_tokens;
      const std::int64_t end = std::min(begin + info.block_tokens, length);
      if (end <= begin) break;
      const std::int64_t rows = std::max<std::int64_t>(0, std::min(end, sinks) - begin) +
                                std::max<std::int64_t>(0, end - std::max(begin, first));
      body += box(64 + b * (kCell + 2), y, kCell, kColours[0],
                  static_cast<double>(rows) / static_cast<double>(info.block_tokens),
                  fmt::format("layer {}, tokens {} .. {}: {} rows", layer, begin, end - 1, rows));
    }
  }
  return picture(
      80 + blocks * (kCell + 2), 36 + layers * (kCell + 2),
      fmt::format("{} tokens, blocks of {}{}{}", info.length, info.block_tokens,
                  left_out(all_blocks - blocks, "blocks"), left_out(all_layers - layers, "layers")),
      body);
}

// A row a text, from its first page that no text above has; pages as dark as texts share them, in
// the colour of their namespace. What was used last is drawn, as far as there is room.
std::string draw_texts(const CacheFileInfo& info) {
  const Trees trees = trees_of(info);
  std::string body;
  std::vector<std::int64_t> rows(info.pages.size()), columns(info.pages.size());
  std::vector<bool> goes_on(info.pages.size());
  std::int64_t next_row = 0, widest = 0, drawn = 0;
  for (std::size_t i = 0; i < info.pages.size(); ++i) {
    const CacheFilePage& page = info.pages[i];
    const auto parent = static_cast<std::size_t>(page.parent);
    columns[i] = page.parent < 0 ? 0 : columns[parent] + 1;
    const bool same_row = page.parent >= 0 && !goes_on[parent];
    rows[i] = same_row ? rows[parent] : next_row++;
    if (page.parent >= 0) goes_on[parent] = true;
    if (drawn == kMostPages || rows[i] >= kMostRows || columns[i] >= kMostColumns) continue;
    ++drawn;
    widest = std::max(widest, columns[i]);
    const std::int64_t x = 8 + columns[i] * (kCell + 2), y = 28 + rows[i] * (kCell + 6);
    if (page.parent >= 0 && !same_row) {
      body += fmt::format("<path d=\"M{} {} V{} H{}\" fill=\"none\" stroke=\"#999\"/>\n", x - 8,
                          28 + rows[parent] * (kCell + 6) + kCell, y + kCell / 2, x);
    }
    const double shared = std::min(1.0, 0.3 + 0.2 * static_cast<double>(trees.texts[i] - 1));
    body += box(x, y, std::max<std::int64_t>(3, kCell * page.count / info.page_size),
                kColours[page.space % std::ssize(kColours)], shared,
                fmt::format("page {}: {} tokens up to {}, in {} texts, namespace {}", i, page.count,
                            trees.ends[i], trees.texts[i], page.space));
  }
  return picture(40 + (widest + 1) * (kCell + 2), 40 + std::min(next_row, kMostRows) * (kCell + 6),
                 fmt::format("{} pages of {}{}", info.pages.size(), info.page_size,
                             left_out(std::ssize(info.pages) - drawn, "pages")),
                 body);
}

Status run(const Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const CacheFile file, CacheFile::open(flags.file));
  const CacheFileInfo& info = file.info();
  const Status sums = file.verify();
  if (flags.json) {
    auto out = json_of(info);
    out["sums_match"] = sums.ok();
    print("{}\n", out.dump());
  } else {
    print_words(info);
    if (sums.ok()) print("sums: all {} match\n", info.sums.size());
  }
  if (!flags.svg.empty()) {
    std::ofstream out(flags.svg, std::ios::binary);
    out << (info.kind == Kind::kTexts ? draw_texts(info) : draw_sequence(info));
    out.close();
    if (!out) return Status(StatusCode::kIo, flags.svg + ": cannot be written");
  }
  if (sums.ok()) return {};
  return Status(sums.code(), flags.file + ": " + sums.message());
}

}  // namespace

void add_inspect(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "inspect", "What a file of a cache has: header, layers, tokens; compares its sums");
  command->add_option("FILE", flags->file, "Of generate --save-cache, CacheFile or PrefixCache")
      ->required();
  command
      ->add_option("--svg", flags->svg,
                   "Draw it: the rows of each layer by blocks, or pages and the texts that share "
                   "them")
      ->type_name("FILE");
  command->add_flag("--json", flags->json, "Print one JSON object instead");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
