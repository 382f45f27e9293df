#include "attention/check.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>

#include "base/checked_math.h"
#include "base/expect.h"
#include "kernels/select.h"
#include "tensor/codecs/codec.h"
#include "tensor/overlap.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

// Names are built for messages only: a check that passes allocates nothing.
std::string part_field(std::int32_t part, const char* field) {
  return "kv.parts[" + std::to_string(part) + "]." + field;
}

// `rotated`: whether the rows of the part before are.
Status check_format(std::int32_t part, const char* field, const RowFormat& format, std::int64_t dim,
                    bool rotated) {
  if (format.kind > RowFormat::kQ4_0) {
    return refusal(StatusCode::kUnsupported, part_field(part, field) + ".kind",
                   static_cast<int>(format.kind), "a kind of RowFormat");
  }
  if (!is_floating(format.dtype)) {
    return refusal(part_field(part, field) + ".dtype", name_of(format.dtype), "f32, f16 or bf16");
  }
  if (const char* const wanted = wanted_elements(format, dim); wanted != nullptr) {
    return refusal(part_field(part, field), std::to_string(dim) + " elements",
                   std::string(wanted) + " for " + name_of(format.kind));
  }
  if (format.rotate == rotated) return {};
  return refusal(part_field(part, field) + ".rotate", format.rotate ? "true" : "false",
                 std::string(rotated ? "true" : "false") + ", as in the part before it");
}

