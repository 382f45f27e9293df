#include "apps/cli/options.h"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "apps/cli/console.h"

namespace kvcache::cli {
namespace {

// Models that do not ship, and are fetched by name.
constexpr std::string_view kFetchedModels[] = {"smollm2"};

// Bytes of a unit, in letters of either case; 0 for what is none.
std::int64_t scale_of(std::string_view unit) {
  std::string word(unit);
  for (char& c : word) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  if (word.empty() || word == "B") return 1;
  std::int64_t thousands = 1;
  std::int64_t binary = 1;
  for (const char prefix : {'K', 'M', 'G', 'T'}) {
    thousands *= 1000;
    binary *= 1024;
    const std::string letter(1, prefix);
    if (word == letter + "B") return thousands;
    if (word == letter + "IB" || word == letter) return binary;
  }
  return 0;
}

}  // namespace

Result<std::int64_t> parse_bytes(const std::string& name, std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  std::string_view rest = text;
  const auto skip_space = [&] {
    rest.remove_prefix(std::min(rest.size(), rest.find_first_not_of(kSpace)));
  };
  const auto take_digits = [&] {
    const auto digits = rest.substr(0, rest.find_first_not_of("0123456789"));
    rest.remove_prefix(digits.size());
    return digits;
  };
  skip_space();
  const std::string_view whole = take_digits();
  std::string_view part;  // behind the point
  bool is_number = !whole.empty();
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    part = take_digits();
    is_number = is_number && !part.empty();
  }
  skip_space();
  const std::string_view unit = rest.substr(0, rest.find_first_of(kSpace));
  rest.remove_prefix(unit.size());
  skip_space();
  const std::int64_t scale = rest.empty() ? scale_of(unit) : 0;
  std::int64_t number = 0;
  for (const char digit : whole) {
    number = number > kMost / 10 ? kMost + 1 : number * 10 + (digit - '0');
  }
  std::int64_t bytes =
      0;  // of the part: whole bytes of all digits from one on, the last ones first
  for (auto digit = part.rbegin(); digit != part.rend(); ++digit) {
    bytes = ((*digit - '0') * scale + bytes) / 10;
  }
  const bool fits = is_number && scale > 0 && number <= (kMost - bytes) / scale;
  if (fits) bytes += number * scale;
  if (!fits || bytes < 1) {
    return Status(StatusCode::kInvalidArgument,
                  name + ": found " + std::string(text) +
                      ", expected 1 byte .. 2^62, as 1073741824, 512MiB or 1.5GB");
  }
  return bytes;
}

void PrefixFlags::add(CLI::App& app) {
  given_ = app.add_option("--prefix-cache", bytes_,
                          "Keep what prompts computed, as much as takes BYTES, for others that "
                          "begin alike [1GiB]; by itself for several prompts")
               ->type_name("BYTES")
               ->expected(0, 1)
               ->check(CLI::Validator(
                   [](const std::string& text) -> std::string {
                     const auto bytes = parse_bytes("", text.empty() ? "1" : text);
                     return bytes.ok() ? "" : bytes.status().message().substr(2);  // the name ": "
                   },
                   ""));
  named_ = app.add_option("--prefix-policy", policy_,
                          "Which of what is kept gives way first where the room ends")
               ->check(CLI::IsMember({"lru", "s3fifo", "arc", "adaptive"}))
               ->capture_default_str();
  app.add_flag("--no-prefix-cache", refused_, "Compute every prompt whole");
}

Result<std::int64_t> PrefixFlags::bytes() const {
  if (wanted() && refused_) {
    return Status(StatusCode::kInvalidArgument,
                  "no-prefix-cache: found it beside --prefix-cache, expected one of them");
  }
  if (refused_) return 0;
  return bytes_.empty() ? runner::kPrefixBytes : parse_bytes("prefix-cache", bytes_);
}

void ModelFlags::add_model(CLI::App& app) {
  app.add_option("--model", model,
                 "Model directory as Hugging Face writes it, or the name of one that ships or was "
                 "fetched: storyteller, smollm2 (./dev model smollm2) [storyteller]")
      ->type_name("DIR");
  add_weights(app);
}

void ModelFlags::add_weights(CLI::App& app) {
  app.add_option(
         "--weights", weights,
         "Precision of the weights: auto widens to f32 below 100 M parameters and keeps the "
         "stored type above, int8 holds each row with a scale")
      ->check(CLI::IsMember({"auto", "f32", "stored", "int8"}))
      ->capture_default_str();
  app.add_option("--activations", activations,
                 "What int8 weights are multiplied with: int8, 32 inputs sharing a scale, makes "
                 "prompts faster and costs about 8e-3 of a product")
      ->check(CLI::IsMember({"int16", "int8"}))
      ->capture_default_str();
}

void ModelFlags::add_threads(CLI::App& app) {
  add_number(app, "--threads", threads, "Threads [KVCACHE_NUM_THREADS, else one a core]")
      ->type_name("N")
      ->check(CLI::Range(1, 1024));
}

