// Flags that several commands take, and the words they are spelled with.
#ifndef KVCACHE_APPS_CLI_OPTIONS_H_
#define KVCACHE_APPS_CLI_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "kvcache/kvcache.h"
#include "runner/generate/loaded_model.h"
#include "runner/model/kv_dtype.h"
#include "runner/model/model.h"
#include "runner/model/prefix_store.h"

namespace kvcache::cli {

// What an option of numbers is checked by: text that is one number in decimal, as T holds it. CLI11
// alone reads 010 as 8 and 0x10 as 16, and takes the nearest number for one that does not fit.
template <typename T>
CLI::Validator decimal() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        T value = 0;
        const char* end = text.data() + text.size();
        const auto parsed = std::from_chars(text.data(), end, value);
        if (parsed.ptr == end && parsed.ec == std::errc()) {
          if constexpr (std::is_integral_v<T>) {
            text = std::to_string(value);  // without zeros in front
            return {};
          } else if (std::isfinite(value)) {
            return {};
          }
        }
        if (parsed.ec == std::errc::result_out_of_range && parsed.ptr == end) {
          return "found " + text + ", expected a number that " + std::to_string(8 * sizeof(T)) +
                 " bits hold";
        }
        std::string expected = "a number";
        if constexpr (std::is_integral_v<T>) expected = "a whole number";
        if constexpr (std::is_unsigned_v<T>) expected += " of at least 0";
        return "found " + text + ", expected " + expected;
      },
      "");
}

template <typename T>
struct NumberOf {
  using type = T;
};
template <typename T>
struct NumberOf<std::vector<T>> {
  using type = T;
};
template <typename T>
struct NumberOf<std::optional<T>> {
  using type = T;
};

// An option of a number, or of several.
template <typename T>
CLI::Option* add_number(CLI::App& app, const std::string& name, T& variable,
                        const std::string& description) {
  return app.add_option(name, variable, description)
      ->transform(decimal<typename NumberOf<T>::type>());
}

// What an amount of memory says, as kvcache._bytes reads it: digits, with or without a point among
// them, and KB, MB, GB, TB (by thousands) or KiB, MiB, GiB, TiB (or K, M, G, T) behind them; a part
// of a byte is left out. Errors: kInvalidArgument, naming `name`, for what is none or not 1 ..
// 2^62.
Result<std::int64_t> parse_bytes(const std::string& name, std::string_view text);

// --prefix-cache [BYTES], --no-prefix-cache, --prefix-policy.
struct PrefixFlags {
  void add(CLI::App& app);
  bool wanted() const { return given_->count() > 0; }
  bool names_policy() const { return named_->count() > 0; }
  // runner::kPrefixBytes where none are said; 0 with --no-prefix-cache. Errors: kInvalidArgument
  // for both.
  Result<std::int64_t> bytes() const;
  Result<Eviction> eviction() const { return eviction_named(policy_); }

 private:
  std::string bytes_;
  std::string policy_ = "lru";
  bool refused_ = false;
  CLI::Option* given_ = nullptr;
  CLI::Option* named_ = nullptr;
};

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

void add_residual_tokens(CLI::App& app, std::int64_t& tokens);

// --kv-dtype, --residual-tokens.
struct RowFlags {
  std::string kv_dtype;  // words of KvDtype; empty: the model's type
  std::int64_t residual_tokens = 0;

  // `otherwise` says in brackets what goes without them.
  void add(CLI::App& app, const std::string& otherwise);
  // Errors: those of KvDtype::parse.
  Result<runner::KvDtype> parsed_dtype() const;
};

// --layout, --kv-dtype, --residual-tokens, --page-size.
struct StorageFlags : RowFlags {
  std::string layout = "hnd";
  std::int64_t page_size = 16;

  void add(CLI::App& app);
  Layout parsed_layout() const { return layout == "nhd" ? Layout::kNHD : Layout::kHND; }
};

// The directory meant by --model: a path that exists, or else the name of a model that ships
// ("storyteller") or that `./dev model` has fetched ("smollm2"). What is neither is taken for a
// path. Errors: kNotFound where a known name is not there.
Result<std::string> model_directory(const ModelFlags& flags);
// Both say on stderr where the files of a model disagree.
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
