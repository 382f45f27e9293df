// One prompt, three answers: forks share the pages of what they have in common.
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView, kvcache::SequenceId;

// `count` new tokens for every sequence: reserve, write, commit.
kvcache::Status append(kvcache::PagedCache& cache, const std::vector<SequenceId>& seqs,
                       std::int64_t count) {
  std::vector<kvcache::Append> appends;
  for (const SequenceId seq : seqs) appends.push_back({seq, count});
  KVC_ASSIGN_OR_RETURN(auto step, cache.reserve(appends));
  const std::vector<float> rows(static_cast<std::size_t>(step.num_new_tokens() * 2 * 8), 0.5f);
  const TensorView kv(rows.data(), DType::kF32, {step.num_new_tokens(), 2, 8});
  KVC_RETURN_IF_ERROR(cache.write(step, 0, kv, kv));
  return cache.commit(step);  // a step that is dropped instead rolls back
}

kvcache::Status print(const char* what, const kvcache::PagedCache& cache,
                      const std::vector<SequenceId>& seqs) {
  KVC_ASSIGN_OR_RETURN(const auto table, cache.block_table(0, seqs));
  std::printf("%s: %lld pages, %lld rows copied\n", what,
              static_cast<long long>(cache.stats().pages_held),
              static_cast<long long>(cache.stats().rows_copied));
  for (std::int64_t seq = 0; seq < table.num_seqs; ++seq) {
    std::printf("  text %lld in pages", static_cast<long long>(seq));
    for (std::int64_t page = 0; page < table.max_pages; ++page) {
      const std::int32_t id = table.pages[static_cast<std::size_t>(seq * table.max_pages + page)];
      if (id >= 0) std::printf(" %2d", id);
    }
    std::printf("\n");
  }
  return {};
}

kvcache::Status run() {
  kvcache::CacheConfig config = kvcache::CacheConfig::uniform(1, 2, 8);
  config.page_size = 4;
  config.num_pages = 10;
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::PagedCache::create(config));
  std::vector<SequenceId> texts(1);
  KVC_ASSIGN_OR_RETURN(texts[0], cache.open());
  KVC_RETURN_IF_ERROR(append(cache, texts, 14));
  KVC_RETURN_IF_ERROR(print("a prompt of 14 tokens", cache, texts));

  while (texts.size() < 3) {
    KVC_ASSIGN_OR_RETURN(const SequenceId fork, cache.fork(texts[0], 14));
    texts.push_back(fork);
  }
  KVC_RETURN_IF_ERROR(print("two forks", cache, texts));
  KVC_RETURN_IF_ERROR(append(cache, texts, 1));
  KVC_RETURN_IF_ERROR(print("one token each", cache, texts));

  // Room is reserved for all or for none.
  const kvcache::Status refused = append(cache, texts, 12);
  std::printf("12 more each: %s\n", refused.to_string().c_str());
  KVC_RETURN_IF_ERROR(cache.release(texts[2]));
  texts.pop_back();
  KVC_RETURN_IF_ERROR(cache.truncate(texts[1], 3));
  return print("one released, one cut to 3 tokens", cache, texts);
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
