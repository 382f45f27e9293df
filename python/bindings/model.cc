#include "python/bindings/model.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/model_config.h"
#include "python/bindings/paths.h"
#include "python/bindings/signatures.h"
#include "python/bindings/text_stream.h"
#include "python/bindings/tokenizer.h"
#include "python/bindings/turn.h"
#include "runner/generate/model_space.h"
#include "runner/model/history.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

// What signatures say.
constexpr char kPath[] = "kvcache.typing.Path";
constexpr char kPathOrNone[] = "kvcache.typing.Path | None";
constexpr char kTexts[] = "kvcache.typing.Texts";
constexpr char kTokens[] = "kvcache.typing.Tokens";
constexpr char kPrompt[] = "kvcache.typing.Tokens | kvcache.typing.Prompts";
constexpr char kGenerated[] = "kvcache.typing.Generated";
constexpr char kPrefixBytes[] = "bool | int | str";
constexpr char kPrefixStats[] = "kvcache.typing.ModelPrefixStats | None";
constexpr char kKvDtype[] = "kvcache.typing.KvDType";
using GivenKvDtype = Given<kKvDtype>;

struct PyModel {
  std::shared_ptr<const Loaded> loaded;
  runner::KvDtype kv_dtype;              // of calls that name none
  bool reproducible = false;             // AttentionOptions, of every call
  std::shared_ptr<PrefixDoor> prefixes;  // null: none
  std::string prefix_file;               // empty: none
};

// --- What comes in. ---

std::vector<std::int32_t> tokens_from(const char* name, nb::handle object, const Loaded& loaded) {
  if (!PyUnicode_Check(object.ptr())) return int32_values(name, object);
  const std::string text = text_from(name, object);
  std::optional<Result<std::vector<std::int32_t>>> tokens;
  {
    const Unlocked unlocked(static_cast<std::int64_t>(text.size()) * 16);
    tokens.emplace(loaded.files.tokenizer.encode(text));
  }
  return take(std::move(*tokens));
}

bool is_list(nb::handle object) {
  return PyList_Check(object.ptr()) || PyTuple_Check(object.ptr());
}

// Whether `object` is a list of prompts, not a prompt that is a list of tokens.
bool is_several(nb::handle object) {
  if (!is_list(object)) return false;
  if (nb::len(object) == 0) {
    raise(PyExc_ValueError, "prompt: found an empty list, expected text, tokens or a list of them");
  }
  const nb::object first = object[0];
  if (PyUnicode_Check(first.ptr()) || is_list(first)) return true;
  // Numbers of NumPy have axes too: none.
  return nb::hasattr(first, "ndim") && nb::cast<int>(first.attr("ndim")) > 0;
}

Prompts prompts_from(nb::handle object, const Loaded& loaded) {
  Prompts prompts;
  for (nb::handle prompt : object) {
    const std::string name = "prompt[" + std::to_string(prompts.size()) + "]";
    prompts.push_back(tokens_from(name.c_str(), prompt, loaded));
  }
  return prompts;
}

std::vector<std::string> stop_from(nb::handle object) {
  constexpr const char* kExpected = "str or a list of them";
  std::vector<std::string> stop;
  if (object.is_none()) return stop;
  if (!is_list(object)) return {text_from("stop", object, kExpected)};
  for (nb::handle text : object) stop.push_back(text_from("stop", text, kExpected));
  return stop;
}

runner::SamplerOptions sampler_from(double temperature, std::int64_t top_k, double top_p,
                                    double min_p, double repetition_penalty, std::int64_t seed) {
  if (seed < 0) {
    raise(PyExc_ValueError, "seed: found " + std::to_string(seed) + ", expected at least 0");
  }
  runner::SamplerOptions sampler;
  sampler.temperature = temperature;
  sampler.top_k = top_k;
  sampler.top_p = top_p;
  sampler.min_p = min_p;
  sampler.repetition_penalty = repetition_penalty;
  sampler.seed = static_cast<std::uint64_t>(seed);
  return sampler;
}

