#include "attention/plan.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "attention/check.h"
#include "attention/cpu/execute.h"
#include "attention/reference.h"
#include "attention/select.h"
#include "attention/visible.h"
#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"

namespace kvcache::internal {
namespace {

Status not_planned(const Word& name, const Word& found, const Word& expected) {
  return refusal(name, found, expected.text() + " as planned");
}

// Multiply-adds below which the calling thread leaves the default pool alone: some 20 us of one
// core, less than it may take to wake another where a host's own threads spin. An executor of the
// caller's has all work.
constexpr std::int64_t kProductsAlone = 1 << 20;

// Of the keys of the first part: all parts of a view have rows alike, or nearly.
std::int64_t row_bytes(const KvView& view) {
  return view.num_parts == 0 ? 0 : view.k_head_dim * size_of(view.parts[0].k_format.dtype);
}

// Of all rows of the view, keys and values, near enough.
std::int64_t all_bytes(const KvView& view) {
  std::int64_t tokens = 0;
  for (std::int32_t p = 0; p < view.num_parts; ++p) {
    for (std::int32_t seq = 0; seq < view.num_seqs; ++seq) tokens += view.parts[p].lengths[seq];
  }
  return 2 * tokens * view.num_kv_heads * row_bytes(view);
}

}  // namespace

Status Plan::plan(const KvView& like, std::span<const std::int32_t> qo_indptr,
                  std::int64_t num_heads, const AttentionOptions& options,
                  const ExecContext& context) {
  KVC_RETURN_IF_ERROR(check_view(like));
  KVC_RETURN_IF_ERROR(check_qo_indptr(qo_indptr, like.num_seqs));
  KVC_RETURN_IF_ERROR(check_heads(num_heads, like));
  KVC_RETURN_IF_ERROR(check_options(options));
  KVC_RETURN_IF_ERROR(check_mask(options.mask, like, qo_indptr, num_heads));
  const Backend* backend = nullptr;
  KVC_RETURN_IF_ERROR(select_backend(options.backend, &backend));
  Prefetch prefetch = Prefetch::kNone;
  KVC_RETURN_IF_ERROR(select_prefetch(*backend, row_bytes(like), all_bytes(like), &prefetch));

  // Room first, then changes that cannot fail.
  const std::int32_t concurrency = context.get().concurrency();
  WorkShape shape;
  shape.group = num_heads / like.num_kv_heads;
  shape.num_kv_heads = like.num_kv_heads;
  shape.v_dim = like.v_head_dim;
  shape.concurrency = concurrency;
  shape.rules = {options.causal, options.window, options.sink_tokens};
  prefixes_.find(like, qo_indptr,
                 {options.share_prefixes && options.window == 0, options.causal,
                  options.reproducible, tile_queries(shape.group)});
  WorkSize size;
  KVC_RETURN_IF_ERROR(measure_work(like, qo_indptr, prefixes_, shape, &size));
  const WorkerScratch layout = worker_scratch(*backend, like, shape.group, size.largest_pass);
  std::int64_t bytes = 0;
  std::int64_t workspace_bytes = 0;
  if (!checked_mul(layout.bytes, concurrency, &bytes) ||
      !checked_mul(size.workspace_floats, sizeof(float), &workspace_bytes)) {
    return out_of_memory();
  }
  work_.reserve(size);
  items_left_.reserve(static_cast<std::size_t>(size.num_groups * like.num_kv_heads));
  const std::int64_t pairs = std::int64_t{like.num_parts} * like.num_seqs;
  lengths_.reserve(static_cast<std::size_t>(pairs));
  parts_.reserve(static_cast<std::size_t>(like.num_parts));
  qo_indptr_.reserve(qo_indptr.size());
  KVC_RETURN_IF_ERROR(scratch_.reserve(bytes));
  KVC_RETURN_IF_ERROR(workspace_.reserve(workspace_bytes));

  backend_ = backend;
  prefetch_ = prefetch;
  num_seqs_ = like.num_seqs;
  num_kv_heads_ = like.num_kv_heads;
  k_head_dim_ = like.k_head_dim;
  v_head_dim_ = like.v_head_dim;
  num_heads_ = num_heads;
  options_ = options;
  concurrency_ = concurrency;
  layout_ = layout;
  qo_indptr_.assign(qo_indptr.begin(), qo_indptr.end());
  parts_.clear();
  lengths_.clear();
  for (std::int32_t p = 0; p < like.num_parts; ++p) {
    const KvPart& part = like.parts[p];
    parts_.push_back({part.k_format, part.v_format, part.positions != nullptr});
    for (std::int32_t seq = 0; seq < like.num_seqs; ++seq) {
      lengths_.push_back({part.lengths[seq],
                          part.first_position == nullptr ? 0 : part.first_position[seq],
                          part.first_visible == nullptr ? 0 : part.first_visible[seq]});
    }
  }
  work_.fill(like, qo_indptr_, prefixes_, shape, size);
  items_left_.resize(static_cast<std::size_t>(size.num_groups * like.num_kv_heads));
  rows_read_ = 0;
  for (std::int32_t seq = 0; seq < like.num_seqs; ++seq) {
    rows_read_ += count_visible_rows(like, seq, qo_indptr_[seq + 1] - qo_indptr_[seq], shape.rules);
  }
  for (const SharedRun& run : prefixes_.runs()) rows_read_ -= (run.end - run.begin - 1) * run.keys;
  return {};
}

Status Plan::check_planned(const KvView& kv, const AttentionOptions& options) const {
  if (backend_ == nullptr) {
    return refusal("run", "no plan", "plan() before it");
  }
  if (kv.num_seqs != num_seqs_) return not_planned("kv.num_seqs", kv.num_seqs, num_seqs_);
  if (kv.num_kv_heads != num_kv_heads_) {
    return not_planned("kv.num_kv_heads", kv.num_kv_heads, num_kv_heads_);
  }
  if (kv.k_head_dim != k_head_dim_) {
    return not_planned("kv.k_head_dim", kv.k_head_dim, k_head_dim_);
  }
  if (kv.v_head_dim != v_head_dim_) {
    return not_planned("kv.v_head_dim", kv.v_head_dim, v_head_dim_);
  }
  const std::int64_t num_parts = static_cast<std::int64_t>(parts_.size());
  if (kv.num_parts != num_parts) return not_planned("kv.num_parts", kv.num_parts, num_parts);
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const KvPart& part = kv.parts[p];
    const auto name = [p](const char* field) {
      return "kv.parts[" + std::to_string(p) + "]" + field;
    };
    if (!(parts_[p] == PartShape{part.k_format, part.v_format, part.positions != nullptr})) {
      return not_planned(name(""), "other formats or positions", "those");
    }
    for (std::int32_t seq = 0; seq < num_seqs_; ++seq) {
      const PartLength& planned = lengths_[std::size_t(p) * num_seqs_ + seq];
      const auto index = [seq] { return "[" + std::to_string(seq) + "]"; };
      if (part.lengths[seq] != planned.length) {
        return not_planned(name(".lengths") + index(), part.lengths[seq], planned.length);
      }
      if (first_index_of(part, seq) != planned.first_index) {
        return not_planned(name(".first_position") + index(), first_index_of(part, seq),
                           planned.first_index);
      }
      if (first_visible_of(part, seq) != planned.first_visible) {
        return not_planned(name(".first_visible") + index(), first_visible_of(part, seq),
                           planned.first_visible);
      }
    }
  }

