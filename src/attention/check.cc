#include "attention/check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/checked_math.h"
#include "base/expect.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

// Names are built for messages only: a check that passes allocates nothing.
std::string part_field(std::int32_t part, const char* field) {
  return "kv.parts[" + std::to_string(part) + "]." + field;
}

Status check_format(std::int32_t part, const char* field, const RowFormat& format) {
  if (format.kind != RowFormat::kStrided) {
    return refusal(StatusCode::kUnsupported, part_field(part, field) + ".kind",
                   static_cast<int>(format.kind), "kStrided");
  }
  if (!is_floating(format.dtype)) {
    return refusal(part_field(part, field) + ".dtype", name_of(format.dtype), "f32, f16 or bf16");
  }
  return {};
}

Status check_sequence(std::int32_t index, const KvPart& part, std::int32_t seq) {
  const auto name = [&](const char* field) {
    return part_field(index, field) + "[" + std::to_string(seq) + "]";
  };
  const std::int64_t length = part.lengths[seq];
  if (length < 0) return refusal(name("lengths"), length, ">= 0");
  if (part.first_position != nullptr && part.first_position[seq] < 0) {
    return refusal(name("first_position"), part.first_position[seq], ">= 0");
  }
  if (part.first_visible != nullptr && part.first_visible[seq] < 0) {
    return refusal(name("first_visible"), part.first_visible[seq], ">= 0");
  }
  if (length == 0) return {};
  if (part.block_table == nullptr) {
    if (length > part.page_size) {
      return refusal(
          name("lengths"), length,
          "at most page_size " + std::to_string(part.page_size) + " without a block_table");
    }
    return {};
  }
  const std::int64_t pages = ceil_div(length, part.page_size);
  if (pages > part.block_table_stride) {
    return refusal(part_field(index, "block_table_stride"), part.block_table_stride,
                   "at least " + std::to_string(pages) + " pages for the " +
                       std::to_string(length) + " rows of sequence " + std::to_string(seq));
  }
  const std::int32_t* table = part.block_table + seq * part.block_table_stride;
  for (std::int64_t page = 0; page < pages; ++page) {
    if (table[page] < 0) {
      return refusal(name("block_table") + "[" + std::to_string(page) + "]", table[page], ">= 0");
    }
  }
  return {};
}

Status check_part(const KvView& kv, std::int32_t index) {
  const KvPart& part = kv.parts[index];
  KVC_RETURN_IF_ERROR(check_format(index, "k_format", part.k_format));
  KVC_RETURN_IF_ERROR(check_format(index, "v_format", part.v_format));
  if (part.lengths == nullptr && kv.num_seqs > 0) {
    return refusal(part_field(index, "lengths"), "null", "[num_seqs]");
  }
  bool empty = true;
  for (std::int32_t seq = 0; seq < kv.num_seqs && empty; ++seq) empty = part.lengths[seq] == 0;
  if (empty) return {};
  if (part.page_size < 1) return refusal(part_field(index, "page_size"), part.page_size, ">= 1");
  if (part.k == nullptr) return refusal(part_field(index, "k"), "null", "rows");
  if (part.v == nullptr) return refusal(part_field(index, "v"), "null", "rows");
  for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
    KVC_RETURN_IF_ERROR(check_sequence(index, part, seq));
  }
  return {};
}

template <typename Byte, typename View>
void bind(const View& view, bool dense, bool has_dim, RowTensor<Byte>* tensor) {
  tensor->data = static_cast<Byte*>(view.data);
  tensor->dtype = view.dtype;
  int axis = 0;
  if (dense) {
    tensor->seq_stride = view.strides[axis++];
    tensor->head_stride = view.strides[axis++];
    tensor->query_stride = view.strides[axis++];
  } else {
    tensor->query_stride = view.strides[axis++];
    tensor->head_stride = view.strides[axis++];
  }
  if (has_dim) tensor->dim_stride = view.strides[axis];
}

}  // namespace