// A `kv_dtype` argument: a dtype of any library, or the words of --kv-dtype.
runner::KvDtype kv_dtype_from(nb::handle object) {
  if (!PyUnicode_Check(object.ptr())) return dtype_from(object, "kv_dtype");
  const std::string words = text_from("kv_dtype", object);
  if (words.starts_with("torch.")) return dtype_from(object, "kv_dtype");
  return take(runner::KvDtype::parse(words));
}

// Where rows are kept: the arguments that generate(), session() and logits() share.
StreamOptions storage_from(const PyModel& self, const std::optional<std::string>& cache,
                           nb::handle kv_dtype, nb::handle layout, std::int64_t page_size,
                           std::int64_t prefill_chunk, std::shared_ptr<LimitedMemory> memory) {
  StreamOptions options;
  options.core.kv_dtype = kv_dtype.is_none() ? self.kv_dtype : kv_dtype_from(kv_dtype);
  options.core.cache = take(runner::parse_history_kind(
      cache.value_or(options.core.kv_dtype.needs_pages() ? "paged" : "dynamic")));
  options.core.layout = layout_from(layout);
  options.core.page_size = page_size;
  options.core.prefill_chunk = prefill_chunk;
  options.core.attention.reproducible = self.reproducible;
  options.core.context = self.loaded->context();
  options.memory = std::move(memory);
  options.core.memory = options.memory.get();
  return options;
}

// Why a call to generate() goes past the model's prefix cache; null: it does not.
const char* past_prefixes(const PyModel& self, const std::optional<std::string>& cache,
                          bool several, const StreamOptions& options) {
  const runner::Model& model = self.loaded->files.model;
  if (!several && cache.has_value() && *cache != "paged") return "cache";
  if (options.memory != nullptr) return "memory";
  if (options.core.layout != Layout::kHND) return "layout";
  if (options.core.page_size != self.prefixes->store()->page_size()) return "page_size";
  const auto rows = options.core.kv_dtype.layers(model.config(), model.default_kv_dtype());
  const auto kept = self.kv_dtype.layers(model.config(), model.default_kv_dtype());
  if (!rows.ok() || !kept.ok() || *rows != *kept) return "kv_dtype";
  return nullptr;
}

// --- Sessions: logits of tokens that follow one another. ---

class Session {
 public:
  Session(std::shared_ptr<const Loaded> loaded, StreamOptions options, std::int64_t max_length)
      : loaded_(std::move(loaded)), options_(std::move(options)) {
    const std::int64_t context = model().config().max_position_embeddings;
    if (max_length < 1 || max_length > context) {
      raise(PyExc_ValueError, "max_length: found " + std::to_string(max_length) +
                                  ", expected 1 .. " + std::to_string(context) +
                                  " (the model's context)");
    }
    check(runner::check_options(options_.core));
    options_.core.max_tokens = 1;
    history_ = take(runner::open_history(model(), max_length, options_.core));
  }

  Float32Array forward(const std::vector<std::int32_t>& tokens, bool last_only) {
    check(runner::check_prompt(model().config(), tokens));
    const auto total = static_cast<std::int64_t>(tokens.size());
    const std::int64_t vocab = model().config().vocab_size;
    const std::int64_t shape[2] = {last_only ? 1 : total, vocab};
    nb::object array =
        new_array(Framework::kNumpy, DType::kF32, last_only ? shape + 1 : shape, last_only ? 1 : 2);
    const Array out("logits", array);
    auto* rows = static_cast<float*>(out.writable("logits").data);
    const std::int64_t chunk = options_.core.prefill_chunk;
    for (std::int64_t done = 0; done < total;) {
      // Without a cache a step takes everything at once.
      const std::int64_t left = total - done;
      const std::int64_t count =
          chunk > 0 && history_->keeps_history() ? std::min(chunk, left) : left;
      check(step(std::span(tokens).subspan(static_cast<std::size_t>(done),
                                           static_cast<std::size_t>(count)),
                 last_only, rows));
      if (!last_only) rows += count * vocab;
      done += count;
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }
    return array;
  }

