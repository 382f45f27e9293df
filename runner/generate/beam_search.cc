#include "runner/generate/beam_search.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <utility>

#include "runner/generate/prefill.h"

namespace kvcache::runner {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Ways to go on that a step looks at: enough for num_beams that do not end.
std::int64_t candidates_of(const BeamOptions& options) {
  const auto ends = static_cast<std::int64_t>(options.eos_token_ids.size());
  return options.num_beams * (1 + std::max<std::int64_t>(1, ends));
}

// ln sum exp of a row.
double log_sum_exp(std::span<const float> row) {
  const double largest = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float logit : row) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

// What the beams of a search hold: their whole texts, where there is no cache.
std::vector<std::int32_t> whole_texts(const BeamSearch& search, std::int64_t num_beams,
                                      std::span<const std::int32_t> prompt) {
  std::vector<std::int32_t> texts;
  for (std::int64_t beam = 0; beam < num_beams; ++beam) {
    texts.insert(texts.end(), prompt.begin(), prompt.end());
    texts.insert(texts.end(), search.beam(beam).begin(), search.beam(beam).end());
  }
  return texts;
}

}  // namespace

BeamSearch::BeamSearch(BeamOptions options)
    : options_(std::move(options)), beams_(static_cast<std::size_t>(options_.num_beams)) {}

bool BeamSearch::ends(std::int32_t token) const {
  const auto& eos = options_.eos_token_ids;
  return length_ + 1 >= options_.max_tokens ||
         std::find(eos.begin(), eos.end(), token) != eos.end();
}

std::vector<BeamSearch::Candidate> BeamSearch::best_candidates(std::span<const float> logits,
                                                               std::int64_t count) const {
  const std::size_t vocab = logits.size() / beams_.size();
  // All beams are the same text at first.
  const std::size_t distinct = length_ == 0 ? 1 : beams_.size();
  std::vector<Candidate> candidates;
  candidates.reserve(distinct * vocab);
  for (std::size_t beam = 0; beam < distinct; ++beam) {
    const auto row = logits.subspan(beam * vocab, vocab);
    const double constant = beams_[beam].score - log_sum_exp(row);
    for (std::size_t token = 0; token < vocab; ++token) {
      candidates.push_back({row[token] + constant, static_cast<std::int64_t>(beam),
                            static_cast<std::int32_t>(token)});
    }
  }
  // Equal scores in the order of beams and ids, so that the choice is the same everywhere.
  const auto better = [](const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
  };
  std::partial_sort(candidates.begin(), candidates.begin() + count, candidates.end(), better);
  candidates.resize(static_cast<std::size_t>(count));
  return candidates;
}

void BeamSearch::finish(const Candidate& candidate) {
  Hypothesis made;
  made.tokens = beams_[static_cast<std::size_t>(candidate.beam)].tokens;
  made.tokens.push_back(candidate.token);
  made.score =
      candidate.score / std::pow(static_cast<double>(made.tokens.size()), options_.length_penalty);
  const auto place = std::find_if(hypotheses_.begin(), hypotheses_.end(),
                                  [&](const Hypothesis& kept) { return kept.score < made.score; });
  hypotheses_.insert(place, std::move(made));
  if (hypotheses_.size() > beams_.size()) hypotheses_.pop_back();
}

Status BeamSearch::step(std::span<const float> logits) {
  const auto num_beams = static_cast<std::int64_t>(beams_.size());
  const std::int64_t wanted = candidates_of(options_);
  const auto vocab = static_cast<std::int64_t>(logits.size()) / num_beams;
  if (static_cast<std::int64_t>(logits.size()) != vocab * num_beams || vocab < wanted) {
    return Status(StatusCode::kInvalidArgument, "logits: found " + std::to_string(logits.size()) +
                                                    " for " + std::to_string(num_beams) +
                                                    " beams, expected at least " +
                                                    std::to_string(wanted) + " of each");
  }
  for (const float logit : logits) {
    if (!std::isfinite(logit)) {
      return Status(StatusCode::kInvalidArgument,
                    "logits: found " + std::to_string(logit) + ", expected a finite number");
    }
  }

  const std::vector<Candidate> candidates = best_candidates(logits, wanted);
  std::vector<Beam> next;
  beam_idx_.clear();
  tokens_.clear();
  for (std::size_t rank = 0; rank < candidates.size(); ++rank) {
    const Candidate& candidate = candidates[rank];
    if (ends(candidate.token)) {
      // Those further down are there so that enough go on, and end unseen.
      if (rank < beams_.size()) finish(candidate);
    } else if (next.size() < beams_.size()) {
      Beam beam = beams_[static_cast<std::size_t>(candidate.beam)];
      beam.tokens.push_back(candidate.token);
      beam.score = candidate.score;
      next.push_back(std::move(beam));
      beam_idx_.push_back(candidate.beam);
      tokens_.push_back(candidate.token);
    }
  }
  ++length_;
  if (next.size() < beams_.size()) {  // max_tokens
    over_ = true;
    return {};
  }
  beams_ = std::move(next);
  const double best =
      beams_.front().score / std::pow(static_cast<double>(length_), options_.length_penalty);
  over_ = hypotheses_.size() == beams_.size() && best <= hypotheses_.back().score;
  return {};
}

