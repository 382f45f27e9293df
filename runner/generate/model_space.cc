#include "runner/generate/model_space.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kvcache/version.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kSample = 256 * 1024;  // bytes

// Up to `size` bytes of a file from `begin` on.
Result<std::string> read(const std::filesystem::path& path, std::int64_t begin, std::int64_t size) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes(static_cast<std::size_t>(size), '\0');
  file.seekg(begin);
  file.read(bytes.data(), size);
  if (!file.is_open() || file.bad()) {
    return Status(StatusCode::kIo, path.string() + ": cannot be read");
  }
  bytes.resize(static_cast<std::size_t>(file.gcount()));
  return bytes;
}

Status add_weights(const std::filesystem::path& path, std::vector<std::string>& parts) {
  std::error_code failure;
  const auto size = static_cast<std::int64_t>(std::filesystem::file_size(path, failure));
  if (failure) return Status(StatusCode::kIo, path.string() + ": " + failure.message());
  parts.push_back(path.filename().string());
  parts.push_back(std::to_string(size));
  for (const std::int64_t begin : {std::int64_t{0}, size / 2, size - kSample}) {
    KVC_ASSIGN_OR_RETURN(std::string bytes, read(path, std::max<std::int64_t>(0, begin), kSample));
    parts.push_back(std::move(bytes));
  }
  return {};
}

}  // namespace

Result<PrefixNamespace> space_of(const LoadedModel& loaded, std::string_view how) {
  const std::filesystem::path directory(loaded.directory);
  std::vector<std::string> parts = {version(), name_of(loaded.model.weight_type()),
                                    std::string(how)};
  std::vector<std::filesystem::path> weights;
  std::error_code failure;
  for (const auto& entry : std::filesystem::directory_iterator(directory, failure)) {
    if (entry.path().extension() == ".safetensors") weights.push_back(entry.path());
  }
  if (failure) return Status(StatusCode::kIo, loaded.directory + ": " + failure.message());
  std::sort(weights.begin(), weights.end());
  for (const char* name : {"config.json", "tokenizer.json"}) {
    KVC_ASSIGN_OR_RETURN(std::string text, read(directory / name, 0, std::int64_t{1} << 24));
    parts.push_back(std::move(text));
  }
  for (const auto& path : weights) KVC_RETURN_IF_ERROR(add_weights(path, parts));
  const std::vector<std::string_view> views(parts.begin(), parts.end());
  return namespace_of(views);
}

}  // namespace kvcache::runner
