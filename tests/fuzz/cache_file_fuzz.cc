// Any bytes as a file of a cache: refused by name, or loaded and sound. What is loaded is saved and
// loaded again, to the same bytes. Half of all inputs get a header's sum that fits, so that what
// lies behind it is reached.
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "kvcache/cache_file.h"
#include "kvcache/dynamic_cache.h"
#include "kvcache/prefix.h"
#include "support/damage.h"
#include "support/fuzz.h"

namespace kvcache::fuzz {
namespace {

using testing::Bytes;

// Layers that seeds have; others are refused after they were read.
PagedCache make_cache_with_tails() {
  CacheConfig config;
  config.layers = {LayerSpec::kv(2, 32, 64, coded(RowFormat::kInt4), plain(DType::kF16))};
  config.page_size = 4;
  config.num_pages = 64;
  config.residual_tokens = 6;
  return PagedCache::create(config).value();
}
PagedCache make_cache(bool prefixes) {
  Life window;
  window.window = 9;
  window.sink_tokens = 2;
  CacheConfig config;
  config.layers = {
      LayerSpec::kv(1, 16, 8, plain(DType::kF16), coded(RowFormat::kInt8)),
      LayerSpec::kv(1, 32, 8, coded(RowFormat::kInt4), plain(DType::kF16)).living(window)};
  config.page_size = 4;
  config.num_pages = 64;
  config.prefixes = prefixes;
  return PagedCache::create(config).value();
}

void expect_sound(const PagedCache& cache) {
  const Status status = cache.check_invariants();
  expect(status.ok(), "sound bookkeeping; found: " + status.to_string());
}

void sequence(const CacheFile& file, PagedCache cache) {
  const auto loaded = file.load(cache, file.info().space);
  expect_sound(cache);
  if (!loaded.ok()) {
    expect(cache.stats().sequences == 0 && cache.stats().open_steps == 0, "nothing changed");
    return;
  }
  const auto bytes = CacheFile::to_bytes(cache, *loaded, file.info().space);
  expect(bytes.ok(), "what was loaded to be saved");
  const auto again = CacheFile::over(*bytes);
  expect(again.ok() && again->verify().ok(), "what was saved to be read");
  const auto same = again->load(cache, file.info().space);
  if (!same.ok()) return;  // no room for both
  expect(CacheFile::to_bytes(cache, *same, file.info().space).value() == *bytes, "the same bytes");
  expect_sound(cache);
}

void layers(const CacheFile& file) {
  DynamicCache cache = DynamicCache::create({.reserve_tokens = 64}).value();
  const Status loaded = file.load(cache, file.info().space);
  if (!loaded.ok()) {
    expect(cache.num_layers() == 0 && cache.nbytes() == 0, "nothing changed");
    return;
  }
  const auto bytes = CacheFile::to_bytes(cache, file.info().space);
  expect(bytes.ok(), "what was loaded to be saved");
  DynamicCache again = DynamicCache::create({.reserve_tokens = 64}).value();
  expect(CacheFile::over(*bytes)->load(again, file.info().space).ok(), "what was saved to be read");
  expect(CacheFile::to_bytes(again, file.info().space).value() == *bytes, "the same bytes");
}

void texts(const Bytes& bytes) {
  // A file without a place would do, but a name is what load() takes.
  static const std::string path =
      "/tmp/kvcache-fuzz-" + std::to_string(static_cast<long>(::getpid()));
  const Status written =
      internal::replace_file(internal::system_files(), path,
                             [&](internal::File& file) { return file.write_at(0, bytes); });
  expect(written.ok(), "a file of the input");
  PagedCache cache = make_cache(true);
  PrefixCache prefixes = PrefixCache::create(cache).value();
  const auto loaded = prefixes.load(path);
  ::unlink(path.c_str());
  expect_sound(cache);
  const Status sound = prefixes.check_invariants();
  expect(sound.ok(), "a sound index; found: " + sound.to_string());
  if (!loaded.ok()) expect(prefixes.stats().pages == 0, "nothing changed");
}

}  // namespace
}  // namespace kvcache::fuzz

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvcache;
  if (size == 0) return 0;
  const auto* const begin = reinterpret_cast<const std::byte*>(data + 1);
  testing::Bytes bytes(begin, begin + size - 1);
  if (data[0] % 2 == 1) testing::fix_sum(bytes);
  const auto file = CacheFile::over(bytes);
  if (!file.ok()) {
    fuzz::expect(file.status().message().find(": found ") != std::string::npos,
                 "an error with a name");
    return 0;
  }
  switch (file->info().kind) {
    case CacheFileInfo::Kind::kTexts:
      fuzz::texts(bytes);
      break;
    case CacheFileInfo::Kind::kLayers:
      fuzz::layers(*file);
      break;
    case CacheFileInfo::Kind::kSequence:
      fuzz::sequence(*file, fuzz::make_cache(false));
      fuzz::sequence(*file, fuzz::make_cache_with_tails());
  }
  return 0;
}
