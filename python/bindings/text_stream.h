// Texts that grow while Python looks on: one generation, or a running batch of several.
#ifndef KVCACHE_PYTHON_BINDINGS_TEXT_STREAM_H_
#define KVCACHE_PYTHON_BINDINGS_TEXT_STREAM_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/memory.h"
#include "python/bindings/signatures.h"
#include "runner/engine/engine.h"
#include "runner/generate/generation.h"
#include "runner/generate/loaded_model.h"

namespace kvcache::python {

// A model and the threads it runs on, shared by all that was made from it. Immutable.
struct Loaded {
  runner::LoadedModel files;
  std::unique_ptr<Executor> pool;  // null: the default one
  std::int64_t threads = 0;        // of the pool; 0: the default one

  ExecContext context() const { return {pool.get(), nullptr}; }
};

// The prefix cache of a model, and why calls went past it.
class PrefixDoor {
 public:
  explicit PrefixDoor(std::shared_ptr<runner::PrefixStore> store) : store_(std::move(store)) {}

  const std::shared_ptr<runner::PrefixStore>& store() const { return store_; }
  void pass(const std::string& reason);
  nanobind::dict stats();

 private:
  std::shared_ptr<runner::PrefixStore> store_;
  std::mutex mutex_;
  std::map<std::string, std::int64_t> passed_;
};

// GenerateOptions, and what keeps their memory alive.
struct StreamOptions {
  runner::GenerateOptions core;
  std::shared_ptr<LimitedMemory> memory;
};

using Prompts = std::vector<std::vector<std::int32_t>>;

namespace said {
inline constexpr char kPiece[] = "kvcache.typing.PieceT";
inline constexpr char kResult[] = "kvcache.typing.ResultT | None";
}  // namespace said
using TextPiece = Made<said::kPiece>;
using TextResult = Made<said::kResult>;

class TextStream {
 public:
  // One prompt alone. Raises what Generation::create reports.
  TextStream(std::shared_ptr<const Loaded> loaded, StreamOptions options,
             const std::vector<std::int32_t>& prompt, bool keep_pieces);

  // Several in one engine; past options.core.prefixes where they have no room. Raises what
  // Engine::add reports, with the index of the prompt.
  TextStream(std::shared_ptr<const Loaded> loaded, StreamOptions options, const Prompts& prompts,
             std::int64_t max_active, bool keep_pieces);

  ~TextStream();
  TextStream(const TextStream&) = delete;
  TextStream& operator=(const TextStream&) = delete;

  // The next characters, without the GIL while they are computed: str, or (index, str) of several
  // prompts; StopIteration at the end. An error ends the stream; an interrupt does not.
  TextPiece next();

  // Runs to the end.
  void finish();

  // None before the end; then a GenerateResult, of several prompts a list of them.
  TextResult result();

  std::string repr();

 private:
  struct Piece {
    std::int64_t prompt;
    std::string text;
  };

  bool several() const { return prompts_ >= 0; }
  // Keeps what came, unless it failed, and gives rows and room back: a stream may be held for long.
  void close();
  // One step without the GIL, then signals. False if all is done, or was over before.
  bool advance();
  Status step();
  // Without the GIL, as all that may wait for the turn of others in a store.
  Status start(const Prompts& prompts, std::int64_t max_active);
  Result<runner::Engine> open_engine(const Prompts& prompts, std::int64_t max_active);

  std::shared_ptr<const Loaded> loaded_;
  StreamOptions options_;
  std::unique_ptr<runner::Generation> one_;
  std::optional<runner::Engine> engine_;
  std::int64_t prompts_ = -1;  // of several
  bool keep_pieces_;
  std::recursive_mutex mutex_;  // of all below, and of the two above once made
  std::deque<Piece> pieces_;
  std::vector<runner::GenerateResult> results_;  // once it is over
  bool over_ = false, failed_ = false;
};

// TextStream, GenerateResult, TokenTrace, KvUsage.
void bind_text_stream(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_TEXT_STREAM_H_
