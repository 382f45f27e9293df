#include "runner/eval/eval.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "runner/eval/distribution.h"

namespace kvcache::runner {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Status out_of_bounds(const char* name, std::int64_t found, const std::string& expected) {
  return Status(StatusCode::kInvalidArgument,
                std::string(name) + ": found " + std::to_string(found) + ", expected " + expected);
}

Status check_options(const Model& model, std::span<const std::int32_t> text,
                     const EvalOptions& options) {
  const std::int64_t most = model.config().max_position_embeddings;
  if (options.context < 2 || options.context > most) {
    return out_of_bounds("context", options.context, "2 .. " + std::to_string(most));
  }
  if (options.prefill_chunk < 1) {
    return out_of_bounds("prefill_chunk", options.prefill_chunk, "at least 1");
  }
  if (options.greedy_tokens < 0) {
    return out_of_bounds("greedy_tokens", options.greedy_tokens, "at least 0");
  }
  if (text.size() < 2) {
    return out_of_bounds("text", static_cast<std::int64_t>(text.size()), "at least 2 tokens");
  }
  return {};
}

// Sums over the predicted tokens of a form.
struct Sums {
  double log_loss = 0, divergence = 0;
  std::int64_t predicted = 0, same_top = 0;
};

// A form, its history, and what came of it.
struct Subject {
  KvDtype form;
  EvalRun run;
  Sums sums;
  std::unique_ptr<History> history;
  std::vector<float> logits;  // of the last chunk
  std::vector<LogitSums> rows;
};

class Evaluation {
 public:
  Evaluation(const Model& model, std::span<const std::int32_t> text, const EvalOptions& options,
             const std::function<void(std::int64_t, std::int64_t)>& on_progress)
      : model_(model), text_(text), options_(options), on_progress_(on_progress) {}

  Result<std::vector<EvalRun>> run() {
    std::vector<KvDtype> forms = {KvDtype(DType::kBF16)};
    forms.insert(forms.end(), options_.forms.begin(), options_.forms.end());
    for (KvDtype& form : forms) {
      Subject subject;
      KVC_ASSIGN_OR_RETURN(const auto layers,
                           form.layers(model_.config(), model_.default_kv_dtype()));
      subject.run.token_bytes = bytes_per_token(layers);
      subject.run.words = form.words().empty() ? name_of(model_.default_kv_dtype()) : form.words();
      subject.form = std::move(form);
      // What a form cannot store is said before anything is computed.
      KVC_RETURN_IF_ERROR(open(subject, 1));
      subjects_.push_back(std::move(subject));
    }
    greedy_ = std::min(options_.greedy_tokens, options_.context - prompt_tokens());
    total_ =
        static_cast<std::int64_t>(subjects_.size()) *
        (static_cast<std::int64_t>(text_.size()) + (greedy_ > 0 ? prompt_tokens() + greedy_ : 0));
    for (std::size_t at = 0; at + 1 < text_.size();
         at += static_cast<std::size_t>(options_.context)) {
      const auto context = static_cast<std::size_t>(options_.context);
      KVC_RETURN_IF_ERROR(window(text_.subspan(at, std::min(context, text_.size() - at))));
    }
    if (greedy_ > 0) KVC_RETURN_IF_ERROR(decode());
    std::vector<EvalRun> runs;
    for (Subject& subject : subjects_) {
      EvalRun& run = subject.run;
      const auto predicted = static_cast<double>(subject.sums.predicted);
      run.predicted = subject.sums.predicted;
      run.perplexity = std::exp(subject.sums.log_loss / predicted);
      run.divergence = subject.sums.divergence / predicted;
      run.same_top = static_cast<double>(subject.sums.same_top) / predicted;
      runs.push_back(std::move(run));
    }
    return runs;
  }

 private:
  // Half a window, of what there is.
  std::int64_t prompt_tokens() const {
    return std::min(static_cast<std::int64_t>(text_.size()), (options_.context + 1) / 2);
  }

  Status open(Subject& subject, std::int64_t tokens) const {
    HistoryOptions history;
    history.kind = HistoryKind::kPaged;
    history.rows = subject.form;
    history.dtype = model_.default_kv_dtype();
    history.page_size = options_.page_size;
    history.max_length = tokens;
    subject.history.reset();  // before the next takes its room
    KVC_ASSIGN_OR_RETURN(subject.history, make_history(model_.config(), history));
    return {};
  }

  Status forward(Subject& subject, std::span<const std::int32_t> tokens, LogitRows rows) {
    KVC_RETURN_IF_ERROR(model_.forward(tokens, *subject.history, state_, subject.logits, rows, {},
                                       options_.context_of_work));
    done_ += static_cast<std::int64_t>(tokens.size());
    if (on_progress_) on_progress_(done_, total_);
    return {};
  }