Result<GenerateResult> generate_beams(
    const Model& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
    const std::function<void(std::int64_t done, std::int64_t total)>& on_prefill) {
  const auto prompt_tokens = static_cast<std::int64_t>(prompt.size());
  const std::int64_t room = model.config().max_position_embeddings - prompt_tokens + 1;
  BeamOptions beams;
  beams.num_beams = options.num_beams;
  beams.length_penalty = options.length_penalty;
  beams.max_tokens = std::min(options.max_tokens, room);
  if (options.stop_at_eos) beams.eos_token_ids = model.config().eos_token_ids;
  if (candidates_of(beams) > model.config().vocab_size) {
    return Status(StatusCode::kInvalidArgument,
                  "num_beams: found " + std::to_string(beams.num_beams) +
                      ", expected fewer: a step looks at " + std::to_string(candidates_of(beams)) +
                      " tokens, and the vocabulary has " +
                      std::to_string(model.config().vocab_size));
  }
  BeamSearch search(beams);

  KVC_ASSIGN_OR_RETURN(const auto history, open_history(model, prompt_tokens, options));
  ForwardState state;
  std::vector<float> logits;
  GenerateResult result;
  result.prompt_tokens = prompt_tokens;
  auto start = Clock::now();
  result.reused_tokens = history->find(0, prompt);
  KVC_RETURN_IF_ERROR(prefill(model, prompt, options, *history, state, logits, on_prefill));
  result.prefill_seconds = seconds_since(start);

  start = Clock::now();
  KVC_RETURN_IF_ERROR(history->repeat(options.num_beams, options.context));
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  logits.resize(vocab * static_cast<std::size_t>(options.num_beams));
  for (std::size_t at = vocab; at < logits.size(); at += vocab) {
    std::copy_n(logits.begin(), vocab, logits.begin() + static_cast<std::ptrdiff_t>(at));
  }
  while (true) {
    KVC_RETURN_IF_ERROR(search.step(logits));
    if (search.over()) break;
    KVC_RETURN_IF_ERROR(history->reorder(search.beam_idx(), options.context));
    std::vector<std::int32_t> ids(search.tokens().begin(), search.tokens().end());
    if (!history->keeps_history()) ids = whole_texts(search, options.num_beams, prompt);
    const std::vector<std::int64_t> counts(
        static_cast<std::size_t>(options.num_beams),
        static_cast<std::int64_t>(ids.size()) / options.num_beams);
    KVC_RETURN_IF_ERROR(model.forward({ids, counts}, *history, state, logits, LogitRows::kLast,
                                      options.attention, options.context));
    ++result.decode_steps;
  }
  result.decode_seconds = seconds_since(start);
  result.counters = state.counters();
  result.usage = history->usage();
  result.beams.assign(search.hypotheses().begin(), search.hypotheses().end());

  result.tokens = result.beams.front().tokens;
  const auto& eos = beams.eos_token_ids;
  if (std::find(eos.begin(), eos.end(), result.tokens.back()) != eos.end()) {
    result.tokens.pop_back();
    result.stop_reason = StopReason::kEos;
  } else {
    result.stop_reason =
        beams.max_tokens == options.max_tokens ? StopReason::kMaxTokens : StopReason::kContext;
  }
  return result;
}

}  // namespace kvcache::runner