Status check_rows(std::int32_t part, const char* field, const RowsView& rows) {
  if (rows.chunks == nullptr && rows.data == nullptr) {
    return refusal(part_field(part, field), "null", "rows");
  }
  if (rows.chunk_shift < 0 || rows.chunk_shift > 31) {
    return refusal(part_field(part, field) + ".chunk_shift", rows.chunk_shift, "0 .. 31");
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
  const std::int64_t all = length == 0 ? 0 : ceil_div(length, part.page_size);
  if (hole_begin_of(part, seq) < 0)
    return refusal(name("hole_begin"), part.hole_begin[seq], ">= 0");
  if (const std::int64_t gone = hole_pages_of(part, seq);
      gone < 0 || hole_begin_of(part, seq) > all - gone) {
    return refusal(
        name("hole_pages"), gone,
        "0 .. " + std::to_string(std::max<std::int64_t>(0, all - hole_begin_of(part, seq))));
  }
  if (first_held_of(part, seq) < 0 || first_held_of(part, seq) > length) {
    return refusal(name("first_held"), first_held_of(part, seq), "0 .. " + std::to_string(length));
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
  const std::int64_t pages = num_entries(part, seq);
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

Status check_holes(std::int32_t index, const KvPart& part) {
  const auto negative = [&](const char* field, std::int32_t found) {
    return refusal(part_field(index, field), found, ">= 0");
  };
  if (part.held_window < 0) return negative("held_window", part.held_window);
  if (part.held_sink_tokens < 0) return negative("held_sink_tokens", part.held_sink_tokens);
  if (part.held_chunk < 0) return negative("held_chunk", part.held_chunk);
  if (part.hole_pages == nullptr) return {};
  if (part.hole_begin == nullptr) {
    return refusal(part_field(index, "hole_begin"), "null", "[num_seqs] beside hole_pages");
  }
  if (part.block_table == nullptr) {
    return refusal(part_field(index, "hole_pages"), "holes", "none without a block_table");
  }
  if (part.positions != nullptr) {
    return refusal(part_field(index, "hole_pages"), "holes", "none beside positions of each row");
  }
  return {};
}

Status check_part(const KvView& kv, std::int32_t index) {
  const KvPart& part = kv.parts[index];
  const KvPart& before = kv.parts[index == 0 ? 0 : index - 1];
  KVC_RETURN_IF_ERROR(
      check_format(index, "k.format", part.k.format, kv.k_head_dim, before.k.format.rotate));
  KVC_RETURN_IF_ERROR(
      check_format(index, "v.format", part.v.format, kv.v_head_dim, before.v.format.rotate));
  if (part.lengths == nullptr && kv.num_seqs > 0) {
    return refusal(part_field(index, "lengths"), "null", "[num_seqs]");
  }
  bool empty = true;
  for (std::int32_t seq = 0; seq < kv.num_seqs && empty; ++seq) empty = part.lengths[seq] == 0;
  KVC_RETURN_IF_ERROR(check_holes(index, part));
  if (empty) return {};
  if (part.page_size < 1) return refusal(part_field(index, "page_size"), part.page_size, ">= 1");
  KVC_RETURN_IF_ERROR(check_rows(index, "k", part.k));
  KVC_RETURN_IF_ERROR(check_rows(index, "v", part.v));
  for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
    KVC_RETURN_IF_ERROR(check_sequence(index, part, seq));
  }
  return {};
}

// Whether `out` lies on q row by row: each row is read before its result is written.
bool is_on_rows_of(const TensorView& out, const TensorView& q) {
  if (out.data != q.data || out.dtype != q.dtype || out.rank != q.rank) return false;
  const int dim = q.rank - 1;
  if (out.shape[dim] > q.shape[dim]) return false;
  for (int axis = 0; axis < q.rank; ++axis) {
    if (out.strides[axis] != q.strides[axis] && out.shape[axis] > 1) return false;
  }
  return true;
}

// Whether `view` shares memory with a row of the part's K or V that some sequence has.
bool overlaps_rows(const TensorView& view, const KvView& kv, const KvPart& part,
                   const RowsView& rows, std::int64_t dim) {
  const std::int64_t size = size_of(rows.format.dtype);
  TensorView page(nullptr, rows.format.dtype, {1, kv.num_kv_heads, part.page_size, dim});
  page.strides[1] = rows.head_stride / size;
  page.strides[2] = rows.token_stride / size;
  page.strides[3] = 1;
  // fn(page id, rows of it) for every page of every sequence.
  const auto for_each_page = [&](auto&& fn) {
    for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
      const std::int32_t* const table =
          part.block_table == nullptr ? &seq : part.block_table + seq * part.block_table_stride;
      if (part.lengths[seq] == 0) continue;
      const std::int64_t gone = hole_pages_of(part, seq);
      const std::int64_t entries = num_entries(part, seq);
      for (std::int64_t i = 0; i < entries; ++i) {
        const std::int64_t first = (i < hole_begin_of(part, seq) ? i : i + gone) * part.page_size;
        fn(table[i], std::min<std::int64_t>(part.lengths[seq] - first, part.page_size));
      }
    }
  };
  // Codes and scales of a page are taken for all that lies between the first and the last.
  if (rows.format.is_coded()) {
    const ByteSpan given = byte_span(view);
    const auto meets = [&](const std::byte* begin, std::int64_t bytes) {
      return intersect(
          given, {reinterpret_cast<std::uintptr_t>(begin), static_cast<std::uint64_t>(bytes)});
    };
    bool found = false;
    for_each_page([&](std::int64_t id, std::int64_t count) {
      const std::int64_t heads = kv.num_kv_heads;
      found = found || meets(rows.page_at(id), (heads - 1) * rows.head_stride +
                                                   (count - 1) * rows.token_stride +
                                                   rows.format.code_bytes(dim));
      if (rows.scale_page_stride == 0) return;
      const std::int64_t scales = (heads - 1) * rows.scale_head_stride +
                                  (rows.format.num_scales(dim) - 1) * rows.scale_group_stride +
                                  2 * count;
      found = found || meets(rows.scales_at(id, 0), scales);
      if (rows.format.has_zeros()) found = found || meets(rows.zeros_at(id, 0), scales / 2);
    });
    return found;
  }
  // All memory between the lowest and the highest page first.
  const std::byte* lowest = nullptr;
  const std::byte* highest = nullptr;
  for_each_page([&](std::int64_t id, std::int64_t) {
    const std::byte* const start = rows.page_at(id);
    if (lowest == nullptr || std::less<>()(start, lowest)) lowest = start;
    if (highest == nullptr || std::less<>()(highest, start)) highest = start;
  });
  if (lowest == nullptr) return false;
  page.data = lowest;
  ByteSpan all = byte_span(page);
  page.data = highest;
  const ByteSpan last = byte_span(page);
  all.bytes = last.begin + last.bytes - all.begin;
  if (!intersect(byte_span(view), all)) return false;

  bool found = false;
  for_each_page([&](std::int64_t id, std::int64_t count) {
    page.data = rows.page_at(id);
    page.shape[2] = count;
    found = found || overlap(view, page);
  });
  return found;
}

bool overlaps_rows(const TensorView& view, const KvView& kv) {
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const KvPart& part = kv.parts[p];
    if (overlaps_rows(view, kv, part, part.k, kv.k_head_dim) ||
        overlaps_rows(view, kv, part, part.v, kv.v_head_dim)) {
      return true;
    }
  }
  return false;
}