  // Chunk by chunk through all forms, so that only the logits of one chunk are there at once.
  Status window(std::span<const std::int32_t> tokens) {
    for (Subject& subject : subjects_) {
      KVC_RETURN_IF_ERROR(open(subject, static_cast<std::int64_t>(tokens.size())));
    }
    const auto chunk = static_cast<std::size_t>(options_.prefill_chunk);
    for (std::size_t at = 0; at < tokens.size(); at += chunk) {
      const auto piece = tokens.subspan(at, std::min(chunk, tokens.size() - at));
      // The successor of the last token of a window is not asked for.
      const std::size_t asked = std::min(piece.size(), tokens.size() - 1 - at);
      for (Subject& subject : subjects_) {
        const double start = now_seconds();
        KVC_RETURN_IF_ERROR(forward(subject, piece, LogitRows::kAll));
        subject.run.prefill_seconds += now_seconds() - start;
        subject.run.prefilled += static_cast<std::int64_t>(piece.size());
        score(subject, tokens.subspan(at + 1, asked));
      }
    }
    return {};
  }

  // Takes in how the logits of a chunk foretell `successors`.
  void score(Subject& subject, std::span<const std::int32_t> successors) {
    const std::size_t vocab = static_cast<std::size_t>(model_.config().vocab_size);
    const std::size_t count = successors.size();
    Subject& reference = subjects_.front();
    if (count == 0) return;
    subject.rows.resize(count);
    divergences_.resize(count);
    const auto row_of = [&](const Subject& of, std::size_t row) {
      return std::span<const float>(of.logits).subspan(row * vocab, vocab);
    };
    auto one = [&](std::int64_t task) {
      const auto row = static_cast<std::size_t>(task);
      subject.rows[row] = sums_of(row_of(subject, row));
      divergences_[row] = divergence(row_of(reference, row), reference.rows[row],
                                     row_of(subject, row), subject.rows[row]);
    };
    Executor* const threads = options_.context_of_work.executor;
    Executor& executor = threads != nullptr ? *threads : default_executor();
    using One = decltype(one);
    executor.parallel_for(
        static_cast<std::int64_t>(count),
        [](void* context, std::int64_t task, std::int32_t) noexcept {
          (*static_cast<One*>(context))(task);
        },
        &one);
    for (std::size_t row = 0; row < count; ++row) {
      const auto successor = static_cast<std::size_t>(successors[row]);
      subject.sums.log_loss +=
          subject.rows[row].log_sum - static_cast<double>(row_of(subject, row)[successor]);
      subject.sums.divergence += divergences_[row];
      subject.sums.same_top += subject.rows[row].top == reference.rows[row].top;
    }
    subject.sums.predicted += static_cast<std::int64_t>(count);
  }

  // What each form makes of half a window, likeliest token by likeliest token.
  Status decode() {
    std::vector<std::int32_t> expected;
    for (Subject& subject : subjects_) {
      KVC_RETURN_IF_ERROR(open(subject, prompt_tokens() + greedy_));
      const auto prompt = text_.first(static_cast<std::size_t>(prompt_tokens()));
      const auto chunk = static_cast<std::size_t>(options_.prefill_chunk);
      for (std::size_t at = 0; at < prompt.size(); at += chunk) {
        KVC_RETURN_IF_ERROR(forward(
            subject, prompt.subspan(at, std::min(chunk, prompt.size() - at)), LogitRows::kLast));
      }
      std::vector<std::int32_t> words;
      const double start = now_seconds();
      while (static_cast<std::int64_t>(words.size()) < greedy_) {
        const auto top = std::max_element(subject.logits.begin(), subject.logits.end());
        words.push_back(static_cast<std::int32_t>(top - subject.logits.begin()));
        KVC_RETURN_IF_ERROR(forward(subject, {&words.back(), 1}, LogitRows::kLast));
      }
      subject.run.decode_seconds = now_seconds() - start;
      subject.run.decoded = subject.run.greedy_tokens = greedy_;
      if (expected.empty()) expected = words;
      const auto differs = std::mismatch(words.begin(), words.end(), expected.begin()).first;
      subject.run.first_difference = differs - words.begin();
      subject.history.reset();
    }
    return {};
  }

  const Model& model_;
  const std::span<const std::int32_t> text_;
  const EvalOptions& options_;
  const std::function<void(std::int64_t, std::int64_t)>& on_progress_;
  std::vector<Subject> subjects_;  // the reference first
  std::vector<double> divergences_;
  ForwardState state_;
  std::int64_t greedy_ = 0, done_ = 0, total_ = 0;
};

}  // namespace

Result<std::vector<EvalRun>> evaluate(
    const Model& model, std::span<const std::int32_t> text, const EvalOptions& options,
    const std::function<void(std::int64_t done, std::int64_t total)>& on_progress) try {
  KVC_RETURN_IF_ERROR(check_options(model, text, options));
  return Evaluation(model, text, options, on_progress).run();
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

}  // namespace kvcache::runner