  std::vector<std::int32_t> tokens_of(nb::handle tokens) const {
    return tokens_from("tokens", tokens, *loaded_);
  }

  std::int64_t length() {
    const Turn turn(mutex_);
    return history_->length();
  }

  runner::KvUsage usage() {
    const Turn turn(mutex_);
    return history_->usage();
  }

  std::string repr() {
    return std::string("Session(cache='") + name_of(options_.core.cache) +
           "', length=" + std::to_string(length()) + ", nbytes=" + std::to_string(usage().nbytes) +
           ")";
  }

 private:
  const runner::Model& model() const { return loaded_->files.model; }

  Status step(std::span<const std::int32_t> tokens, bool last_only, float* rows) {
    const Turn turn(mutex_);
    const Released others;
    const auto kind = last_only ? runner::LogitRows::kLast : runner::LogitRows::kAll;
    KVC_RETURN_IF_ERROR(model().forward(tokens, *history_, state_, logits_, kind,
                                        options_.core.attention, options_.core.context));
    std::copy(logits_.begin(), logits_.end(), rows);
    return {};
  }

  std::shared_ptr<const Loaded> loaded_;
  StreamOptions options_;
  std::recursive_mutex mutex_;  // of all below
  std::unique_ptr<runner::History> history_;
  runner::ForwardState state_;
  std::vector<float> logits_;
};

// --- Model. ---

// What an earlier process knew. A file that is not there yet is none; one that has nothing for this
// model is no reason not to run it.
void warm(runner::PrefixStore& store, const std::string& file) {
  Status status;
  {
    const Released others;
    status = store.load(file).status();
  }
  if (status.ok() || status.code() == StatusCode::kNotFound) return;
  const std::string said = "prefix_cache_file: begins empty: " + status.message();
  if (PyErr_WarnEx(PyExc_UserWarning, said.c_str(), 1) != 0) throw nb::python_error();
}

std::int64_t save_prefixes(const PyModel& self, Given<kPathOrNone> path) {
  const std::string file = path.is_none() ? self.prefix_file : path_from(path);
  if (self.prefixes == nullptr || file.empty()) {
    raise(PyExc_ValueError, file.empty() ? "path: found none, expected one, or a prefix_cache_file"
                                         : "prefix_cache: found none, expected a model with one");
  }
  Result<std::int64_t> pages = std::int64_t{0};
  {
    const Released others;
    pages = self.prefixes->store()->save(file);
  }
  check_file(pages.status(), file);
  return *pages;
}

std::int64_t set_prefix_priority(const PyModel& self, Given<kTokens> text, std::int64_t priority,
                                 std::int64_t tenant) {
  if (self.prefixes == nullptr) {
    raise(PyExc_ValueError, "prefix_cache: found none, expected a model with one");
  }
  const std::vector<std::int32_t> ids = tokens_from("text", text, *self.loaded);
  Result<std::int64_t> tokens = std::int64_t{0};
  {
    const Released others;
    tokens = self.prefixes->store()->set_priority(ids, priority, tenant);
  }
  return take(std::move(tokens));
}

