#include "runner/generate/model_space.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "kvcache/version.h"

namespace kvcache::runner {

Result<PrefixNamespace> space_of(const LoadedModel& loaded, std::string_view how) {
  const std::filesystem::path directory(loaded.directory);
  std::vector<std::filesystem::path> weights;
  std::error_code failure;
  for (std::filesystem::directory_iterator at(directory, failure), end; !failure && at != end;
       at.increment(failure)) {
    if (at->path().extension() == ".safetensors") weights.push_back(at->path());
  }
  if (failure) return Status(StatusCode::kIo, loaded.directory + ": " + failure.message());
  std::sort(weights.begin(), weights.end());
  std::vector<std::string> parts = {version(), name_of(loaded.model.weight_type()),
                                    std::string(how)};
  const auto add = [&](const std::filesystem::path& path) -> Status {
    KVC_ASSIGN_OR_RETURN(std::string digest, digest_of_file(path.string()));
    parts.push_back(path.filename().string());
    parts.push_back(std::move(digest));
    return {};
  };
  for (const char* name : {"config.json", "tokenizer.json"}) {
    KVC_RETURN_IF_ERROR(add(directory / name));
  }
  for (const auto& path : weights) KVC_RETURN_IF_ERROR(add(path));
  const std::vector<std::string_view> views(parts.begin(), parts.end());
  return namespace_of(views);
}

}  // namespace kvcache::runner
