// How a backend attends: a plan's memory, and a run of it. The CPU (cpu/) and the definition
// (reference.h) are two of those; another stands for devices that this build has not.
#ifndef KVCACHE_SRC_ATTENTION_BACKEND_H_
#define KVCACHE_SRC_ATTENTION_BACKEND_H_

#include <cstddef>
#include <cstdint>

#include "attention/cpu/work.h"
#include "attention/problem.h"
#include "attention/visible.h"
#include "kernels/backend.h"
#include "kernels/cpu/cut.h"
#include "kvcache/executor.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// A plan as backends see it.
struct PlanView {
  const Backend* backend = nullptr;
  std::int64_t group = 1;  // query heads of a KV head
  std::int32_t num_kv_heads = 1;
  std::int32_t k_head_dim = 1;
  std::int32_t v_head_dim = 1;
  std::int32_t concurrency = 1;  // workers that memory is for
  VisibilityRules rules;
  WorkSize size;

  // Of a run.
  const WorkList* work = nullptr;
  Prefetch prefetch = Prefetch::kNone;
  std::byte* workspace = nullptr;  // as many bytes as asked for, aligned to 64
};

// Never null: what does not run here says so.
struct Attention {
  // Bytes that runs of the plan need; one run at a time. Errors: kOutOfMemory beyond any memory,
  // kUnavailable.
  Result<std::int64_t> (*workspace)(const PlanView& plan);

  // REQUIRES: `problem` is of the plan, and its arguments were checked.
  Status (*run)(const PlanView& plan, const AttentionProblem& problem, const ExecContext& context);
};

// The attention of a backend of kernels/registry.cc.
const Attention& attention_of(const Backend& backend) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_BACKEND_H_
