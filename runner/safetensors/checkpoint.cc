#include "runner/safetensors/checkpoint.h"

#include <utility>

#include <nlohmann/json.hpp>

#include "runner/config/json_file.h"
#include "runner/config/likely_cause.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMaxIndexBytes = std::int64_t{128} << 20;

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const std::string& directory) {
  return without_exceptions(directory, [&]() -> Result<Checkpoint> {
    Checkpoint checkpoint;
    checkpoint.directory_ = directory;
    const std::string single = directory + "/model.safetensors";
    Result<SafetensorsFile> file = SafetensorsFile::open(single);
    if (file.ok()) {
      checkpoint.files_.push_back(std::move(file).value());
      for (const auto& [name, entry] : checkpoint.files_[0].tensors()) {
        KVC_RETURN_IF_ERROR(checkpoint.add_tensor(name, 0));
      }
      return checkpoint;
    }
    if (file.status().code() != StatusCode::kNotFound) return file.status();
    const std::string index = single + ".index.json";
    const Status status = checkpoint.open_index(index);
    if (status.code() == StatusCode::kNotFound && checkpoint.shard_of_.empty() &&
        status.message().starts_with(index)) {
      const std::string kind = kind_of_directory(directory, "model.safetensors");
      return found_expected(StatusCode::kNotFound, directory, kind.empty() ? "no weights" : kind,
                            "model.safetensors or model.safetensors.index.json");
    }
    if (!status.ok()) return status;
    return checkpoint;
  });
}

Status Checkpoint::open_index(const std::string& index) {
  KVC_ASSIGN_OR_RETURN(const Json document, load_json(index, kMaxIndexBytes));
  KVC_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::create(document, index));
  KVC_ASSIGN_OR_RETURN(const JsonObject weight_map, root.object("weight_map"));
  std::map<std::string, std::size_t> opened;
  for (const auto& [name, unused] : weight_map.node().items()) {
    KVC_ASSIGN_OR_RETURN(const std::string shard, weight_map.text(name));
    if (!is_plain_file_name(shard)) {
      return weight_map.error(StatusCode::kCorrupt, name, "the name of a file in the directory");
    }
    auto it = opened.find(shard);
    if (it == opened.end()) {
      Result<SafetensorsFile> file = SafetensorsFile::open(directory_ + "/" + shard);
      if (!file.ok()) {
        if (file.status().code() != StatusCode::kNotFound) return file.status();
        return found_expected(StatusCode::kNotFound, directory_ + "/" + shard, "no such file",
                              "the shard with tensor " + describe(std::string_view(name)) +
                                  " that model.safetensors.index.json names");
      }
      it = opened.emplace(shard, files_.size()).first;
      files_.push_back(std::move(file).value());
    }
    KVC_RETURN_IF_ERROR(add_tensor(name, it->second));
  }
  return Status();
}

Status Checkpoint::add_tensor(const std::string& name, std::size_t shard) {
  const SafetensorsFile& file = files_[shard];
  const auto it = file.tensors().find(name);
  if (it == file.tensors().end()) return Status();  // who needs it will miss it
  if (__builtin_add_overflow(num_parameters_, it->second.num_elements, &num_parameters_)) {
    return found_expected(StatusCode::kCorrupt, directory_, "more parameters than 63 bits count",
                          "fewer");
  }
  shard_of_.emplace(name, shard);
  return Status();
}

Result<TensorView> Checkpoint::find(std::string_view name) const {
  const auto it = shard_of_.find(name);
  if (it == shard_of_.end()) {
    return found_expected(StatusCode::kNotFound, directory_ + ": tensor " + describe(name),
                          "nothing", "a tensor of this name");
  }
  return files_[it->second].find(name);
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(shard_of_.size());
  for (const auto& [name, shard] : shard_of_) names.push_back(name);
  return names;
}

}  // namespace kvcache::runner