void load(PyModel* self, Given<kPath> path, const std::string& weights,
          std::optional<std::int32_t> threads, Given<kPrefixBytes> prefix_cache,
          const std::string& prefix_policy, Given<kPathOrNone> prefix_cache_file,
          GivenKvDtype kv_dtype, std::int64_t residual_tokens, bool reproducible) {
  const std::string directory = path_from(path);
  const std::string file = prefix_cache_file.is_none() ? "" : path_from(prefix_cache_file);
  const bool with_file = !file.empty() && prefix_cache.is_none();
  const auto prefix_bytes = nb::cast<std::optional<std::int64_t>>(
      nb::module_::import_("kvcache._bytes")
          .attr("prefix_bytes")(with_file ? nb::object(nb::bool_(true))
                                          : nb::borrow(prefix_cache)));
  if (!file.empty() && !prefix_bytes.has_value()) {
    raise(PyExc_ValueError, "prefix_cache_file: found one, expected none without a prefix_cache");
  }
  const Result<Eviction> eviction = eviction_named(prefix_policy);
  if (!eviction.ok()) {
    raise(PyExc_ValueError, "prefix_policy" + eviction.status().message().substr(8));  // eviction
  }
  runner::KvDtype rows = kv_dtype_from(kv_dtype);
  rows.keep_plain(residual_tokens);
  const runner::WeightMode mode = take(runner::parse_weight_mode(weights));
  std::unique_ptr<Executor> pool;
  if (threads.has_value()) pool = take(make_thread_pool(*threads));
  std::optional<Result<runner::LoadedModel>> files;
  {
    const Released others;
    files.emplace(runner::LoadedModel::load(directory, mode));
  }
  // A file, so not the KeyError that kNotFound is elsewhere.
  if (files->status().code() == StatusCode::kNotFound) {
    raise(PyExc_FileNotFoundError, files->status().message());
  }
  auto loaded = std::make_shared<Loaded>(
      Loaded{take(std::move(*files)), std::move(pool), threads.value_or(0)});
  for (const std::string& note : loaded->files.notes) {
    if (PyErr_WarnEx(PyExc_UserWarning, note.c_str(), 1) != 0) throw nb::python_error();
  }
  const runner::Model& model = loaded->files.model;
  (void)take(rows.layers(model.config(), model.default_kv_dtype()));
  std::shared_ptr<PrefixDoor> prefixes;
  if (prefix_bytes.has_value()) {
    runner::HistoryOptions kept;
    kept.rows = rows;
    kept.dtype = model.default_kv_dtype();
    runner::PrefixStoreOptions store;
    store.budget_bytes = *prefix_bytes;
    store.eviction = *eviction;
    if (!file.empty()) store.space = take(runner::space_of(loaded->files));
    prefixes = std::make_shared<PrefixDoor>(
        take(runner::PrefixStore::create(model.config(), kept, store)));
    if (!file.empty()) warm(*prefixes->store(), file);
  }
  new (self) PyModel{std::move(loaded), rows, reproducible, std::move(prefixes), file};
}

Made<kGenerated> generate(const PyModel& self, Given<kPrompt> prompt, std::int64_t max_tokens,
                          bool stream, const std::optional<std::string>& cache, double temperature,
                          std::int64_t top_k, double top_p, double min_p, double repetition_penalty,
                          std::int64_t seed, Given<kTexts> stop, bool stop_at_eos,
                          GivenKvDtype kv_dtype, GivenLayout layout, std::int64_t page_size,
                          std::int64_t prefill_chunk, std::int64_t max_active,
                          std::shared_ptr<LimitedMemory> memory, std::int64_t tenant) {
  const bool several = is_several(prompt);
  StreamOptions options = storage_from(self, several ? cache.value_or("batching") : cache, kv_dtype,
                                       layout, page_size, prefill_chunk, std::move(memory));
  if (several && options.core.cache != runner::HistoryKind::kBatching) {
    raise(PyExc_ValueError, "cache: found " + *cache +
                                " for a list of prompts, expected batching (or one prompt a call)");
  }
  options.core.max_tokens = max_tokens;
  options.core.sampler = sampler_from(temperature, top_k, top_p, min_p, repetition_penalty, seed);
  options.core.stop = stop_from(stop);
  options.core.stop_at_eos = stop_at_eos;
  options.core.tenant = tenant;
  if (self.prefixes != nullptr) {
    if (const char* reason = past_prefixes(self, cache, several, options); reason != nullptr) {
      self.prefixes->pass(reason);
    } else {
      options.core.prefixes = self.prefixes->store();
    }
  }
  std::unique_ptr<TextStream> text;
  if (several) {
    text = std::make_unique<TextStream>(self.loaded, std::move(options),
                                        prompts_from(prompt, *self.loaded), max_active, stream);
  } else {
    text = std::make_unique<TextStream>(self.loaded, std::move(options),
                                        tokens_from("prompt", prompt, *self.loaded), stream);
  }
  if (stream) return nb::cast(std::move(text));
  text->finish();
  return text->result();
}

