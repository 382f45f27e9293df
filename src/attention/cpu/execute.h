// Doing one work item with a backend's kernels: queries in, cuts attended to and merged, results
// out.
#ifndef KVCACHE_SRC_ATTENTION_CPU_EXECUTE_H_
#define KVCACHE_SRC_ATTENTION_CPU_EXECUTE_H_

#include <cstddef>
#include <cstdint>

#include "attention/backend.h"
#include "attention/cpu/work.h"
#include "attention/problem.h"
#include "attention/visible.h"
#include "kernels/backend.h"
#include "kernels/cpu/cut.h"

namespace kvcache::internal {

// Where a worker keeps what: offsets in bytes, aligned to 64.
struct WorkerScratch {
  std::int64_t q = 0;         // [rows, k_dim padded] float, scaled
  std::int64_t position = 0;  // [queries] int64
  std::int64_t running = 0;   // a partial: that of a group which needs no other memory
  std::int64_t next = 0;      // a partial
  std::int64_t kernel = 0;
  std::int64_t bytes = 0;  // of all
};

// For the passes of a plan.
WorkerScratch worker_scratch(const PlanView& plan);

struct Execution {
  const AttentionProblem& problem;
  const AttentionKernels& kernels;
  const RowKernels& rows;
  const WorkList& work;
  VisibilityRules rules;
  Prefetch prefetch = Prefetch::kNone;
  bool stacked = true;  // tiles of a group share a pass; else one follows the other, cut by cut
  WorkerScratch layout;
  std::byte* scratch = nullptr;        // [workers, layout.bytes]
  float* workspace = nullptr;          // see WorkGroup
  std::int32_t* items_left = nullptr;  // [groups, num_kv_heads] items not yet done
};

// One item for one KV head. Whoever does the last item of a group merges its partial results, and
// finishes the tiles that end with it.
// Thread safety: items of a level may run together under different workers.
// REQUIRES: those of the levels before are done.
void run_item(const Execution& execution, const WorkItem& item, std::int32_t kv_head,
              std::int32_t worker) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_CPU_EXECUTE_H_
