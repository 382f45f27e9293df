#include "runner/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <new>
#include <set>
#include <string>
#include <utility>

namespace kvcache::runner {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Status out_of_memory() { return Status(StatusCode::kOutOfMemory, "out of memory"); }

Status out_of_bounds(const char* name, std::int64_t found, const std::string& expected) {
  return Status(StatusCode::kInvalidArgument,
                std::string(name) + ": found " + std::to_string(found) + ", expected " + expected);
}

// Tokens that a cache has slots for.
constexpr std::int64_t kMostSlots = std::numeric_limits<std::int32_t>::max();

// What a request may be refused for while others go on.
bool about_room(StatusCode code) {
  return code == StatusCode::kRetryLater || code == StatusCode::kNeverFits ||
         code == StatusCode::kOutOfMemory;
}

void show(Request& request, const std::string& text, const EngineCallbacks& callbacks) {
  if (text.empty()) return;
  request.result.text += text;
  if (callbacks.on_text) callbacks.on_text(request.number, text);
}

// Rows of all requests, none yet: over a prefix cache, or in pages that nobody finds.
Result<std::unique_ptr<PagedHistory>> open_rows(const ModelConfig& config,
                                                const HistoryOptions& rows, std::int64_t num_pages,
                                                const GenerateOptions& options,
                                                const EngineOptions& engine) {
  auto store = options.prefixes;
  // Nobody finds rows of which the newest are plain.
  if (store == nullptr && (engine.cached_bytes == 0 || rows.rows.residual_tokens() > 0)) {
    return PagedHistory::create_empty(config, rows, num_pages);
  }
  // A page that is found in part is held while it is copied, once for each request.
  std::int64_t pages = num_pages + engine.max_active;
  if (store == nullptr) {
    pages = std::max(num_pages, std::min(pages, kMostSlots / rows.page_size));
    PrefixStoreOptions kept;
    kept.num_pages = pages;
    kept.eviction = engine.eviction;
    KVC_ASSIGN_OR_RETURN(store, PrefixStore::create(config, rows, kept));
  }
  auto lease = store->lease(pages);
  if (!lease.has_value()) {
    return Status(StatusCode::kRetryLater, "prefixes: found less room than " +
                                               std::to_string(pages) + " pages, expected as much");
  }
  return PagedHistory::create_in(std::move(*lease), options.tenant);
}

Status broken(const std::string& what) { return Status(StatusCode::kInternal, "engine: " + what); }

}  // namespace

Engine::Engine(const Model& model, const Tokenizer& tokenizer, const GenerateOptions& options,
               const EngineOptions& engine, std::unique_ptr<PagedHistory> history,
               Admission admission)
    : model_(&model),
      tokenizer_(&tokenizer),
      options_(options),
      engine_(engine),
      history_(std::move(history)),
      admission_(admission) {}