  if (options.causal != options_.causal) {
    return not_planned("options.causal", options.causal, options_.causal);
  }
  if (options.window != options_.window) {
    return not_planned("options.window", options.window, options_.window);
  }
  if (options.sink_tokens != options_.sink_tokens) {
    return not_planned("options.sink_tokens", options.sink_tokens, options_.sink_tokens);
  }
  if (options.softcap != options_.softcap) {
    return not_planned("options.softcap", std::to_string(options.softcap),
                       std::to_string(options_.softcap));
  }
  if (options.partial != options_.partial) {
    return not_planned("options.partial", options.partial, options_.partial);
  }
  if (options.reproducible != options_.reproducible) {
    return not_planned("options.reproducible", options.reproducible, options_.reproducible);
  }
  if (options.share_prefixes != options_.share_prefixes) {
    return not_planned("options.share_prefixes", options.share_prefixes, options_.share_prefixes);
  }
  if (options.backend != nullptr && std::strcmp(options.backend, backend_->name) != 0) {
    return not_planned("options.backend", options.backend, backend_->name);
  }
  return {};
}

Status Plan::run(const TensorView& q, const KvView& kv, const MutableTensorView& out,
                 const MutableTensorView& lse, const AttentionOptions& options,
                 const ExecContext& context) {
  KVC_RETURN_IF_ERROR(check_view(kv));
  KVC_RETURN_IF_ERROR(check_planned(kv, options));
  KVC_RETURN_IF_ERROR(check_options(options));
  KVC_RETURN_IF_ERROR(check_mask(options.mask, kv, qo_indptr_, num_heads_));
  AttentionProblem problem;
  KVC_RETURN_IF_ERROR(bind_problem(q, qo_indptr_, kv, out, lse, num_heads_, options, &problem));
  Executor& executor = context.get();
  if (executor.concurrency() > concurrency_) {
    return refusal("context.executor", "concurrency " + std::to_string(executor.concurrency()),
                   "at most " + std::to_string(concurrency_) + " as planned");
  }
  if (backend_->attention == nullptr) {
    run_reference(problem, executor);
  } else {
    run_kernels(problem, executor);
  }
  return {};
}

