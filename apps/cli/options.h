// Flags that several commands take, and the words they are spelled with.
#ifndef KVCACHE_APPS_CLI_OPTIONS_H_
#define KVCACHE_APPS_CLI_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kvcache/kvcache.h"
#include "runner/generate/loaded_model.h"
#include "runner/model/model.h"

namespace kvcache::cli {

// --model, --weights, --activations, --threads.
struct ModelFlags {
  std::string model;  // a directory or a name; empty: the model that ships
  std::string weights = "auto";
  std::string activations = "int16";
  std::optional<int> threads;

  void add_model(CLI::App& app);    // --model and what add_weights adds
  void add_weights(CLI::App& app);  // --weights and --activations
  void add_threads(CLI::App& app);
};

// --prompt TEXT or -f FILE.
struct PromptFlags {
  std::string text;
  std::string file;

  void add(CLI::App& app);
  // The prompt (of a file without its last line end), or `otherwise` when neither was given.
  // Errors: kInvalidArgument without one, or with both; those of read_input.
  Result<std::string> read(const std::optional<std::string>& otherwise = {}) const;
};

// --layout, --kv-dtype, --page-size.
struct StorageFlags {
  std::string layout = "hnd";
  std::string kv_dtype;  // empty: the model's
  std::int64_t page_size = 16;

  void add(CLI::App& app);
  Layout parsed_layout() const { return layout == "nhd" ? Layout::kNHD : Layout::kHND; }
  std::optional<DType> parsed_dtype() const;
};

// The directory meant by --model: a path that exists, or else the name of a model that ships
// ("storyteller") or that `./dev model` has fetched ("smollm2"). What is neither is taken for a
// path. Errors: kNotFound where a known name is not there.
Result<std::string> model_directory(const ModelFlags& flags);
Result<runner::Model> load_model(const ModelFlags& flags);
Result<runner::LoadedModel> load(const ModelFlags& flags);

// A pool of --threads threads, or the default one.
class Threads {
 public:
  static Result<Threads> create(const std::optional<int>& count);
  ExecContext context() const;

 private:
  std::unique_ptr<Executor> pool_;
};

}  // namespace kvcache::cli

#endif  // KVCACHE_APPS_CLI_OPTIONS_H_
