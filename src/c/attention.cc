// The C door to views and attention.
#include <memory>
#include <span>

#include "c/door.h"

using kvcache::AttentionOptions;
using kvcache::DType;
using kvcache::KvPart;
using kvcache::MutableTensorView;
using kvcache::Status;
using kvcache::strided_rows;
using kvcache::TensorView;
using kvcache::internal::c_call;
using kvcache::internal::dtype_of;
using kvcache::internal::expect_array;
using kvcache::internal::expect_not_null;
using kvcache::internal::expect_unused;
using kvcache::internal::ForeignExecutor;
using kvcache::internal::read_struct;
using kvcache::internal::tensor_of;

struct kvc_plan {
  kvcache::AttentionPlan plan;
};

namespace {

Status part_of(const kvc_part& from, KvPart* part) {
  KVC_ASSIGN_OR_RETURN(const DType k_dtype, dtype_of("parts.k", from.k_dtype));
  KVC_ASSIGN_OR_RETURN(const DType v_dtype, dtype_of("parts.v", from.v_dtype));
  part->k =
      strided_rows(from.k, k_dtype, from.k_page_stride, from.k_head_stride, from.k_token_stride);
  part->v =
      strided_rows(from.v, v_dtype, from.v_page_stride, from.v_head_stride, from.v_token_stride);
  part->page_size = from.page_size;
  part->block_table = from.block_table;
  part->block_table_stride = from.block_table_stride;
  part->lengths = from.lengths;
  part->first_position = from.first_position;
  part->first_visible = from.first_visible;
  part->positions = from.positions;
  part->positions_stride = from.positions_stride;
  part->hole_begin = from.hole_begin;
  part->hole_pages = from.hole_pages;
  part->first_held = from.first_held;
  part->held_window = from.held_window;
  part->held_sink_tokens = from.held_sink_tokens;
  part->held_chunk = from.held_chunk;
  return expect_unused("parts.reserved", from.reserved);
}

Status options_of(const kvc_attention_options* options, AttentionOptions* to) {
  if (options == nullptr) return {};
  kvc_attention_options from;
  KVC_RETURN_IF_ERROR(read_struct("options", options, &from));
  if (from.scale != 0) to->scale = from.scale;
  to->softcap = from.softcap;
  to->causal = from.bidirectional == 0;
  to->window = from.window;
  to->sink_tokens = from.sink_tokens;
  to->chunk = from.chunk;
  to->partial = from.partial != 0;
  to->reproducible = from.reproducible != 0;
  to->alibi_slopes = from.alibi_slopes;
  to->sinks = from.sinks;
  KVC_ASSIGN_OR_RETURN(to->mask, tensor_of("options.mask", from.mask, true));
  to->backend = from.backend;
  to->share_prefixes = from.separate_prefixes == 0;
  return {};
}

// Empty for null.
std::span<const std::int32_t> indptr_of(const std::int32_t* qo_indptr, const kvc_view& kv) {
  if (qo_indptr == nullptr) return {};
  return {qo_indptr, static_cast<std::size_t>(kv.view.num_seqs) + 1};
}

// What kvc_attend and kvc_plan_run take.
struct Arguments {
  MutableTensorView q, out, lse;
  AttentionOptions options;
  ForeignExecutor executor;

  Status read(const kvc_tensor* q_in, const kvc_view* kv, const kvc_tensor* out_in,
              const kvc_tensor* lse_in, const kvc_attention_options* options_in,
              const kvc_executor* executor_in) {
    KVC_RETURN_IF_ERROR(expect_not_null("kv", kv));
    KVC_ASSIGN_OR_RETURN(q, tensor_of("q", q_in));
    KVC_ASSIGN_OR_RETURN(out, tensor_of("out", out_in));
    KVC_ASSIGN_OR_RETURN(lse, tensor_of("lse", lse_in, true));
    KVC_RETURN_IF_ERROR(options_of(options_in, &options));
    return executor.adopt(executor_in);
  }
};

}  // namespace

