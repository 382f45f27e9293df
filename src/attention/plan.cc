#include "attention/plan.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "attention/check.h"
#include "attention/cpu/prefetch.h"
#include "attention/visible.h"
#include "base/expect.h"
#include "kernels/select.h"

namespace kvcache::internal {
namespace {

Status not_planned(const Word& name, const Word& found, const Word& expected) {
  return refusal(name, found, expected.text() + " as planned");
}

// Of the keys of the first part: all parts of a view have rows alike, or nearly.
std::int64_t row_bytes(const KvView& view) {
  return view.num_parts == 0 ? 0 : view.parts[0].k.format.bytes(view.k_head_dim);
}

bool has_codes(const KvView& view) {
  return std::any_of(view.parts, view.parts + view.num_parts, [](const KvPart& part) {
    return part.k.format.is_coded() || part.v.format.is_coded();
  });
}

VisibilityRules rules_of(const AttentionOptions& options) noexcept {
  return {options.causal, options.window, options.sink_tokens, options.chunk};
}

}  // namespace

Status Plan::plan(const KvView& like, std::span<const std::int32_t> qo_indptr,
                  std::int64_t num_heads, const AttentionOptions& options,
                  const ExecContext& context) {
  KVC_RETURN_IF_ERROR(check_view(like));
  KVC_RETURN_IF_ERROR(check_qo_indptr(qo_indptr, like.num_seqs));
  KVC_RETURN_IF_ERROR(check_heads(num_heads, like));
  KVC_RETURN_IF_ERROR(check_options(options));
  const VisibilityRules rules = rules_of(options);
  KVC_RETURN_IF_ERROR(check_held(like, qo_indptr, rules));
  KVC_RETURN_IF_ERROR(check_mask(options.mask, like, qo_indptr, num_heads));
  const Backend* backend = nullptr;
  KVC_RETURN_IF_ERROR(select_backend(options.backend, like.device, &backend));
  std::int64_t rows = 0;  // that are seen
  for (std::int32_t seq = 0; seq < like.num_seqs; ++seq) {
    rows += count_visible_rows(like, seq, qo_indptr[seq + 1] - qo_indptr[seq], rules);
  }
  Prefetch prefetch = Prefetch::kNone;
  KVC_RETURN_IF_ERROR(select_prefetch(
      *backend, {row_bytes(like), 2 * rows * like.num_kv_heads * row_bytes(like), has_codes(like)},
      &prefetch));

  // Room first, then changes that cannot fail.
  const std::int32_t concurrency = context.get().concurrency();
  WorkShape shape;
  shape.group = num_heads / like.num_kv_heads;
  shape.num_kv_heads = like.num_kv_heads;
  shape.v_dim = like.v_head_dim;
  shape.concurrency = concurrency;
  shape.reproducible = options.reproducible;
  shape.rules = rules;
  prefixes_.find(like, qo_indptr,
                 {options.share_prefixes && !rules.local(), options.causal, options.reproducible,
                  tile_queries(shape.group)});
  WorkSize size;
  KVC_RETURN_IF_ERROR(measure_work(like, qo_indptr, prefixes_, shape, &size));
  PlanView view;
  view.backend = backend;
  view.group = shape.group;
  view.num_kv_heads = like.num_kv_heads;
  view.k_head_dim = like.k_head_dim;
  view.v_head_dim = like.v_head_dim;
  view.concurrency = concurrency;
  view.rules = shape.rules;
  view.size = size;
  view.prefetch = prefetch;
  KVC_ASSIGN_OR_RETURN(const std::int64_t bytes, attention_of(*backend).workspace(view));
  work_.reserve(size);
  const std::int64_t pairs = std::int64_t{like.num_parts} * like.num_seqs;
  lengths_.reserve(static_cast<std::size_t>(pairs));
  parts_.reserve(static_cast<std::size_t>(like.num_parts));
  qo_indptr_.reserve(qo_indptr.size());
  KVC_RETURN_IF_ERROR(workspace_.reserve(bytes));

  backend_ = backend;
  num_seqs_ = like.num_seqs;
  num_kv_heads_ = like.num_kv_heads;
  k_head_dim_ = like.k_head_dim;
  v_head_dim_ = like.v_head_dim;
  num_heads_ = num_heads;
  options_ = options;
  view_ = view;
  qo_indptr_.assign(qo_indptr.begin(), qo_indptr.end());
  parts_.clear();
  lengths_.clear();
  for (std::int32_t p = 0; p < like.num_parts; ++p) {
    const KvPart& part = like.parts[p];
    parts_.push_back(shape_of(part));
    for (std::int32_t seq = 0; seq < like.num_seqs; ++seq) {
      lengths_.push_back({part.lengths[seq],
                          part.first_position == nullptr ? 0 : part.first_position[seq],
                          part.first_visible == nullptr ? 0 : part.first_visible[seq],
                          part.hole_pages == nullptr ? 0 : part.hole_begin[seq],
                          part.hole_pages == nullptr ? 0 : part.hole_pages[seq],
                          part.first_held == nullptr ? 0 : part.first_held[seq]});
    }
  }
  work_.fill(like, qo_indptr_, prefixes_, shape, size);
  rows_read_ = rows;
  for (const SharedRun& run : prefixes_.runs()) rows_read_ -= (run.end - run.begin - 1) * run.keys;
  return {};
}

Plan::PartShape Plan::shape_of(const KvPart& part) noexcept {
  return {part.k.format,
          part.v.format,
          part.positions != nullptr,
          part.held_window,
          part.held_sink_tokens,
          part.held_chunk,
          part.hole_pages == nullptr ? 0 : part.page_size};
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
    if (!(parts_[p] == shape_of(part))) {
      return not_planned(name(""), "other formats, positions or held rows", "those");
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
      if (hole_begin_of(part, seq) != planned.hole_begin) {
        return not_planned(name(".hole_begin") + index(), hole_begin_of(part, seq),
                           planned.hole_begin);
      }
      if (hole_pages_of(part, seq) != planned.hole_pages) {
        return not_planned(name(".hole_pages") + index(), hole_pages_of(part, seq),
                           planned.hole_pages);
      }
      if (first_held_of(part, seq) != planned.first_held) {
        return not_planned(name(".first_held") + index(), first_held_of(part, seq),
                           planned.first_held);
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
  if (options.chunk != options_.chunk) {
    return not_planned("options.chunk", options.chunk, options_.chunk);
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

Status Plan::check_fits(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                        std::int64_t num_heads, const AttentionOptions& options,
                        const ExecContext& context) const {
  KVC_RETURN_IF_ERROR(check_view(kv));
  KVC_RETURN_IF_ERROR(check_planned(kv, options));
  if (num_heads != num_heads_) return not_planned("num_heads", num_heads, num_heads_);
  if (!std::equal(qo_indptr.begin(), qo_indptr.end(), qo_indptr_.begin(), qo_indptr_.end())) {
    return not_planned("qo_indptr", "others", "those");
  }
  const std::int32_t concurrency = context.get().concurrency();
  if (concurrency != view_.concurrency) {
    return not_planned("context.executor", concurrency, view_.concurrency);
  }
  const Backend* backend = nullptr;
  KVC_RETURN_IF_ERROR(select_backend(options.backend, kv.device, &backend));
  if (backend != backend_) return not_planned("options.backend", backend->name, backend_->name);
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
  const Executor& executor = context.get();
  if (executor.concurrency() > view_.concurrency) {
    return refusal("context.executor", "concurrency " + std::to_string(executor.concurrency()),
                   "at most " + std::to_string(view_.concurrency) + " as planned");
  }
  PlanView view = view_;  // a plan may have been moved
  view.work = &work_;
  view.workspace = workspace_.as<std::byte>();
  return attention_of(*backend_).run(view, problem, context);
}

}  // namespace kvcache::internal
