#include "runner/config/likely_cause.h"

#include <algorithm>
#include <cctype>
#include <exception>
#include <filesystem>
#include <optional>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "runner/config/json_file.h"

namespace kvcache::runner {
namespace {

namespace fs = std::filesystem;

constexpr int kDeepest = 3;         // a hub cache keeps models--x/snapshots/<commit>/
constexpr int kMostEntries = 1000;  // looked at

bool begins_with_word(std::string_view text, std::string_view word) {
  return text.size() >= word.size() &&
         std::equal(word.begin(), word.end(), text.begin(), [](char a, char b) {
           return a == static_cast<char>(std::tolower(static_cast<unsigned char>(b)));
         });
}

// The shallowest directory below `directory` that holds `wanted`.
std::optional<fs::path> find_below(const fs::path& directory, std::string_view wanted) {
  std::vector<fs::path> level = {directory};
  int seen = 0;
  for (int depth = 0; depth < kDeepest; ++depth) {
    std::vector<fs::path> below;
    for (const fs::path& parent : level) {
      std::error_code ignored;
      for (fs::directory_iterator entry(parent, ignored), end; entry != end && seen < kMostEntries;
           entry.increment(ignored)) {
        ++seen;
        if (ignored || !entry->is_directory(ignored)) continue;
        if (fs::exists(entry->path() / wanted, ignored)) return entry->path();
        below.push_back(entry->path());
      }
    }
    level = std::move(below);
  }
  return std::nullopt;
}

// A file of `directory` that other programs read, and what it is.
std::string other_format(const fs::path& directory, std::string_view wanted) {
  using Format = std::pair<const char*, const char*>;
  static constexpr Format kWeights[] = {
      {".gguf", "a GGUF file, which llama.cpp reads"},
      {".pth", "a PyTorch checkpoint, which transformers converts to safetensors"},
      {".bin", "a PyTorch checkpoint, which transformers' save_pretrained writes as safetensors"},
      {".pt", "a PyTorch checkpoint, which transformers converts to safetensors"},
      {".safetensors", "weights of another name"},
      {".h5", "a TensorFlow checkpoint"},
      {".msgpack", "a Flax checkpoint"},
      {".onnx", "an ONNX model"}};
  static constexpr Format kTokenizers[] = {
      {"tokenizer.model",
       "a SentencePiece or tiktoken model, which transformers' save_pretrained "
       "writes as tokenizer.json"},
      {"vocab.json", "a vocabulary, which transformers' save_pretrained writes as tokenizer.json"}};
  std::vector<std::string> names;
  std::error_code ignored;
  for (fs::directory_iterator entry(directory, ignored), end; entry != end;
       entry.increment(ignored)) {
    if (ignored || static_cast<int>(names.size()) == kMostEntries) break;
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  const auto find = [&](std::span<const Format> known) -> std::string {
    for (const auto& [end, what] : known) {
      for (const std::string& name : names) {
        if (name.ends_with(end)) return name + ", " + what;
      }
    }
    return {};
  };
  if (wanted == "tokenizer.json") return find(kTokenizers);
  // A config.json is missed beside GGUF files and the first Llamas alone.
  return find(wanted == "config.json" ? std::span(kWeights).first(2) : std::span(kWeights));
}

}  // namespace

std::string kind_of_content(std::string_view bytes) {
  if (bytes.starts_with("version https://git-lfs.github.com/")) {
    return "a git-LFS pointer (git lfs pull fetches the file)";
  }
  if (bytes.starts_with("GGUF")) return "a GGUF file, which llama.cpp reads";
  if (bytes.starts_with("PK\x03\x04") || bytes.starts_with("\x80\x02") ||
      bytes.starts_with("\x80\x04")) {
    return "a zip file or a PyTorch checkpoint";
  }
  if (bytes.starts_with("\x1f\x8b")) return "a gzip file";
  const std::size_t text = bytes.find_first_not_of(" \t\r\n");
  const std::string_view start = text == std::string_view::npos ? "" : bytes.substr(text);
  for (const char* word : {"<!doctype html", "<html", "<head", "<body"}) {
    if (begins_with_word(start, word)) return "an HTML page, as a failed download leaves it";
  }
  if (start.starts_with("<?xml")) return "an XML page, as a failed download leaves it";
  return {};
}

std::string kind_of_directory(const std::string& directory, std::string_view wanted) noexcept try {
  std::error_code ignored;
  const fs::path path(directory);
  if (!fs::exists(path, ignored)) return "no such directory";
  if (!fs::is_directory(path, ignored)) {
    const auto text = read_text_file(directory, std::int64_t{1} << 20);
    const std::string kind = text.ok() ? kind_of_content(*text) : std::string();
    if (!kind.empty()) return kind;
    return directory.ends_with(".gguf") ? "a GGUF file, which llama.cpp reads" : "a file";
  }
  if (const std::string other = other_format(path, wanted); !other.empty()) return other;
  if (fs::exists(path / "config.json", ignored)) return {};
  const auto below = find_below(path, wanted);
  return below ? "a model in " + below->string() : std::string();
} catch (const std::exception&) {
  return {};
}

}  // namespace kvcache::runner