void PromptFlags::add(CLI::App& app) {
  auto* prompt = app.add_option("--prompt", text, "The text to continue")->type_name("TEXT");
  app.add_option("-f,--file", file, "Read the prompt from a file (- for stdin)")
      ->type_name("FILE")
      ->excludes(prompt);
}

Result<std::string> PromptFlags::read(const std::optional<std::string>& otherwise) const {
  if (!file.empty()) {
    KVC_ASSIGN_OR_RETURN(std::string read, read_input(file));
    // The line end that editors and echo put behind the last line is no part of the prompt.
    if (read.ends_with('\n')) read.pop_back();
    if (read.ends_with('\r')) read.pop_back();
    return read;
  }
  if (!text.empty()) return text;
  if (otherwise.has_value()) return *otherwise;
  return Status(StatusCode::kInvalidArgument,
                "prompt: found none, expected --prompt TEXT or -f FILE");
}

void StorageFlags::add(CLI::App& app) {
  app.add_option("--layout", layout, "Axes of the stored rows: head first or sequence first")
      ->check(CLI::IsMember({"hnd", "nhd"}))
      ->capture_default_str();
  RowFlags::add(app, "[that of the weights; of int8 ones that of auto]");
  add_number(app, "--page-size", page_size, "Tokens a page of the paged cache holds")
      ->type_name("P")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
}

void RowFlags::add(CLI::App& app, const std::string& otherwise) {
  app.add_option(
         "--kv-dtype", kv_dtype,
         "How rows are stored: f32, f16, bf16, or in codes int8, fp8_e4m3, int4, lm4, q8_0, "
         "q4_0, with -rotated or -unrotated behind; keys and values apart (k=int8,v=lm4), "
         "layers apart (int8:0-3,lm4), or @FILE of such items, one a line " +
             otherwise)
      ->type_name("FORMS");
  add_residual_tokens(app, residual_tokens);
}

void add_residual_tokens(CLI::App& app, std::int64_t& tokens) {
  add_number(app, "--residual-tokens", tokens,
             "Newest tokens whose rows stay plain where they are stored in codes")
      ->type_name("R")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
}

Result<runner::KvDtype> RowFlags::parsed_dtype() const {
  runner::KvDtype rows;
  if (!kv_dtype.empty()) {
    KVC_ASSIGN_OR_RETURN(rows, runner::KvDtype::parse(kv_dtype));
  }
  rows.keep_plain(residual_tokens);
  return rows;
}

Result<std::string> model_directory(const ModelFlags& flags) {
  if (flags.model.empty()) {
    auto shipped = shared_file("models/storyteller");
    if (shipped.ok()) return shipped;
    return Status(StatusCode::kNotFound, "model: found none beside this program (" +
                                             shipped.status().message() +
                                             "), expected --model DIR");
  }
  std::error_code error;
  if (std::filesystem::exists(flags.model, error) || flags.model.find('/') != std::string::npos) {
    return flags.model;
  }
  for (const char* folder : {"models/", "fetched/"}) {
    auto found = shared_file(folder + flags.model);
    if (found.ok()) return found;
  }
  for (const std::string_view name : kFetchedModels) {
    if (flags.model != name) continue;
    return Status(StatusCode::kNotFound, "model: found no " + flags.model +
                                             " here yet, expected it fetched: ./dev model " +
                                             flags.model);
  }
  return flags.model;
}

namespace {

void say_notes(const std::vector<std::string>& notes) {
  for (const std::string& note : notes) say("kvcache: note: {}\n", note);
}

}  // namespace

Result<runner::Model> load_model(const ModelFlags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::string directory, model_directory(flags));
  KVC_ASSIGN_OR_RETURN(const runner::WeightMode mode, runner::parse_weight_mode(flags.weights));
  KVC_ASSIGN_OR_RETURN(const runner::Activations activations,
                       runner::parse_activations(flags.activations));
  KVC_ASSIGN_OR_RETURN(runner::Model model, runner::Model::load(directory, mode, activations));
  say_notes(model.config().notes);
  return model;
}

Result<runner::LoadedModel> load(const ModelFlags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::string directory, model_directory(flags));
  KVC_ASSIGN_OR_RETURN(const runner::WeightMode mode, runner::parse_weight_mode(flags.weights));
  KVC_ASSIGN_OR_RETURN(const runner::Activations activations,
                       runner::parse_activations(flags.activations));
  KVC_ASSIGN_OR_RETURN(runner::LoadedModel loaded,
                       runner::LoadedModel::load(directory, mode, activations));
  say_notes(loaded.notes);
  return loaded;
}

Result<Threads> Threads::create(const std::optional<int>& count) {
  Threads threads;
  if (count.has_value()) {
    KVC_ASSIGN_OR_RETURN(threads.pool_, make_thread_pool(*count));
  }
  return threads;
}

ExecContext Threads::context() const {
  ExecContext context;
  context.executor = pool_ != nullptr ? pool_.get() : &default_executor();
  return context;
}

}  // namespace kvcache::cli
