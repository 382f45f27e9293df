// The split of a step's attention into work items, with its workspace: what AttentionPlan holds.
#ifndef KVCACHE_SRC_ATTENTION_PLAN_H_
#define KVCACHE_SRC_ATTENTION_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "attention/backend.h"
#include "attention/cpu/work.h"
#include "attention/prefixes.h"
#include "attention/problem.h"
#include "base/aligned_buffer.h"
#include "kernels/backend.h"
#include "kvcache/attention.h"
#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// See AttentionPlan. May throw bad_alloc, the plan being as before: call it inside at_door.
class Plan {
 public:
  Status plan(const KvView& like, std::span<const std::int32_t> qo_indptr, std::int64_t num_heads,
              const AttentionOptions& options, const ExecContext& context);

  // Errors: kInvalidArgument where plan() would make another plan of these.
  Status check_fits(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                    std::int64_t num_heads, const AttentionOptions& options,
                    const ExecContext& context) const;

  Status run(const TensorView& q, const KvView& kv, const MutableTensorView& out,
             const MutableTensorView& lse, const AttentionOptions& options,
             const ExecContext& context);

  std::int64_t rows_read() const noexcept { return rows_read_; }
  const char* backend() const noexcept { return backend_ == nullptr ? "" : backend_->name; }

 private:
  // What of a part and a sequence must be at run() as it was at plan().
  struct PartLength {
    std::int32_t length = 0;
    std::int32_t first_index = 0;
    std::int32_t first_visible = 0;
    std::int32_t hole_begin = 0, hole_pages = 0;
    std::int32_t first_held = 0;

    friend bool operator==(const PartLength&, const PartLength&) = default;
  };
  struct PartShape {
    RowFormat k, v;
    bool has_positions = false;
    std::int32_t held_window = 0, held_sink_tokens = 0, held_chunk = 0;
    std::int32_t page_size = 0;  // where there are holes, which are in pages

    friend bool operator==(const PartShape&, const PartShape&) = default;
  };

  static PartShape shape_of(const KvPart& part) noexcept;
  Status check_planned(const KvView& kv, const AttentionOptions& options) const;

  const Backend* backend_ = nullptr;
  std::int32_t num_seqs_ = 0;
  std::int32_t num_kv_heads_ = 0;
  std::int32_t k_head_dim_ = 0;
  std::int32_t v_head_dim_ = 0;
  std::int64_t num_heads_ = 0;
  AttentionOptions options_;  // its scalars
  std::int64_t rows_read_ = 0;
  std::vector<std::int32_t> qo_indptr_;
  std::vector<PartLength> lengths_;  // [num_parts, num_seqs]
  std::vector<PartShape> parts_;

  SharedPrefixes prefixes_;  // for plan() alone
  WorkList work_;
  PlanView view_;
  AlignedBuffer workspace_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_PLAN_H_
