#include "python/bindings/text_stream.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/prefix.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

using runner::GenerateResult;
using runner::KvUsage;
using runner::TokenTrace;

Float32Array vector_array(const std::vector<float>& values) {
  const auto count = static_cast<std::int64_t>(values.size());
  nb::object array = new_array(Framework::kNumpy, DType::kF32, &count, 1);
  const Array out("array", array);
  if (count > 0) {
    std::memcpy(out.writable("array").data, values.data(), values.size() * sizeof(float));
  }
  return array;
}

// As Python writes it, cut where it is long.
std::string quoted(const std::string& text) {
  constexpr nb::ssize_t kShown = 60;
  nb::object shown = nb::str(text.c_str(), text.size());
  if (PyUnicode_GetLength(shown.ptr()) > kShown) {
    shown = nb::steal(PyUnicode_Substring(shown.ptr(), 0, kShown)) + nb::str("...");
  }
  return nb::repr(shown).c_str();
}

void bind_usage(nb::module_& module) {
  nb::class_<KvUsage>(module, "KvUsage", "What a model's cache holds, over all layers.")
      .def_ro("nbytes", &KvUsage::nbytes, "Bytes of the rows stored.")
      .def_ro("reserved_bytes", &KvUsage::reserved_bytes, "Bytes held for them.")
      .def_ro("copied_bytes", &KvUsage::copied_bytes, "Bytes of old rows copied by growth.")
      .def_ro("pages", &KvUsage::pages, "Pages held; 0 without pages.")
      .def_ro("rows_copied", &KvUsage::rows_copied, "Rows of shared pages copied on write.")
      .def("__repr__", [](const KvUsage& self) {
        return "KvUsage(nbytes=" + std::to_string(self.nbytes) +
               ", reserved_bytes=" + std::to_string(self.reserved_bytes) +
               ", copied_bytes=" + std::to_string(self.copied_bytes) +
               ", pages=" + std::to_string(self.pages) + ")";
      });
}

void bind_trace(nb::module_& module) {
  nb::class_<TokenTrace>(module, "TokenTrace", "One new token: what its step cost, counted.")
      .def_ro("position", &TokenTrace::position, "In the whole text, from 0.")
      .def_ro("token", &TokenTrace::token)
      .def_ro("seconds", &TokenTrace::seconds,
              "Of the step that computed it; of the first token the whole prefill.")
      .def_ro("rows_computed", &TokenTrace::rows_computed, "K/V rows a layer computed in the step.")
      .def_ro("rows_read", &TokenTrace::rows_read, "K/V rows a layer's attention read in the step.")
      .def_ro("cache_length", &TokenTrace::cache_length, "Tokens stored after it.")
      .def_ro("usage", &TokenTrace::usage, "What the cache holds after it.")
      .def("__repr__", [](const TokenTrace& self) {
        return "TokenTrace(position=" + std::to_string(self.position) +
               ", token=" + std::to_string(self.token) +
               ", rows_computed=" + std::to_string(self.rows_computed) +
               ", rows_read=" + std::to_string(self.rows_read) + ")";
      });
}

void bind_result(nb::module_& module) {
  nb::class_<GenerateResult>(module, "GenerateResult",
                             "What followed a prompt. str() of it is its text.")
      .def_ro("text", &GenerateResult::text, "Of the new tokens, up to a stop text.")
      .def_ro("tokens", &GenerateResult::tokens, "The new ones, without an end-of-text token.")
      .def_prop_ro(
          "stop_reason", [](const GenerateResult& self) { return name_of(self.stop_reason); },
          "\"eos\", \"stop\" (a stop text), \"length\" (max_tokens) or \"context\" (the model's); "
          "in a "
          "batch also\n\"error\".")
      .def_prop_ro(
          "error",
          [](const GenerateResult& self) -> std::optional<std::string> {
            if (self.status.ok()) return std::nullopt;
            return self.status.to_string();
          },
          "Why a prompt of a batch failed, which ends alone; None for all others.")
      .def_ro("prompt_tokens", &GenerateResult::prompt_tokens, "Their number.")
      .def_ro("reused_tokens", &GenerateResult::reused_tokens,
              "Of the prompt: found in a prefix cache, not computed.")
      .def_ro("prefill_seconds", &GenerateResult::prefill_seconds)
      .def_ro("decode_seconds", &GenerateResult::decode_seconds,
              "Of the steps after the prefill; in a batch, of those it took part in.")
      .def_ro("decode_steps", &GenerateResult::decode_steps, "Their number.")
      .def_prop_ro(
          "rows_computed", [](const GenerateResult& self) { return self.counters.rows_computed; },
          "K/V rows a layer computed, over all steps; 0 in a batch, whose rows count together.")
      .def_prop_ro(
          "rows_read", [](const GenerateResult& self) { return self.counters.rows_read; },
          "K/V rows a layer's attention read, over all steps; 0 in a batch.")
      .def_ro("usage", &GenerateResult::usage, "What the cache held at the end.")
      .def_ro("trace", &GenerateResult::trace,
              "A TokenTrace for each token chosen; empty in a batch.")
      .def_prop_ro(
          "last_logits", [](const GenerateResult& self) { return vector_array(self.last_logits); },
          "Of the last step, float32 [vocab_size]; a new array each time.")
      .def("__str__", [](const GenerateResult& self) { return self.text; })
      .def("__repr__", [](const GenerateResult& self) {
        return "GenerateResult(text=" + quoted(self.text) +
               ", num_tokens=" + std::to_string(self.tokens.size()) + ", stop_reason='" +
               name_of(self.stop_reason) + "')";
      });
}

}  // namespace