kvc_status kvc_view_create(const kvc_view_desc* desc, kvc_view** view) {
  return c_call([&]() -> Status {
    kvc_view_desc from;
    KVC_RETURN_IF_ERROR(read_struct("desc", desc, &from));
    KVC_RETURN_IF_ERROR(expect_not_null("view", view));
    KVC_RETURN_IF_ERROR(expect_array("seqs", &from, from.num_seqs));
    auto made = std::make_unique<kvc_view>();
    KVC_RETURN_IF_ERROR(kvcache::internal::for_each_struct(
        "parts", from.parts, from.num_parts, [&](std::int64_t, const kvc_part& part) {
          made->parts.emplace_back();
          return part_of(part, &made->parts.back());
        }));
    made->view.num_seqs = from.num_seqs;
    made->view.num_kv_heads = from.num_kv_heads;
    made->view.k_head_dim = from.k_head_dim;
    made->view.v_head_dim = from.v_head_dim;
    made->view.num_parts = from.num_parts;
    made->view.parts = made->parts.data();
    *view = made.release();
    return {};
  });
}

void kvc_view_free(kvc_view* view) { delete view; }

kvc_status kvc_attend(const kvc_tensor* q, const int32_t* qo_indptr, const kvc_view* kv,
                      const kvc_tensor* out, const kvc_tensor* lse,
                      const kvc_attention_options* options, const kvc_executor* executor) {
  return c_call([&]() -> Status {
    Arguments args;
    KVC_RETURN_IF_ERROR(args.read(q, kv, out, lse, options, executor));
    return kvcache::attend(args.q, indptr_of(qo_indptr, *kv), kv->view, args.out, args.lse,
                           args.options, args.executor.context());
  });
}

kvc_status kvc_plan_create(kvc_plan** plan) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("plan", plan));
    *plan = std::make_unique<kvc_plan>().release();
    return {};
  });
}

void kvc_plan_free(kvc_plan* plan) { delete plan; }

kvc_status kvc_plan_prepare(kvc_plan* plan, const kvc_view* like, const int32_t* qo_indptr,
                            int64_t num_heads, const kvc_attention_options* options,
                            const kvc_executor* executor) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("plan", plan));
    KVC_RETURN_IF_ERROR(expect_not_null("like", like));
    KVC_RETURN_IF_ERROR(expect_not_null("qo_indptr", qo_indptr));
    AttentionOptions wanted;
    KVC_RETURN_IF_ERROR(options_of(options, &wanted));
    ForeignExecutor host;
    KVC_RETURN_IF_ERROR(host.adopt(executor));
    return plan->plan.plan(like->view, indptr_of(qo_indptr, *like), num_heads, wanted,
                           host.context());
  });
}

kvc_status kvc_plan_run(kvc_plan* plan, const kvc_tensor* q, const kvc_view* kv,
                        const kvc_tensor* out, const kvc_tensor* lse,
                        const kvc_attention_options* options, const kvc_executor* executor) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("plan", plan));
    Arguments args;
    KVC_RETURN_IF_ERROR(args.read(q, kv, out, lse, options, executor));
    return plan->plan.run(args.q, kv->view, args.out, args.lse, args.options,
                          args.executor.context());
  });
}

int64_t kvc_plan_rows_read(const kvc_plan* plan) {
  return plan == nullptr ? 0 : plan->plan.rows_read();
}

const char* kvc_plan_backend(const kvc_plan* plan) {
  return plan == nullptr ? "" : plan->plan.backend();
}

kvc_status kvc_merge(const kvc_tensor* out_a, const kvc_tensor* lse_a, const kvc_tensor* out_b,
                     const kvc_tensor* lse_b, const kvc_tensor* out, const kvc_tensor* lse) {
  return c_call([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(const MutableTensorView a, tensor_of("out_a", out_a));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView a_lse, tensor_of("lse_a", lse_a));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView b, tensor_of("out_b", out_b));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView b_lse, tensor_of("lse_b", lse_b));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView both, tensor_of("out", out));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView both_lse, tensor_of("lse", lse));
    return kvcache::merge(a, a_lse, b, b_lse, both, both_lse);
  });
}

kvc_status kvc_finish(const kvc_tensor* out, const kvc_tensor* lse, const float* sinks,
                      int64_t num_heads) {
  return c_call([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(const MutableTensorView merged, tensor_of("out", out));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView merged_lse, tensor_of("lse", lse));
    KVC_RETURN_IF_ERROR(expect_array("sinks", sinks, num_heads));
    return kvcache::finish(merged, merged_lse, {sinks, static_cast<std::size_t>(num_heads)});
  });
}
