// Random caches, random operations: a sequence saved at any moment comes back in any other cache of
// the same layers, and goes on as the first.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kvcache/cache_file.h"
#include "support/coded.h"
#include "support/paged.h"
#include "support/soak.h"
#include "support/stored.h"

namespace kvcache::testing {
namespace {

LayerSpec any_stored_spec(bool may_drop) {
  std::vector<RowFormat> formats = {plain(DType::kF32), plain(DType::kF16), plain(DType::kBF16)};
  for (const FormCase& form : coded_forms()) formats.push_back(form.format);
  const auto format = [&] { return *rc::gen::elementOf(formats); };
  const auto dim = [] { return 32 * *rc::gen::inRange<std::int64_t>(1, 4); };
  const LayerSpec spec =
      LayerSpec::kv(*rc::gen::inRange<std::int64_t>(1, 3), dim(), dim(), format(), format());
  return may_drop ? spec.living(any_life()) : spec;
}

CacheConfig any_stored_config(const std::vector<LayerSpec>& layers, std::int64_t residual) {
  CacheConfig config = stored_config(layers, *rc::gen::inRange<std::int64_t>(1, 40),
                                     *rc::gen::element(Layout::kHND, Layout::kNHD), residual);
  config.rewind_tokens = *rc::gen::inRange<std::int64_t>(0, 6);
  return config;
}

class World {
 public:
  World(const CacheConfig& a, const CacheConfig& b) : first_(a), second_(b) {
    seq_ = first_.cache.open().value();
  }

  void run(const Op& op) {
    switch (op.kind % 6) {
      case 0:
      case 1:
      case 2: {
        std::vector<std::int32_t> ids(static_cast<std::size_t>(op.a % 23));
        for (std::int32_t& id : ids) id = next_++;
        RC_ASSERT(first_.append(seq_, ids, op.b % 8 != 0).ok());
        return;
      }
      case 3: {
        const std::int64_t count = op.a % 8;
        const std::int64_t length = first_.cache.seq_length(seq_).value();
        (void)first_.cache.rewind(seq_, std::min(count, length));
        return;
      }
      case 4:
        RC_ASSERT(first_.cache.hold_rows(seq_, op.a % 2 == 0).ok());
        return;
      default:
        save_and_load(op);
    }
  }

 private:
  void save_and_load(const Op& op) {
    const std::vector<std::byte> bytes = first_.bytes(seq_);
    const auto file = CacheFile::over(bytes);
    RC_ASSERT(file.ok());
    const auto loaded = file->load(second_.cache);
    RC_ASSERT(loaded.ok());
    RC_ASSERT(second_.cache.check_invariants().ok());
    // What is there is what was saved, but for rows that this cache would have dropped.
    for (std::int64_t layer = 0; layer < first_.num_layers(); ++layer) {
      const std::int64_t from = first_.cache.first_position(layer, seq_).value();
      const std::int64_t to = second_.cache.first_position(layer, *loaded).value();
      RC_ASSERT(to >= from);
      if (to == from) RC_ASSERT(first_.rows(layer, seq_) == second_.rows(layer, *loaded));
    }
    std::vector<std::int32_t> ids(static_cast<std::size_t>(1 + op.a % 9));
    for (std::int32_t& id : ids) id = next_++;
    const SequenceId same = first_.cache.fork(seq_, first_.cache.seq_length(seq_).value()).value();
    RC_ASSERT(first_.append(same, ids).ok());
    RC_ASSERT(second_.append(*loaded, ids).ok());
    const bool residual = first_.config.residual_tokens > 0;
    for (std::int64_t layer = 0; layer < first_.num_layers(); ++layer) {
      const bool differs = first_.cache.first_position(layer, same).value() !=
                           second_.cache.first_position(layer, *loaded).value();
      // Where newest rows stay plain, how many does depends on the page size.
      if (differs || residual) continue;
      RC_ASSERT(first_.rows(layer, same) == second_.rows(layer, *loaded));
    }
    RC_ASSERT(first_.cache.release(same).ok());
    RC_ASSERT(second_.cache.release(*loaded).ok());
    RC_ASSERT(first_.cache.check_invariants().ok());
    RC_ASSERT(second_.cache.check_invariants().ok());
    RC_ASSERT(second_.cache.nbytes() == 0);
  }

  StoredCache first_, second_;
  SequenceId seq_;
  std::int32_t next_ = 1;
};

TEST(CacheFileSoak, ASequenceSavedAtAnyMomentComesBackInAnyCache) {
  soak("sequences through files", [] {
    const bool tails = *rc::gen::inRange(0, 3) == 0;
    std::vector<LayerSpec> layers;
    const int count = *rc::gen::inRange(1, 4);
    for (int i = 0; i < count; ++i) layers.push_back(any_stored_spec(!tails));
    if (tails) layers.front().buffers[0].format = coded(RowFormat::kInt8);
    const std::int64_t residual = tails ? *rc::gen::inRange<std::int64_t>(1, 30) : 0;
    World world(any_stored_config(layers, residual), any_stored_config(layers, residual));
    const Ops ops = any_ops();
    for (const Op& op : ops) world.run(op);
    world.run({5, 3, 0, 0});
    return ops.size();
  });
}

}  // namespace
}  // namespace kvcache::testing