void PrefixDoor::pass(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  ++passed_[reason];
}

nb::dict PrefixDoor::stats() {
  PrefixStats counters;
  std::int64_t reserved = 0, refused = 0;
  {
    const Released others;
    counters = store_->stats();
    reserved = store_->reserved_bytes();
    refused = store_->leases_refused();
  }
  nb::dict stats = prefix_stats(counters);
  stats["reserved_bytes"] = reserved;
  stats["budget_bytes"] = store_->budget_bytes();
  std::map<std::string, std::int64_t> counts;
  {
    const std::lock_guard lock(mutex_);
    counts = passed_;
  }
  if (refused > 0) counts["no room"] = refused;
  nb::dict passed;
  for (const auto& [reason, count] : counts) passed[reason.c_str()] = count;
  stats["passed"] = passed;
  return stats;
}

TextStream::TextStream(std::shared_ptr<const Loaded> loaded, StreamOptions options,
                       const std::vector<std::int32_t>& prompt, bool keep_pieces)
    : loaded_(std::move(loaded)), options_(std::move(options)), keep_pieces_(keep_pieces) {
  const runner::LoadedModel& files = loaded_->files;
  Status status;
  {
    const Released others;
    auto made = runner::Generation::create(files.model, files.tokenizer, prompt, options_.core);
    status = made.status();
    if (status.ok()) one_ = std::move(*made);
  }
  check(status);
}

TextStream::TextStream(std::shared_ptr<const Loaded> loaded, StreamOptions options,
                       const Prompts& prompts, std::int64_t max_active, bool keep_pieces)
    : loaded_(std::move(loaded)), options_(std::move(options)), keep_pieces_(keep_pieces) {
  Status status;
  {
    const Released others;
    status = start(prompts, max_active);
    if (!status.ok()) engine_.reset();
  }
  check(status);
  prompts_ = engine_->size();
}

TextStream::~TextStream() {
  if (one_ == nullptr && !engine_.has_value()) return;
  const Released others;
  one_.reset();
  engine_.reset();
}

Status TextStream::start(const Prompts& prompts, std::int64_t max_active) {
  KVC_ASSIGN_OR_RETURN(runner::Engine engine, open_engine(prompts, max_active));
  engine_.emplace(std::move(engine));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const Status status = engine_->add(prompts[i]).status();
    if (status.ok()) continue;
    return Status(status.code(), "[" + std::to_string(i) + "] " + status.message());
  }
  return {};
}