void Plan::run_reference(const AttentionProblem& problem, Executor& executor) {
  struct Job {
    const AttentionProblem& problem;
    Plan& plan;
  } job{problem, *this};
  executor.parallel_for(
      num_seqs_ * num_heads_,
      [](void* context, std::int64_t task, std::int32_t worker) noexcept {
        Job& self = *static_cast<Job*>(context);
        double* scratch = reinterpret_cast<double*>(self.plan.scratch_.as<std::byte>() +
                                                    worker * self.plan.layout_.bytes);
        const std::int32_t seq = static_cast<std::int32_t>(task / self.problem.num_heads);
        const std::int64_t head = task % self.problem.num_heads;
        for (std::int64_t query = 0; query < self.problem.num_queries(seq); ++query) {
          reference_row(self.problem, seq, query, head, scratch);
        }
      },
      &job);
}

void Plan::run_kernels(const AttentionProblem& problem, Executor& executor) {
  const std::vector<WorkGroup>& groups = work_.groups();
  for (std::size_t group = 0; group < groups.size(); ++group) {
    std::fill_n(items_left_.begin() + static_cast<std::ptrdiff_t>(group) * num_kv_heads_,
                num_kv_heads_, groups[group].num_items);
  }
  const Execution execution{problem,
                            *backend_->attention,
                            work_,
                            {options_.causal, options_.window, options_.sink_tokens},
                            prefetch_,
                            // A mask tells rows apart, and a view's tables need not be the planned.
                            !problem.mask.defined() && work_.shared_in(problem.kv),
                            layout_,
                            scratch_.as<std::byte>(),
                            workspace_.as<float>(),
                            items_left_.data()};
  struct Level {
    const Execution& execution;
    const WorkItem* items;
  };
  const WorkItem* const end = work_.items().data() + work_.items().size();
  for (const WorkItem* begin = work_.items().data(); begin != end;) {
    const WorkItem* next = begin + 1;
    while (next != end && work_.level_of(*next) == work_.level_of(*begin)) ++next;
    Level level{execution, begin};
    const auto run_task = [](void* context, std::int64_t task, std::int32_t worker) noexcept {
      const Level& self = *static_cast<const Level*>(context);
      const std::int64_t heads = self.execution.problem.kv.num_kv_heads;
      run_item(self.execution, self.items[task / heads], static_cast<std::int32_t>(task % heads),
               worker);
    };
    const std::int64_t num_tasks = (next - begin) * std::int64_t{num_kv_heads_};
    std::int64_t cost = 0;
    for (const WorkItem* item = begin; item != next; ++item) cost += item->cost;
    const std::int64_t products =
        cost * num_kv_heads_ * (problem.kv.k_head_dim + problem.kv.v_head_dim);
    if (products < kProductsAlone && &executor == &default_executor()) {
      for (std::int64_t task = 0; task < num_tasks; ++task) run_task(&level, task, 0);
    } else {
      executor.parallel_for(num_tasks, run_task, &level);
    }
    begin = next;
  }
}

}  // namespace kvcache::internal
