#include "bench/prefix.h"

#include <cmath>
#include <string>
#include <utility>

namespace kvcache::bench {
namespace {

// Prompt number `number`: no two begin alike.
std::vector<std::int32_t> prompt_of(std::int64_t number, std::int64_t length) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(length));
  std::uint64_t state = static_cast<std::uint64_t>(number) * 0x9E3779B97F4A7C15U + 1;
  tokens[0] = static_cast<std::int32_t>(number);
  for (std::size_t t = 1; t < tokens.size(); ++t) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    tokens[t] = static_cast<std::int32_t>((state >> 33) % 150000);
  }
  return tokens;
}

class World {
 public:
  static Result<World> create(const PrefixBenchOptions& options) {
    CacheConfig config = CacheConfig::uniform(1, 1, 1, DType::kF16);
    config.page_size = options.page_size;
    config.num_pages = options.pages;
    config.prefixes = true;
    KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
    PrefixOptions prefix;
    prefix.eviction = options.eviction;
    KVC_ASSIGN_OR_RETURN(PrefixCache prefixes, PrefixCache::create(cache, prefix));
    return World(std::move(cache), std::move(prefixes), options.prompt);
  }

  // Seconds for all but the writing of rows; `found` tokens.
  Result<double> ask(const std::vector<std::int32_t>& prompt, std::int64_t* found) {
    double start = seconds_now();
    SequenceId seq{};
    {
      KVC_ASSIGN_OR_RETURN(const PrefixHandle handle, prefixes.match(prompt));
      KVC_ASSIGN_OR_RETURN(seq, prefixes.open(handle));
      *found = handle.length();
    }
    const std::int64_t count = static_cast<std::int64_t>(prompt.size()) - *found;
    const Append append{seq, count, std::span(prompt).subspan(static_cast<std::size_t>(*found))};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
    double seconds = seconds_now() - start;
    const TensorView view(rows.data(), DType::kF16, {count, 1, 1});
    KVC_RETURN_IF_ERROR(cache.write(step, 0, view, view));
    start = seconds_now();
    KVC_RETURN_IF_ERROR(cache.commit(step));
    KVC_RETURN_IF_ERROR(cache.release(seq));
    return seconds + seconds_now() - start;
  }

  PagedCache cache;
  PrefixCache prefixes;
  std::vector<std::uint16_t> rows;

 private:
  World(PagedCache paged, PrefixCache index, std::int64_t prompt)
      : cache(std::move(paged)),
        prefixes(std::move(index)),
        rows(static_cast<std::size_t>(prompt)) {}
};

Case make_case(const std::string& name, const std::vector<double>& times, double wanted,
               const char* unit, double error) {
  Case result;
  result.name = name;
  result.achieved = median(times);
  result.roof = wanted;
  result.ratio = wanted / result.achieved;
  result.unit = unit;
  result.error = error;
  result.details = {{"least", spread_of(times).least}, {"most", spread_of(times).most}};
  return result;
}

}  // namespace

Result<std::vector<Case>> run_prefix(const PrefixBenchOptions& options,
                                     const std::function<void(int, int)>& on_progress) {
  const std::int64_t pages = options.prompt / std::max<std::int64_t>(options.page_size, 1);
  if (options.repeats < 1 || options.page_size < 1 || pages < 1 || options.pages < 16 * pages) {
    return Status(StatusCode::kInvalidArgument,
                  "pages: found " + std::to_string(options.pages) +
                      ", expected room for 16 prompts, each of a page at least");
  }
  KVC_ASSIGN_OR_RETURN(World world, World::create(options));
  const auto texts = static_cast<int>(options.pages / pages);
  const int total = texts + options.repeats;
  std::int64_t found = 0;
  for (int text = 0; text < texts; ++text) {
    KVC_RETURN_IF_ERROR(world.ask(prompt_of(text, options.prompt), &found).status());
    if (on_progress) on_progress(text + 1, total);
  }
  const auto tokens = static_cast<double>(options.prompt);
  std::vector<double> fresh, again, forks, reorders;
  double wrong = 0;
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    const auto unknown = prompt_of(texts + repeat, options.prompt);
    KVC_ASSIGN_OR_RETURN(const double cold, world.ask(unknown, &found));
    wrong += static_cast<double>(found);
    fresh.push_back(cold * 1e9 / tokens);
    const auto known = prompt_of(texts / 2 + repeat, options.prompt);
    KVC_ASSIGN_OR_RETURN(const double warm, world.ask(known, &found));
    wrong += std::abs(static_cast<double>(found) - tokens + 1);
    again.push_back(warm * 1e9 / tokens);

    std::vector<SequenceId> seqs;
    for (int i = 0; i < 8; ++i) {
      KVC_ASSIGN_OR_RETURN(const PrefixHandle handle,
                           world.prefixes.match(prompt_of(texts / 2 + i, options.prompt)));
      KVC_ASSIGN_OR_RETURN(const SequenceId seq, world.prefixes.open(handle));
      seqs.push_back(seq);
    }
    double start = seconds_now();
    KVC_ASSIGN_OR_RETURN(const SequenceId child, world.cache.fork(seqs[0], options.prompt - 1));
    forks.push_back((seconds_now() - start) * 1e9);
    KVC_RETURN_IF_ERROR(world.cache.release(child));
    const std::int64_t beams[] = {1, 2, 3, 4, 5, 6, 7, 0};
    start = seconds_now();
    KVC_RETURN_IF_ERROR(world.cache.reorder(seqs, TensorView(beams, DType::kI64, {8})));
    reorders.push_back((seconds_now() - start) * 1e6);
    for (const SequenceId seq : seqs) KVC_RETURN_IF_ERROR(world.cache.release(seq));
    if (on_progress) on_progress(texts + repeat + 1, total);
  }
  const std::string size = std::to_string(options.pages) + " pages";
  return std::vector<Case>{
      make_case("a new prompt, " + size, fresh, 75, "ns/token", wrong),
      make_case("a known prompt, " + size, again, 75, "ns/token", wrong),
      make_case("fork", forks, 1000 + 2 * static_cast<double>(pages), "ns", wrong),
      make_case("reorder of 8", reorders, 40, "us", wrong)};
}

}  // namespace kvcache::bench