Status check_view(const KvView& kv) {
  if (kv.device.kind != DeviceKind::kCpu) {
    return refusal(StatusCode::kUnsupported, "kv.device",
                   "kind " + std::to_string(static_cast<int>(kv.device.kind)), "the CPU");
  }
  if (kv.num_seqs < 0) return refusal("kv.num_seqs", kv.num_seqs, ">= 0");
  if (kv.num_kv_heads < 1) return refusal("kv.num_kv_heads", kv.num_kv_heads, ">= 1");
  constexpr std::int32_t kMaxDim = 1 << 16;
  if (kv.k_head_dim < 1 || kv.k_head_dim > kMaxDim) {
    return refusal("kv.k_head_dim", kv.k_head_dim, "1 .. 65536");
  }
  if (kv.v_head_dim < 1 || kv.v_head_dim > kMaxDim) {
    return refusal("kv.v_head_dim", kv.v_head_dim, "1 .. 65536");
  }
  if (kv.num_parts < 0) return refusal("kv.num_parts", kv.num_parts, ">= 0");
  if (kv.num_parts > 0 && kv.parts == nullptr) {
    return refusal("kv.parts", "null", std::to_string(kv.num_parts) + " parts");
  }
  for (std::int32_t p = 0; p < kv.num_parts; ++p) KVC_RETURN_IF_ERROR(check_part(kv, p));
  return {};
}

Status check_qo_indptr(std::span<const std::int32_t> qo_indptr, std::int32_t num_seqs) {
  if (static_cast<std::int64_t>(qo_indptr.size()) != std::int64_t{num_seqs} + 1) {
    return refusal("qo_indptr", std::to_string(qo_indptr.size()) + " entries",
                   std::to_string(std::int64_t{num_seqs} + 1) + " (kv.num_seqs + 1)");
  }
  if (qo_indptr[0] != 0) return refusal("qo_indptr[0]", qo_indptr[0], "0");
  for (std::size_t i = 1; i < qo_indptr.size(); ++i) {
    if (qo_indptr[i] < qo_indptr[i - 1]) {
      return refusal("qo_indptr[" + std::to_string(i) + "]", qo_indptr[i],
                     "at least " + std::to_string(qo_indptr[i - 1]) + ", the entry before it");
    }
  }
  return {};
}

Status check_query_rows(const TensorView& q, std::span<const std::int32_t> qo_indptr) {
  std::int64_t rows = q.shape[0];
  if (q.rank == 4 && !checked_mul(q.shape[0], q.shape[2], &rows)) rows = -1;
  if (rows == qo_indptr.back()) return {};
  return refusal("q", describe(q),
                 "the " + std::to_string(qo_indptr.back()) + " rows of qo_indptr");
}

Status dense_qo_indptr(const TensorView& q, std::int32_t num_seqs,
                       std::vector<std::int32_t>* qo_indptr) {
  if (num_seqs < 0 || q.shape[0] != num_seqs) {
    return refusal("q", describe(q), "a batch of " + std::to_string(num_seqs) + " (kv.num_seqs)");
  }
  std::int64_t total = 0;
  if (!checked_mul(q.shape[0], q.shape[2], &total) ||
      total > std::numeric_limits<std::int32_t>::max()) {
    return refusal("q", describe(q), "fewer than 2^31 queries");
  }
  qo_indptr->clear();
  for (std::int64_t seq = 0; seq <= num_seqs; ++seq) {
    qo_indptr->push_back(static_cast<std::int32_t>(seq * q.shape[2]));
  }
  return {};
}

Status check_heads(std::int64_t num_heads, const KvView& kv) {
  constexpr std::int64_t kMaxHeads = 1 << 20;
  if (num_heads < 1 || num_heads > kMaxHeads || num_heads % kv.num_kv_heads != 0) {
    return refusal("num_heads", num_heads,
                   "a positive multiple of num_kv_heads " + std::to_string(kv.num_kv_heads));
  }
  return {};
}

Status check_options(const AttentionOptions& options) {
  if (options.scale && !std::isfinite(*options.scale)) {
    return refusal("options.scale", std::to_string(*options.scale), "a finite number");
  }
  if (!std::isfinite(options.softcap) || options.softcap < 0) {
    return refusal("options.softcap", std::to_string(options.softcap), "a finite number >= 0");
  }
  if (options.window < 0) return refusal("options.window", options.window, ">= 0");
  if (options.sink_tokens < 0) return refusal("options.sink_tokens", options.sink_tokens, ">= 0");
  return {};
}