std::unique_ptr<Session> session(const PyModel& self, std::optional<std::int64_t> max_length,
                                 const std::optional<std::string>& cache, GivenKvDtype kv_dtype,
                                 GivenLayout layout, std::int64_t page_size,
                                 std::int64_t prefill_chunk,
                                 std::shared_ptr<LimitedMemory> memory) {
  if (self.prefixes != nullptr) self.prefixes->pass("session");
  return std::make_unique<Session>(
      self.loaded,
      storage_from(self, cache, kv_dtype, layout, page_size, prefill_chunk, std::move(memory)),
      max_length.value_or(self.loaded->files.model.config().max_position_embeddings));
}

Float32Array logits(const PyModel& self, Given<kTokens> tokens,
                    const std::optional<std::string>& cache, GivenKvDtype kv_dtype,
                    GivenLayout layout, std::int64_t page_size, std::int64_t prefill_chunk,
                    std::shared_ptr<LimitedMemory> memory) {
  const std::vector<std::int32_t> ids = tokens_from("tokens", tokens, *self.loaded);
  check(runner::check_prompt(self.loaded->files.model.config(), ids));
  return session(self, static_cast<std::int64_t>(ids.size()), cache, kv_dtype, layout, page_size,
                 prefill_chunk, std::move(memory))
      ->forward(ids, false);
}

std::string repr(const PyModel& self) {
  const runner::Model& model = self.loaded->files.model;
  const runner::ModelConfig& config = model.config();
  const nb::str path(self.loaded->files.directory.c_str());
  return std::string("Model(path=") + nb::repr(path).c_str() + ", family='" +
         name_of(config.family) + "', parameters=" + std::to_string(model.num_parameters()) +
         ", layers=" + std::to_string(config.num_layers) + ", weights='" +
         name_of(model.weight_type()) + "', threads=" +
         (self.loaded->threads == 0 ? "None" : std::to_string(self.loaded->threads)) + ")";
}

void bind_session(nb::module_& module) {
  nb::class_<Session>(module, "Session",
                      "Tokens that follow one another through a model and one cache: the way to "
                      "choose tokens oneself. Made by\nModel.session(). Threads take turns.")
      .def(
          "forward",
          [](Session& self, Given<kTokens> tokens, bool last_only) {
            return self.forward(self.tokens_of(tokens), last_only);
          },
          "tokens"_a.none(), nb::kw_only(), "last_only"_a = false,
          "Stores tokens (ids, or a text) after those before and gives their logits: a new float32 "
          "array\n[num_tokens, vocab_size], or [vocab_size] of the last token. Without a cache "
          "(\"none\") every call must bring all\ntokens from the first.\n\nErrors: ValueError for "
          "no tokens and ids outside the vocabulary; IndexError past the context or max_length;\n"
          "MemoryError. Nothing is stored by a call that fails, except the whole chunks before "
          "with prefill_chunk.")
      .def_prop_ro("length", &Session::length, "Tokens stored.")
      .def_prop_ro("usage", &Session::usage, "What the cache holds: a KvUsage.")
      .def("__repr__", &Session::repr);
}

}  // namespace