// What is written to, against all that is read: results appear while others are still computed.
Status check_results(const TensorView& q, const KvView& kv, const TensorView& out,
                     const TensorView& lse, std::int64_t num_heads,
                     const AttentionOptions& options) {
  const auto shared = [](const char* name, const char* with, const char* or_else = "") {
    return refusal(name, std::string("memory of ") + with,
                   std::string(or_else) + "memory of its own");
  };
  if (overlaps_itself(out)) return refusal("out", "elements that share memory", "each in its own");
  if (!is_on_rows_of(out, q) && overlap(out, q)) return shared("out", "q", "q itself or ");
  if (overlaps_rows(out, kv)) return shared("out", "the keys and values");
  if (lse.defined()) {
    if (overlaps_itself(lse))
      return refusal("lse", "elements that share memory", "each in its own");
    if (overlap(lse, out)) return shared("lse", "out");
    if (overlap(lse, q)) return shared("lse", "q");
    if (overlaps_rows(lse, kv)) return shared("lse", "the keys and values");
  }
  const auto values = [num_heads](const float* data) {
    return data == nullptr ? TensorView() : TensorView(data, DType::kF32, {num_heads});
  };
  const std::pair<const char*, TensorView> read[] = {
      {"the mask", options.mask},
      {"the ALiBi slopes", values(options.alibi_slopes)},
      {"the sinks", values(options.sinks)}};
  for (const auto& [with, view] : read) {
    if (!view.defined()) continue;
    if (overlap(out, view)) return shared("out", with);
    if (lse.defined() && overlap(lse, view)) return shared("lse", with);
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
  KVC_RETURN_IF_ERROR(expect_backend("kv.device", kv.device));
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
  if (options.chunk < 0) return refusal("options.chunk", options.chunk, ">= 0");
  if (options.chunk == 0) return {};
  if (options.window > 0) {
    return refusal("options.chunk", options.chunk,
                   "0 beside options.window " + std::to_string(options.window));
  }
  if (options.sink_tokens > 0) {
    return refusal("options.chunk", options.chunk,
                   "0 beside options.sink_tokens " + std::to_string(options.sink_tokens));
  }
  return {};
}

namespace {

// A rule of the call against the widest that a part may be asked with.
Status check_width(const char* name, std::int64_t found, std::int64_t widest) {
  if (widest == 0 || (found > 0 && found <= widest)) return {};
  return refusal(name, found, "1 .. " + std::to_string(widest) + ", as the view's rows were kept");
}

// Rows begin .. end of a part are gone.
Status check_unseen(std::int32_t index, std::int32_t seq, const VisibleRows& seen,
                    std::int64_t begin, std::int64_t end) {
  if (begin >= end || !seen.touches(begin, end)) return {};
  const std::int64_t needed = seen.begin < seen.sink_end && seen.sink_end > begin
                                  ? std::max(seen.begin, begin)
                                  : seen.window_begin;
  return refusal(part_field(index, "first_held") + "[" + std::to_string(seq) + "]", end,
                 "at most " + std::to_string(needed) + ", which a query sees");
}

}  // namespace

Status check_held(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                  const VisibilityRules& rules) {
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const KvPart& part = kv.parts[p];
    KVC_RETURN_IF_ERROR(check_width("options.window", rules.window, part.held_window));
    KVC_RETURN_IF_ERROR(check_width("options.chunk", rules.chunk, part.held_chunk));
    if (part.held_window > 0 && rules.sink_tokens > part.held_sink_tokens) {
      return refusal(
          "options.sink_tokens", rules.sink_tokens,
          "at most " + std::to_string(part.held_sink_tokens) + ", as the view's rows were kept");
    }
    if (part.hole_pages == nullptr && part.first_held == nullptr) continue;
    for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
      const std::int64_t queries = qo_indptr[seq + 1] - qo_indptr[seq];
      if (queries == 0 || part.lengths[seq] == 0) continue;
      const VisibleRows seen = visible_rows(kv, p, seq, queries, 0, queries - 1, rules);
      KVC_RETURN_IF_ERROR(
          check_unseen(p, seq, seen, part.held_sink_tokens, first_held_of(part, seq)));
      const std::int64_t hole = hole_begin_of(part, seq);
      KVC_RETURN_IF_ERROR(check_unseen(p, seq, seen, hole * part.page_size,
                                       (hole + hole_pages_of(part, seq)) * part.page_size));
    }
  }
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
  KVC_RETURN_IF_ERROR(check_results(q, kv, out, lse, num_heads, options));

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
  problem->chunk = options.chunk;
  problem->alibi_slopes = options.alibi_slopes;
  problem->sinks = options.partial ? nullptr : options.sinks;
  problem->mask = options.mask;
  return {};
}

}  // namespace kvcache::internal