Status check_mask(const TensorView& mask, const KvView& kv, std::span<const std::int32_t> qo_indptr,
                  std::int64_t num_heads) {
  if (!mask.defined()) return {};
  KVC_RETURN_IF_ERROR(expect_tensor("options.mask", mask));
  KVC_RETURN_IF_ERROR(expect_rank("options.mask", mask, 4));
  KVC_RETURN_IF_ERROR(expect_dtype("options.mask", mask, DType::kF32));
  std::int64_t queries = 0;
  std::int64_t keys = 0;
  for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
    const std::int64_t count = qo_indptr[seq + 1] - qo_indptr[seq];
    if (count == 0) continue;
    queries = std::max(queries, count);
    keys = std::max(keys, total_length(kv, seq));
  }
  const auto fits = [](std::int64_t found, std::int64_t all) { return found == 1 || found == all; };
  if (!fits(mask.shape[0], kv.num_seqs) || !fits(mask.shape[1], num_heads) ||
      mask.shape[2] < queries || mask.shape[3] < keys) {
    return refusal("options.mask", describe(mask),
                   "[1 or " + std::to_string(kv.num_seqs) + ", 1 or " + std::to_string(num_heads) +
                       ", >= " + std::to_string(queries) + ", >= " + std::to_string(keys) + "]");
  }
  return {};
}

Status bind_problem(const TensorView& q, std::span<const std::int32_t> qo_indptr, const KvView& kv,
                    const MutableTensorView& out, const MutableTensorView& lse,
                    std::int64_t num_heads, const AttentionOptions& options,
                    AttentionProblem* problem) {
  KVC_RETURN_IF_ERROR(expect_tensor("q", q));
  KVC_RETURN_IF_ERROR(expect_tensor("out", out));
  KVC_RETURN_IF_ERROR(expect_dtype_floating("q", q));
  KVC_RETURN_IF_ERROR(expect_dtype_floating("out", out));
  const bool dense = q.rank == 4;
  if (dense) {
    const std::int64_t length = q.shape[2];
    for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
      const std::int64_t count = qo_indptr[seq + 1] - qo_indptr[seq];
      if (count != length) {
        return refusal("q", describe(q),
                       "[total_q, num_heads, k_head_dim], because sequence " + std::to_string(seq) +
                           " has " + std::to_string(count) + " queries");
      }
    }
    KVC_RETURN_IF_ERROR(expect_shape("q", q, {kv.num_seqs, num_heads, length, kv.k_head_dim}));
    KVC_RETURN_IF_ERROR(expect_shape("out", out, {kv.num_seqs, num_heads, length, kv.v_head_dim}));
  } else {
    const std::int64_t total = qo_indptr.back();
    KVC_RETURN_IF_ERROR(expect_shape("q", q, {total, num_heads, kv.k_head_dim}));
    KVC_RETURN_IF_ERROR(expect_shape("out", out, {total, num_heads, kv.v_head_dim}));
  }
  if (lse.defined()) {
    KVC_RETURN_IF_ERROR(expect_tensor("lse", lse));
    KVC_RETURN_IF_ERROR(expect_dtype("lse", lse, DType::kF32));
    if (dense) {
      KVC_RETURN_IF_ERROR(expect_shape("lse", lse, {kv.num_seqs, num_heads, q.shape[2]}));
    } else {
      KVC_RETURN_IF_ERROR(expect_shape("lse", lse, {qo_indptr.back(), num_heads}));
    }
  }

  *problem = AttentionProblem();
  problem->kv = kv;
  problem->qo_indptr = qo_indptr.data();
  problem->num_heads = num_heads;
  problem->dense = dense;
  bind(q, dense, true, &problem->q);
  bind(out, dense, true, &problem->out);
  if (lse.defined()) bind(lse, dense, false, &problem->lse);
  problem->scale =
      options.scale ? *options.scale : 1.0f / std::sqrt(static_cast<float>(kv.k_head_dim));
  problem->softcap = options.softcap;
  problem->causal = options.causal;
  problem->reproducible = options.reproducible;
  problem->window = options.window;
  problem->sink_tokens = options.sink_tokens;
  problem->alibi_slopes = options.alibi_slopes;
  problem->sinks = options.partial ? nullptr : options.sinks;
  problem->mask = options.mask;
  return {};
}

}  // namespace kvcache::internal
