#include "attention/cpu/run.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/cpu/execute.h"
#include "base/checked_math.h"
#include "base/door.h"

namespace kvcache::internal {
namespace {

// Multiply-adds below which the calling thread leaves the default pool alone: some 20 us of one
// core, less than it may take to wake another where a host's own threads spin. An executor of the
// caller's has all work.
constexpr std::int64_t kProductsAlone = 1 << 20;

// Offsets of a workspace in bytes, aligned to 64.
struct Places {
  WorkerScratch worker;         // [concurrency], from 0 on
  std::int64_t partials = 0;    // see WorkGroup
  std::int64_t items_left = 0;  // [groups, num_kv_heads]
  std::int64_t bytes = 0;       // -1: beyond any memory
};

Places places_of(const PlanView& plan) {
  Places places;
  places.worker = worker_scratch(plan);
  std::int64_t partials = 0;
  std::int64_t items = 0;
  const std::int64_t item_bytes = plan.num_kv_heads * std::int64_t{sizeof(std::int32_t)};
  if (!checked_mul(places.worker.bytes, plan.concurrency, &places.partials) ||
      !checked_mul(plan.size.workspace_floats, sizeof(float), &partials) ||
      !checked_add(partials, 63, &partials) ||
      !checked_add(places.partials, round_down(partials, 64), &places.items_left) ||
      !checked_mul(plan.size.num_groups, item_bytes, &items) ||
      !checked_add(places.items_left, items, &places.bytes)) {
    places.bytes = -1;
  }
  return places;
}

Result<std::int64_t> workspace(const PlanView& plan) {
  const std::int64_t bytes = places_of(plan).bytes;
  if (bytes < 0) return out_of_memory();
  return bytes;
}

Status run(const PlanView& plan, const AttentionProblem& problem, const ExecContext& context) {
  Executor& executor = context.get();
  const Places places = places_of(plan);
  const WorkList& work = *plan.work;
  auto* const items_left = reinterpret_cast<std::int32_t*>(plan.workspace + places.items_left);
  const std::vector<WorkGroup>& groups = work.groups();
  for (std::size_t group = 0; group < groups.size(); ++group) {
    std::fill_n(items_left + static_cast<std::ptrdiff_t>(group) * plan.num_kv_heads,
                plan.num_kv_heads, groups[group].num_items);
  }
  const Execution execution{
      problem, *plan.backend->cuts, *plan.backend->rows, work, plan.rules, plan.prefetch,
      // A mask tells rows apart, and a view's tables need not be the planned.
      !problem.mask.defined() && work.shared_in(problem.kv), places.worker, plan.workspace,
      reinterpret_cast<float*>(plan.workspace + places.partials), items_left};
  struct Level {
    const Execution& execution;
    const WorkItem* items;
  };
  const WorkItem* const end = work.items().data() + work.items().size();
  for (const WorkItem* begin = work.items().data(); begin != end;) {
    const WorkItem* next = begin + 1;
    while (next != end && work.level_of(*next) == work.level_of(*begin)) ++next;
    Level level{execution, begin};
    const auto run_task = [](void* self, std::int64_t task, std::int32_t worker) noexcept {
      const Level& here = *static_cast<const Level*>(self);
      const std::int64_t heads = here.execution.problem.kv.num_kv_heads;
      run_item(here.execution, here.items[task / heads], static_cast<std::int32_t>(task % heads),
               worker);
    };
    const std::int64_t num_tasks = (next - begin) * std::int64_t{plan.num_kv_heads};
    std::int64_t cost = 0;
    for (const WorkItem* item = begin; item != next; ++item) cost += item->cost;
    const std::int64_t products =
        cost * plan.num_kv_heads * (problem.kv.k_head_dim + problem.kv.v_head_dim);
    if (products < kProductsAlone && &executor == &default_executor()) {
      for (std::int64_t task = 0; task < num_tasks; ++task) run_task(&level, task, 0);
    } else {
      executor.parallel_for(num_tasks, run_task, &level);
    }
    begin = next;
  }
  return {};
}

}  // namespace

const Attention& cpu_attention() noexcept {
  static constexpr Attention attention = {workspace, run};
  return attention;
}

}  // namespace kvcache::internal
