// The weights of a model directory: one safetensors file, or shards and their index.
#ifndef KVCACHE_RUNNER_SAFETENSORS_CHECKPOINT_H_
#define KVCACHE_RUNNER_SAFETENSORS_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "runner/safetensors/safetensors_file.h"

namespace kvcache::runner {

// Keeps its files mapped; opening reads their headers only. Thread safety: const after open().
class Checkpoint {
 public:
  // `directory`/model.safetensors, or else every file that
  // `directory`/model.safetensors.index.json names. Shards lie in the directory itself: a name with
  // a separator or ".." is refused. A tensor that its shard does not hold is missed by find().
  // Errors: kNotFound, kIo, kCorrupt, kOutOfMemory, naming the file.
  static Result<Checkpoint> open(const std::string& directory);

  // Valid until the checkpoint is destroyed; moving it keeps views.
  // Errors: kNotFound; kUnsupported: a dtype other than F32, F16, BF16, or more than kMaxRank axes.
  Result<TensorView> find(std::string_view name) const;

  bool contains(std::string_view name) const { return shard_of_.find(name) != shard_of_.end(); }

  // In ascending order.
  std::vector<std::string> names() const;

  // Elements of all tensors, of every dtype.
  std::int64_t num_parameters() const { return num_parameters_; }

  const std::string& directory() const { return directory_; }
  std::int64_t num_files() const { return static_cast<std::int64_t>(files_.size()); }

 private:
  Checkpoint() = default;

  Status add_tensor(const std::string& name, std::size_t shard);
  Status open_index(const std::string& index);

  std::string directory_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t, std::less<>> shard_of_;
  std::int64_t num_parameters_ = 0;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_SAFETENSORS_CHECKPOINT_H_