Result<runner::Engine> TextStream::open_engine(const Prompts& prompts, std::int64_t max_active) {
  const runner::LoadedModel& files = loaded_->files;
  runner::EngineOptions together;
  together.max_active = max_active;
  if (options_.core.prefixes != nullptr && max_active > 0) {
    // What may go forward together at the most is spoken for in the cache that is shared.
    const std::int64_t context = files.model.config().max_position_embeddings;
    const std::int64_t page_size = options_.core.prefixes->page_size();
    std::vector<std::int64_t> lengths;
    for (const auto& prompt : prompts) {
      const auto tokens = static_cast<std::int64_t>(prompt.size());
      const std::int64_t most = std::min(options_.core.max_tokens, context) + tokens;
      lengths.push_back((std::max<std::int64_t>(most, 1) + page_size - 1) / page_size * page_size);
    }
    std::sort(lengths.rbegin(), lengths.rend());
    const auto active = std::min(lengths.size(), static_cast<std::size_t>(max_active));
    together.max_active = std::max<std::int64_t>(1, static_cast<std::int64_t>(active));
    together.kv_tokens = std::accumulate(
        lengths.begin(), lengths.begin() + static_cast<std::ptrdiff_t>(active), std::int64_t{0});
    auto engine = runner::Engine::create(files.model, files.tokenizer, options_.core, together);
    if (engine.status().code() != StatusCode::kRetryLater) return engine;
    options_.core.prefixes = nullptr;
    together.kv_tokens = 0;
  }
  return runner::Engine::create(files.model, files.tokenizer, options_.core, together);
}

Status TextStream::step() {
  const auto keep = [this](std::int64_t prompt, std::string_view text) {
    pieces_.push_back({prompt, std::string(text)});
  };
  if (several()) {
    runner::EngineCallbacks callbacks;
    if (keep_pieces_) callbacks.on_text = keep;
    return engine_->step(callbacks);
  }
  runner::GenerateCallbacks callbacks;
  if (keep_pieces_) callbacks.on_text = [&](std::string_view text) { keep(0, text); };
  return one_->step(callbacks);
}

void TextStream::close() {
  over_ = true;
  const bool failed = std::exchange(failed_, true);  // as it is if results find no memory
  if (!failed && !several()) results_.push_back(std::move(*one_).take_result());
  for (std::int64_t i = 0; !failed && i < prompts_; ++i) results_.push_back(engine_->result(i));
  failed_ = failed;
  one_.reset();
  engine_.reset();
}

bool TextStream::advance() {
  Status status;
  {
    const Turn turn(mutex_);
    if (over_) return false;
    const Released others;
    status = step();
    failed_ = !status.ok();
    if (failed_ || (several() ? engine_->done() : one_->done())) close();
  }
  check(status);
  // Between tokens, so that an interrupted stream can go on.
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
  return true;
}

TextPiece TextStream::next() {
  do {
    std::optional<Piece> piece;
    {
      const Turn turn(mutex_);
      if (!pieces_.empty()) {
        piece = std::move(pieces_.front());
        pieces_.pop_front();
      }
    }
    if (piece.has_value()) {
      nb::str text(piece->text.c_str(), piece->text.size());
      return several() ? nb::object(nb::make_tuple(piece->prompt, text)) : nb::object(text);
    }
  } while (advance());
  throw nb::stop_iteration();
}

void TextStream::finish() {
  while (advance()) {
  }
}

TextResult TextStream::result() {
  std::vector<GenerateResult> results;
  {
    const Turn turn(mutex_);
    if (failed_ || !over_) return nb::none();
    results = results_;
  }
  if (!several()) return nb::cast(std::move(results.front()));
  nb::list all;
  for (GenerateResult& result : results) all.append(nb::cast(std::move(result)));
  return all;
}

std::string TextStream::repr() {
  const Turn turn(mutex_);
  const std::int64_t prompts = several() ? prompts_ : 1;
  return "TextStream(prompts=" + std::to_string(prompts) + ", state=" +
         (failed_ ? "'failed'"
          : over_ ? "'done'"
                  : "'open'") +
         ")";
}

void bind_text_stream(nb::module_& module) {
  bind_usage(module);
  bind_trace(module);
  bind_result(module);
  nb::class_<TextStream>(
      module, "TextStream",
      nb::sig("class TextStream(typing.Generic[kvcache.typing.PieceT, kvcache.typing.ResultT])"),
      "Texts as they grow: an iterator of str, or of (index, str) for a list of prompts; whole "
      "characters only.\n\nA step runs when the next piece is asked for, without the GIL; an "
      "interrupt (KeyboardInterrupt) is seen\nbetween steps and leaves the stream open, an error "
      "ends it. Threads take turns.")
      .def("__iter__", [](nb::object self) { return Self(std::move(self)); })
      .def("__next__", &TextStream::next, "Errors: what the model and the cache report.")
      .def_prop_ro("result", &TextStream::result,
                   "None before the end; then a GenerateResult, of a list of prompts a list of "
                   "them in their order.")
      .def("__repr__", &TextStream::repr);
}

}  // namespace kvcache::python
