// Shared prefixes: which sequences of a batch begin with the same rows, found in the block tables,
// so that one pass over those rows can serve them all.
//
// Sequences share whole units only, and only as long as every query of theirs sees all rows of the
// unit but those before the first visible one: nothing then tells their query rows apart. They form
// a tree: a run of sequences shares some units, and parts of the run share more.
#ifndef KVCACHE_SRC_ATTENTION_PREFIXES_H_
#define KVCACHE_SRC_ATTENTION_PREFIXES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/cut.h"
#include "kvcache/kv_view.h"

namespace kvcache::internal {

// Sequences order()[begin .. end), two at least, whose units unit_begin .. unit_end are the same.
struct SharedRun {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::int32_t unit_begin = 0;
  std::int32_t unit_end = 0;
  std::int32_t parent = -1;      // the run that shares the units before these; -1: there are none
  std::int64_t keys_before = 0;  // visible rows of the units before these
  std::int64_t keys = 0;         // visible rows of these
};

// Whether unit `index` of sequences a and b holds the same visible rows, at the same indices.
// Both go the same path.
bool same_rows(const KvView& kv, std::int32_t a, std::int32_t b, std::int32_t index, Path path);

struct SharingRules {
  bool enabled = true;
  bool causal = true;
  bool reproducible = false;         // one path for every number of queries
  std::int64_t queries_at_most = 0;  // of a sequence that shares: its rows make one tile
};

class SharedPrefixes {
 public:
  // May throw bad_alloc. Allocates only where the batch grew. O(batch x table), and a sort of the
  // sequences wherever they part.
  void find(const KvView& kv, std::span<const std::int32_t> qo_indptr, const SharingRules& rules);

  // The sequences that have queries; first those within `queries_at_most`, runs side by side.
  std::span<const std::int32_t> order() const { return order_; }

  // A run stands behind its parent.
  std::span<const SharedRun> runs() const { return runs_; }

  // The last run, deepest in the tree, of sequence order()[at]; -1: it shares nothing.
  std::int32_t last_run(std::int32_t at) const { return last_run_[static_cast<std::size_t>(at)]; }

 private:
  std::vector<std::int32_t> order_;
  std::vector<std::int32_t> last_run_;  // as order_
  std::vector<SharedRun> runs_;
  std::vector<SharedRun> pending_;  // begin, end, unit_begin, parent and keys_before are known
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_PREFIXES_H_
