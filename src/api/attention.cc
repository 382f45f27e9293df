// Attention at the public door: out-of-memory becomes a Status, the plan hides behind a pimpl.
#include "kvcache/attention.h"

#include <new>
#include <utility>
#include <vector>

#include "attention/check.h"
#include "attention/merge.h"
#include "attention/plan.h"
#include "base/door.h"
#include "base/expect.h"
#include "tensor/strides.h"

namespace kvcache {
inline namespace v1 {

struct AttentionPlan::Impl {
  internal::Plan plan;
};

AttentionPlan::AttentionPlan() noexcept = default;
AttentionPlan::AttentionPlan(AttentionPlan&&) noexcept = default;
AttentionPlan& AttentionPlan::operator=(AttentionPlan&&) noexcept = default;
AttentionPlan::~AttentionPlan() = default;

Status AttentionPlan::plan(const KvView& like, std::span<const std::int32_t> qo_indptr,
                           std::int64_t num_heads, const AttentionOptions& options,
                           const ExecContext& context) {
  return internal::at_door([&]() -> Status {
    if (impl_ == nullptr) impl_ = std::make_unique<Impl>();
    return impl_->plan.plan(like, qo_indptr, num_heads, options, context);
  });
}

bool AttentionPlan::fits(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                         std::int64_t num_heads, const AttentionOptions& options,
                         const ExecContext& context) const noexcept {
  if (impl_ == nullptr) return false;
  return internal::at_door([&]() -> Status {
           return impl_->plan.check_fits(kv, qo_indptr, num_heads, options, context);
         })
      .ok();
}

Status AttentionPlan::run(const TensorView& q, const KvView& kv, const MutableTensorView& out,
                          const MutableTensorView& lse, const AttentionOptions& options,
                          const ExecContext& context) {
  return internal::at_door([&]() -> Status {
    if (impl_ == nullptr) {
      return internal::refusal("run", "no plan", "plan() before it");
    }
    return impl_->plan.run(q, kv, out, lse, options, context);
  });
}

std::int64_t AttentionPlan::rows_read() const noexcept {
  return impl_ == nullptr ? 0 : impl_->plan.rows_read();
}

const char* AttentionPlan::backend() const noexcept {
  return impl_ == nullptr ? "" : impl_->plan.backend();
}

Status attend(const TensorView& q, std::span<const std::int32_t> qo_indptr, const KvView& kv,
              const MutableTensorView& out, const MutableTensorView& lse,
              const AttentionOptions& options, const ExecContext& context) {
  return internal::at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(internal::expect_tensor("q", q));
    std::vector<std::int32_t> dense;
    if (qo_indptr.empty()) {
      KVC_RETURN_IF_ERROR(internal::expect_rank("q", q, 4));
      KVC_RETURN_IF_ERROR(internal::dense_qo_indptr(q, kv.num_seqs, &dense));
      qo_indptr = dense;
    } else {
      if (q.rank != 4) KVC_RETURN_IF_ERROR(internal::expect_rank("q", q, 3));
      // Before work is laid out for queries that are not there.
      KVC_RETURN_IF_ERROR(internal::check_qo_indptr(qo_indptr, kv.num_seqs));
      KVC_RETURN_IF_ERROR(internal::check_query_rows(q, qo_indptr));
    }
    internal::Plan plan;
    KVC_RETURN_IF_ERROR(plan.plan(kv, qo_indptr, q.shape[1], options, context));
    return plan.run(q, kv, out, lse, options, context);
  });
}

Status merge(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
             const TensorView& lse_b, const MutableTensorView& out, const MutableTensorView& lse) {
  return internal::at_door(
      [&]() -> Status { return internal::merge_parts(out_a, lse_a, out_b, lse_b, out, lse); });
}

Status finish(const MutableTensorView& out, const TensorView& lse, std::span<const float> sinks) {
  return internal::at_door([&]() -> Status { return internal::finish_parts(out, lse, sinks); });
}

}  // namespace v1
}  // namespace kvcache