void bind_model(nb::module_& module) {
  bind_tokenizer(module);
  bind_model_config(module);
  bind_text_stream(module);
  bind_session(module);
  nb::class_<PyModel>(
      module, "Model",
      "A language model from a directory as Hugging Face writes it: Llama 2 / 3, Qwen2 / 2.5, "
      "Qwen3.\n\n    model = kvcache.Model(\"models/storyteller\")\n    "
      "print(model.generate(\"Once upon a time\", max_tokens=60))\n    for piece in "
      "model.generate(\"Once upon a time\", stream=True):\n        print(piece, end=\"\")\n\n"
      "Immutable once loaded: any number of threads may use one model at the same time, each call "
      "with a cache of\nits own, or in the pages of its prefix cache, where they take turns at "
      "storing rows and not at computing.\nThe GIL is let go of while it computes.")
      .def("__init__", &load, "path"_a.none(), nb::kw_only(), "weights"_a = "auto",
           "threads"_a = nb::none(), "prefix_cache"_a = nb::none(), "prefix_policy"_a = "lru",
           "prefix_cache_file"_a = nb::none(), "kv_dtype"_a = nb::none(), "residual_tokens"_a = 0,
           "reproducible"_a = false,
           "Loads config.json, generation_config.json, model.safetensors (or its shards) and "
           "tokenizer.json.\n\nweights: \"stored\" keeps their precision, \"f32\" widens them, "
           "\"int8\" quantises them, \"auto\" widens below 100 M parameters.\nthreads: 1 .. 1024 "
           "of its own; None: the pool "
           "that the package shares (KVCACHE_NUM_THREADS, else one a core).\nprefix_cache: keeps "
           "the rows of texts across calls of generate(), so that a prompt that begins as one "
           "before\ncomputes only what is new: the bytes that all of it may take (an int, or "
           "\"512MiB\"), True for 1 GiB. A call of\nanother cache, kv_dtype, layout, page_size "
           "or memory goes past it, as do session() and logits(), and one that\nhas no room in "
           "it beside others.\nprefix_policy: which of it gives way first: \"lru\", \"s3fifo\", "
           "\"arc\" or \"adaptive\".\nprefix_cache_file: what save_prefixes() wrote there is known "
           "from "
           "the start, as far as it is of the same model,\ntokenizer, weights and version; a "
           "UserWarning says why where nothing of it is.\nkv_dtype: of the rows of calls that name "
           "none. residual_tokens: the newest ones whose rows stay plain there, where they are "
           "coded.\nreproducible: attention adds in one order, however many tokens come at a "
           "time: rows in 16 bits or\ncodes magnify what orders differ by, and what is found in a "
           "cache then moves no bit. Prompts take longer where\nthe processor multiplies "
           "bf16.\n\nErrors: "
           "FileNotFoundError, OSError; ValueError for what is malformed; NotImplementedError for "
           "another\narchitecture; MemoryError. Each names file, field, found and expected. Where "
           "files "
           "disagree a UserWarning says\nwhat was taken.")
      .def("generate", &generate, "prompt"_a.none(), "max_tokens"_a = 128, nb::kw_only(),
           "stream"_a = false, "cache"_a = nb::none(), "temperature"_a = 0.0, "top_k"_a = 0,
           "top_p"_a = 1.0, "min_p"_a = 0.0, "repetition_penalty"_a = 1.0, "seed"_a = 0,
           "stop"_a = nb::none(), "stop_at_eos"_a = true, "kv_dtype"_a = nb::none(),
           "layout"_a = "hnd", "page_size"_a = 16, "prefill_chunk"_a = 0, "max_active"_a = 8,
           "memory"_a.none() = nb::none(), "tenant"_a = 0,
           "Continues a text: a GenerateResult, or with stream=True a TextStream, the iterator of "
           "its pieces.\n\nprompt: str, or token ids (a list or an array of integers). A list of "
           "prompts runs in one batch, at most\nmax_active of them at a time, and gives a list, "
           "or a stream of (index, piece); each has the tokens of its run\nalone, and one that "
           "fails ends alone (`error`). Prompts that begin alike compute what they share "
           "once.\nmax_tokens: new "
           "tokens at the most. stop: one text or several; the text ends before the first of "
           "them.\ncache: \"none\", \"dynamic\" (default), \"static\", \"paged\" (pages of "
           "page_size tokens; default where only they\nhold the rows), \"functional\"; "
           "\"batching\" for a list of prompts. kv_dtype: of the stored rows, by default that of "
           "the\nweights; a dtype, or words as of --kv-dtype: \"int8\", \"k=int8,v=lm4\", "
           "\"int8:0-3,lm4\". layout: \"hnd\" or \"nhd\".\n"
           "prefill_chunk: prompt tokens a step takes, 0 for all at once. memory: a LimitedMemory "
           "for the rows. tenant: whose text it is in the prefix cache, where texts of different "
           "ones never meet.\ntemperature: 0 takes the likeliest token. top_k (0: all), top_p (1: "
           "all), min_p (0: all), repetition_penalty\n(1: off) and seed are applied as "
           "transformers does, in that order after the penalty and the temperature.\n\nErrors: "
           "TypeError, ValueError for arguments; IndexError for a prompt longer than the model's "
           "context; MemoryError.\nA KeyboardInterrupt is seen between steps.")
      .def("session", &session, nb::kw_only(), "max_length"_a = nb::none(), "cache"_a = nb::none(),
           "kv_dtype"_a = nb::none(), "layout"_a = "hnd", "page_size"_a = 16, "prefill_chunk"_a = 0,
           "memory"_a.none() = nb::none(),
           "An empty Session, for at most max_length tokens where the cache has a bound (default: "
           "the model's context).\nThe other arguments are those of generate().\n\nErrors: "
           "ValueError, MemoryError.")
      .def("logits", &logits, "tokens"_a.none(), nb::kw_only(), "cache"_a = nb::none(),
           "kv_dtype"_a = nb::none(), "layout"_a = "hnd", "page_size"_a = 16, "prefill_chunk"_a = 0,
           "memory"_a.none() = nb::none(),
           "Logits of tokens (ids, or a text): a new float32 array [num_tokens, vocab_size], row i "
           "of what follows tokens\n0 .. i; natural log, up to a constant. The other arguments are "
           "those of generate().\n\nErrors: ValueError, IndexError past the model's context, "
           "MemoryError.")
      .def("save_prefixes", &save_prefixes, "path"_a = nb::none(),
           "Writes what the prefix cache knows to a file (default: prefix_cache_file), what was "
           "used last first. Returns\nhow many pages. The file is the old one or the new one at "
           "every moment.\n\nErrors: OSError; ValueError without a prefix cache or a file.")
      .def("set_prefix_priority", &set_prefix_priority, "text"_a.none(), "priority"_a,
           nb::kw_only(), "tenant"_a = 0,
           "What is known of a text (or token ids) gives way in the order of priorities, 0 .. 100, "
           "lower ones first; 50 is\nusual, and leaves by the policy. Returns how many of its "
           "tokens are known, which\ncounts as a use of them.\n\nErrors: TypeError, ValueError, "
           "also "
           "without a prefix cache.")
      .def(
          "prefix_stats",
          [](const PyModel& self) -> Made<kPrefixStats> {
            if (self.prefixes == nullptr) return nb::none();
            return self.prefixes->stats();
          },
          "Counters of the prefix cache, as PrefixCache.stats() has them, with reserved_bytes, "
          "budget_bytes, and calls that\npassed it by reason; None without one.")
      .def_prop_ro("tokenizer", [](const PyModel& self) { return PyTokenizer{self.loaded}; })
      .def_prop_ro("config", [](const PyModel& self) { return self.loaded->files.model.config(); })
      .def_prop_ro(
          "path", [](const PyModel& self) { return self.loaded->files.directory; },
          "The directory it was loaded from.")
      .def_prop_ro("num_parameters",
                   [](const PyModel& self) { return self.loaded->files.model.num_parameters(); })
      .def_prop_ro(
          "weight_bytes",
          [](const PyModel& self) { return self.loaded->files.model.weight_bytes(); },
          "Bytes of the weights as held.")
      .def("__repr__", &repr);
}

}  // namespace kvcache::python