Result<Engine> Engine::create(const Model& model, const Tokenizer& tokenizer,
                              const GenerateOptions& options, const EngineOptions& engine) try {
  KVC_RETURN_IF_ERROR(check_options(options));
  if (options.num_beams != 1) {
    return Status(StatusCode::kInvalidArgument, "num_beams: found " +
                                                    std::to_string(options.num_beams) +
                                                    " in a running batch, expected 1");
  }
  if (engine.max_active < 1 || engine.max_active > 65536) {
    return out_of_bounds("max_active", engine.max_active, "1 .. 65536");
  }
  if (engine.kv_tokens < 0 || engine.kv_tokens > kMostSlots) {
    return out_of_bounds("kv_tokens", engine.kv_tokens, "0 .. " + std::to_string(kMostSlots));
  }
  if (engine.prompt_tokens < 1) {
    return out_of_bounds("prompt_tokens", engine.prompt_tokens, "at least 1");
  }
  if (engine.cached_bytes < 0) {
    return out_of_bounds("cached_bytes", engine.cached_bytes, "at least 0");
  }
  const std::int64_t page_size =
      options.prefixes != nullptr ? options.prefixes->page_size() : options.page_size;
  if (page_size < 1) return out_of_bounds("page_size", page_size, "at least 1");
  const std::int64_t context = model.config().max_position_embeddings;
  constexpr std::int64_t kMostTokens = std::int64_t{1} << 20;
  const std::int64_t tokens =
      engine.kv_tokens > 0 ? engine.kv_tokens
                           : std::min(engine.max_active * context, std::max(context, kMostTokens));
  const Admission admission(page_size, (tokens - 1) / page_size + 1, engine.max_active);
  HistoryOptions rows;
  rows.rows = options.kv_dtype;
  rows.dtype = model.default_kv_dtype();
  rows.layout = options.layout;
  rows.page_size = options.page_size;
  rows.memory = options.memory;
  KVC_ASSIGN_OR_RETURN(auto history,
                       open_rows(model.config(), rows, admission.num_pages(), options, engine));
  return Engine(model, tokenizer, options, engine, std::move(history), admission);
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

Result<std::int64_t> Engine::add(std::span<const std::int32_t> prompt,
                                 std::optional<std::int64_t> max_tokens) try {
  KVC_RETURN_IF_ERROR(check_prompt(model_->config(), prompt));
  auto request = std::make_unique<Request>();
  request->number = size();
  request->options = options_;
  if (max_tokens.has_value()) request->options.max_tokens = *max_tokens;
  KVC_RETURN_IF_ERROR(check_options(request->options));
  request->prompt.assign(prompt.begin(), prompt.end());
  KVC_ASSIGN_OR_RETURN(request->continuation, Continuation::create(model_->config(), *tokenizer_,
                                                                   prompt, request->options));
  request->result.prompt_tokens = request->prompt_tokens();
  const std::int64_t pages = admission_.pages_of(most_stored(*request));
  if (pages > admission_.num_pages()) {
    return Status(StatusCode::kNeverFits,
                  "kv_tokens: found room for " + std::to_string(admission_.num_pages()) +
                      " pages, expected " + std::to_string(pages) + " for a text of up to " +
                      std::to_string(most_stored(*request)) + " tokens");
  }
  requests_.reserve(requests_.size() + 1);
  waiting_.push_back(request.get());
  requests_.push_back(std::move(request));
  return requests_.back()->number;
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

Status Engine::cancel(std::int64_t number, const EngineCallbacks& callbacks) {
  if (number < 0 || number >= size()) {
    return Status(StatusCode::kOutOfRange, "request: found " + std::to_string(number) +
                                               ", expected less than " + std::to_string(size()));
  }
  Request& request = *requests_[static_cast<std::size_t>(number)];
  if (request.state == Request::State::kEnded) {
    return Status(StatusCode::kNotFound, "request: found " + std::to_string(number) +
                                             ", which has ended, expected one that goes on");
  }
  if (stepping_ && request.state == Request::State::kActive) {
    request.leaving = request.leaving.value_or(StopReason::kCancelled);
  } else {
    end(request, StopReason::kCancelled, callbacks);
  }
  return {};
}

Status Engine::step(const EngineCallbacks& callbacks) try {
  struct Stepping {
    bool& flag;
    explicit Stepping(bool& it) : flag(it) { flag = true; }
    ~Stepping() { flag = false; }
  } stepping(stepping_);
  counts_.clear();
  sweep(callbacks);
  admit(callbacks);
  if (rows_.empty()) return {};
  look();
  std::vector<NextTokens> next;
  next.reserve(rows_.size());
  for (const Request* request : rows_) next.push_back(request->next());
  counts_ = plan_step(next, engine_.prompt_tokens);
  const auto start = Clock::now();
  forward(callbacks);
  take_tokens(seconds_since(start), callbacks);
  sweep(callbacks);
  trim();
  return {};
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

// In their order: who waits longest is next, whatever its length.
void Engine::admit(const EngineCallbacks& callbacks) {
  while (!waiting_.empty() && admission_.admits(most_stored(*waiting_.front()))) {
    Request& request = *waiting_.front();
    rows_.reserve(rows_.size() + 1);
    const Status status = history_->add();
    if (!status.ok()) {
      request.result.status = status;
      end(request, StopReason::kError, callbacks);
      continue;
    }
    waiting_.pop_front();
    rows_.push_back(&request);
    request.state = Request::State::kActive;
    admission_.join(most_stored(request));
  }
}

// Whether one that joined before it is about to compute a page that both begin with.
bool Engine::waits(std::size_t row) const {
  const std::vector<std::int32_t>& prompt = rows_[row]->prompt;
  const std::int64_t page_size = history_->cache().page_size();
  for (std::size_t i = 0; i < row; ++i) {
    const Request& other = *rows_[i];
    if (!other.prefilling()) continue;
    const auto end =
        std::mismatch(prompt.begin(), prompt.end() - 1, other.prompt.begin(), other.prompt.end());
    const std::int64_t common = end.first - prompt.begin();
    if (common / page_size * page_size > other.prefilled) return true;
  }
  return false;
}

void Engine::look() {
  for (std::size_t row = 0; row < rows_.size(); ++row) {
    Request& request = *rows_[row];
    if (request.looked) continue;
    if (history_->store() != nullptr) {
      if (waits(row)) continue;
      const auto found = history_->find(static_cast<std::int64_t>(row), request.prompt);
      request.prefilled = request.result.reused_tokens = found;
    }
    request.looked = true;
  }
}

void Engine::trim() {
  if (history_->store() != nullptr && options_.prefixes == nullptr) {
    history_->store()->trim(engine_.cached_bytes);
  }
}

void Engine::forward(const EngineCallbacks& callbacks) {
  while (std::any_of(counts_.begin(), counts_.end(), [](std::int64_t n) { return n > 0; })) {
    const Status status = run();
    if (status.ok()) return;
    blame(status);
    sweep(callbacks);
  }
}

void Engine::collect_ids(std::span<const std::int64_t> counts) {
  ids_.clear();
  for (std::size_t row = 0; row < rows_.size(); ++row) {
    const Request& request = *rows_[row];
    const std::span<const std::int32_t> text =
        request.prefilling() ? std::span<const std::int32_t>(request.prompt)
                                   .subspan(static_cast<std::size_t>(request.prefilled))
                             : request.continuation->text().last(1);
    ids_.insert(ids_.end(), text.begin(), text.begin() + counts[row]);
  }
}

Status Engine::run() {
  collect_ids(counts_);
  return model_->forward({ids_, counts_}, *history_, state_, logits_, LogitRows::kLast,
                         options_.attention, options_.context);
}

// Where the history has no room, it is asked for each request in turn, oldest first: who does not
// fit beside those before it leaves. Where it has, memory is missing elsewhere, and the newest
// leaves; anything else concerns all of them alike.
void Engine::blame(const Status& status) {
  std::vector<std::int64_t> fitting(counts_.size(), 0);
  bool found = false;
  const auto leave = [&](std::size_t row, const Status& why) {
    rows_[row]->result.status = why;
    rows_[row]->leaving = StopReason::kError;
    found = true;
  };
  std::size_t newest = 0;
  for (std::size_t row = 0; row < counts_.size(); ++row) {
    if (counts_[row] == 0) continue;
    newest = row;
    if (!about_room(status.code())) {
      leave(row, status);
      continue;
    }
    fitting[row] = counts_[row];
    collect_ids(fitting);
    const Status alone = history_->begin(fitting, ids_);
    if (alone.ok()) {
      history_->abandon();
    } else {
      fitting[row] = 0;
      leave(row, alone);
    }
  }
  if (!found) leave(newest, status);
}

void Engine::take_tokens(double seconds, const EngineCallbacks& callbacks) {
  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  std::size_t logits_row = 0;
  bool decoded = false;
  for (std::size_t row = 0; row < counts_.size(); ++row) {
    if (counts_[row] == 0) continue;
    Request& request = *rows_[row];
    const auto logits = std::span<const float>(logits_).subspan(logits_row++ * vocab, vocab);
    if (request.prefilling()) {
      request.result.prefill_seconds += seconds;
      request.prefilled += counts_[row];
      if (request.prefilling()) continue;
    } else {
      decoded = true;
      request.result.decode_seconds += seconds;
      ++request.result.decode_steps;
    }
    const Status status = take_token(request, logits, callbacks);
    if (status.ok()) continue;
    request.result.status = status;
    request.leaving = StopReason::kError;
  }
  if (logits_row == 0) return;
  ++steps_;
  seconds_ += seconds;
  if (!decoded) return;
  ++decode_steps_;
  decode_seconds_ += seconds;
}

Status Engine::take_token(Request& request, std::span<const float> logits,
                          const EngineCallbacks& callbacks) const try {
  Continuation& continuation = *request.continuation;
  KVC_ASSIGN_OR_RETURN(const std::int32_t token, continuation.sample(logits));
  show(request, continuation.push(token), callbacks);
  if (!continuation.ended().has_value()) return {};
  request.leaving = continuation.ended();
  request.result.last_logits.assign(logits.begin(), logits.end());
  return {};
} catch (const std::bad_alloc&) {
  return out_of_memory();
}

void Engine::sweep(const EngineCallbacks& callbacks) {
  for (std::size_t row = 0; row < rows_.size();) {
    Request& request = *rows_[row];
    if (!request.leaving.has_value()) {
      ++row;
      continue;
    }
    if (row < counts_.size()) counts_.erase(counts_.begin() + static_cast<std::ptrdiff_t>(row));
    end(request, *request.leaving, callbacks);
  }
}

void Engine::end(Request& request, StopReason reason, const EngineCallbacks& callbacks) {
  GenerateResult& result = request.result;
  if (request.state == Request::State::kActive) {
    const auto place = std::find(rows_.begin(), rows_.end(), &request);
    const std::int64_t row = place - rows_.begin();
    const std::int64_t stored = history_->length(row);
    const std::int64_t row_bytes = history_->row_bytes();
    result.usage.nbytes = stored * row_bytes;
    result.usage.pages = stored > 0 ? admission_.pages_of(stored) : 0;
    result.usage.reserved_bytes = result.usage.pages * history_->cache().page_size() * row_bytes;
    // Of a row that is there, and between steps: it cannot fail.
    [[maybe_unused]] const Status released = history_->release(row);
    rows_.erase(place);
    admission_.leave(most_stored(request));
  } else {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &request));
  }
  request.state = Request::State::kEnded;
  ++ended_;
  result.stop_reason = reason;
  try {
    show(request, request.continuation->flush(), callbacks);
    result.tokens = request.continuation->new_tokens();
  } catch (const std::bad_alloc&) {
    result.stop_reason = StopReason::kError;
    request.result.status = out_of_memory();
  }
  trim();
  if (callbacks.on_end) callbacks.on_end(request.number, result);
}

PrefixStats Engine::prefix_stats() const {
  return history_->store() == nullptr ? PrefixStats() : history_->store()->stats();
}

Status Engine::check_invariants() const {
  std::int64_t waiting = 0, active = 0, spoken_for = 0;
  for (const auto& request : requests_) {
    waiting += request->state == Request::State::kWaiting;
    active += request->state == Request::State::kActive;
  }
  if (waiting != static_cast<std::int64_t>(waiting_.size()) || active != this->active() ||
      waiting + active + ended_ != size()) {
    return broken("found " + std::to_string(waiting) + " waiting, " + std::to_string(active) +
                  " active and " + std::to_string(ended_) + " ended of " + std::to_string(size()));
  }
  if (history_->num_sequences() != active || admission_.active() != active) {
    return broken("found " + std::to_string(history_->num_sequences()) + " rows and room for " +
                  std::to_string(admission_.active()) + ", expected " + std::to_string(active));
  }
  for (std::int64_t row = 0; row < active; ++row) {
    const Request& request = *rows_[static_cast<std::size_t>(row)];
    const std::int64_t stored = request.stored();
    if (history_->length(row) != stored || stored > most_stored(request)) {
      return broken("found " + std::to_string(history_->length(row)) + " tokens of request " +
                    std::to_string(request.number) + ", expected " + std::to_string(stored) +
                    ", at most " + std::to_string(most_stored(request)));
    }
    spoken_for += admission_.pages_of(most_stored(request));
  }
  const PagedStats stats = history_->cache().stats();
  KVC_ASSIGN_OR_RETURN(const PageIndices table,
                       history_->cache().page_indices(0, history_->batch().sequences()));
  const auto pages = static_cast<std::int64_t>(
      std::set<std::int32_t>(table.kv_indices.begin(), table.kv_indices.end()).size());
  // Others may have rows in a store that was given.
  if (options_.prefixes == nullptr && (stats.sequences != active || stats.open_steps != 0 ||
                                       stats.pages_reserved != 0 || stats.pages_held != pages)) {
    return broken("found " + std::to_string(stats.pages_held) + " pages held, " +
                  std::to_string(stats.pages_reserved) + " reserved, expected " +
                  std::to_string(pages) + " and 0");
  }
  if (admission_.pages() != spoken_for || spoken_for > admission_.num_pages()) {
    return broken("found " + std::to_string(admission_.pages()) + " pages spoken for, expected " +
                  std::to_string(spoken_for) + " of " + std::to_string(admission_.num_pages()));
  }
  if (history_->store() != nullptr) return history_->store()->check_invariants();
  return history_->cache().check_invariants();
}

}  // namespace kvcache::runner
