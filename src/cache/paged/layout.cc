#include "cache/paged/layout.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/expect.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

Status check_extent(const std::string& name, std::int64_t extent) {
  return expect_between(name.c_str(), extent, 1, kMaxInt32);
}

Status check_format(const std::string& name, const RowFormat& format) {
  if (format.kind != RowFormat::kStrided) {
    return refusal(name + ".kind", static_cast<int>(format.kind), "kStrided");
  }
  if (!is_floating(format.dtype)) {
    return refusal(name + ".dtype", name_of(format.dtype), "f32, f16 or bf16");
  }
  return {};
}

Status check_spec(const std::string& name, const LayerSpec& spec) {
  KVC_RETURN_IF_ERROR(check_extent(name + ".num_kv_heads", spec.num_kv_heads));
  KVC_RETURN_IF_ERROR(check_extent(name + ".k_head_dim", spec.k_head_dim));
  KVC_RETURN_IF_ERROR(check_extent(name + ".v_head_dim", spec.v_head_dim));
  KVC_RETURN_IF_ERROR(check_format(name + ".k_format", spec.k_format));
  KVC_RETURN_IF_ERROR(check_format(name + ".v_format", spec.v_format));
  if (spec.lifetime != Lifetime::kFull) {
    return refusal(name + ".lifetime", static_cast<std::int64_t>(spec.lifetime), "kFull");
  }
  return {};
}

PageStrides page_strides(Layout layout, std::int64_t heads, std::int64_t tokens, std::int64_t dim) {
  if (layout == Layout::kHND) return {heads * tokens * dim, tokens * dim, dim};
  return {heads * tokens * dim, dim, heads * dim};
}

bool page_bytes_of(const LayerSpec& spec, std::int64_t page_size, std::int64_t dim, DType dtype,
                   std::int64_t* out) {
  return checked_product({spec.num_kv_heads, page_size, dim, size_of(dtype)}, out) &&
         *out <= kMaxBytes / 2;
}

}  // namespace

std::int64_t PagedLayout::page_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const PagedGroup& group : groups) bytes += group.page_bytes;
  return bytes;
}

std::int64_t PagedLayout::row_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const PagedGroup& group : groups) bytes += group.row_bytes();
  return bytes;
}

std::int64_t PagedLayout::table_bytes(std::int64_t num_pages, std::int64_t sequences,
                                      std::int64_t entries) const noexcept {
  const std::int64_t brought = num_pages * (kSequenceBytes + kTableEntryBytes * num_groups());
  const std::int64_t used = sequences * kSequenceBytes + entries * kTableEntryBytes;
  return num_pages * page_table_bytes() + std::max<std::int64_t>(0, used - brought);
}

std::int64_t PagedLayout::pages_in_budget(std::int64_t budget_bytes) const noexcept {
  return std::min(budget_bytes / (page_bytes() + page_table_bytes()), kMaxInt32 / page_size);
}

Status PagedLayout::check_num_pages(std::int64_t num_pages) const {
  if (num_pages < 1 || num_pages > kMaxInt32 / page_size) {
    return refusal("num_pages", num_pages,
                   "1 .. " + std::to_string(kMaxInt32 / page_size) + " for page_size " +
                       std::to_string(page_size));
  }
  std::int64_t bytes = 0;
  if (!checked_mul(num_pages, page_bytes() + page_table_bytes(), &bytes) || bytes > kMaxBytes) {
    return refusal("num_pages", num_pages, "fewer: the bytes of the pool must stay under 2^62");
  }
  return {};
}

Result<PagedLayout> make_paged_layout(std::span<const LayerSpec> layers, std::int64_t page_size,
                                      Layout layout) {
  if (layers.empty() || static_cast<std::int64_t>(layers.size()) > kMaxInt32) {
    return refusal("layers", static_cast<std::int64_t>(layers.size()), "at least 1");
  }
  KVC_RETURN_IF_ERROR(check_extent("page_size", page_size));
  if (layout != Layout::kHND && layout != Layout::kNHD) {
    return refusal("layout", static_cast<std::int64_t>(layout), "kHND or kNHD");
  }
  PagedLayout result;
  result.layout = layout;
  result.page_size = page_size;
  result.places.reserve(layers.size());
  std::int64_t total = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerSpec& spec = layers[i];
    const std::string name = "layers[" + std::to_string(i) + "]";
    KVC_RETURN_IF_ERROR(check_spec(name, spec));
    auto group = std::find_if(result.groups.begin(), result.groups.end(),
                              [&](const PagedGroup& g) { return g.spec == spec; });
    if (group == result.groups.end()) {
      PagedGroup fresh;
      fresh.spec = spec;
      if (!page_bytes_of(spec, page_size, spec.k_head_dim, spec.k_format.dtype,
                         &fresh.k_page_bytes) ||
          !page_bytes_of(spec, page_size, spec.v_head_dim, spec.v_format.dtype,
                         &fresh.v_page_bytes)) {
        return refusal(name + ".num_kv_heads", spec.num_kv_heads,
                       "fewer: the bytes of a page must stay under 2^61");
      }
      fresh.k_strides = page_strides(layout, spec.num_kv_heads, page_size, spec.k_head_dim);
      fresh.v_strides = page_strides(layout, spec.num_kv_heads, page_size, spec.v_head_dim);
      result.groups.push_back(std::move(fresh));
      group = result.groups.end() - 1;
    }
    const std::int64_t layer_bytes = group->k_page_bytes + group->v_page_bytes;
    if (!checked_add(total, layer_bytes, &total) || total > kMaxBytes / 2) {
      return refusal("layers", static_cast<std::int64_t>(layers.size()),
                     "fewer: the bytes of a page in all layers must stay under 2^61");
    }
    group->page_bytes += layer_bytes;
    result.places.push_back({static_cast<std::int32_t>(group - result.groups.begin()),
                             static_cast<std::int32_t>(group->layers.size())});
    group->layers.push_back(static_cast<std::int64_t>(i));
  }
  return result;
}

Result<PlannedBytes> plan_paged(const MemoryPlanRequest& request) {
  KVC_ASSIGN_OR_RETURN(const PagedLayout layout,
                       make_paged_layout(request.layers, request.page_size, request.layout));
  KVC_RETURN_IF_ERROR(expect_at_least("batch_size", request.batch_size, 1));
  KVC_RETURN_IF_ERROR(expect_at_least("seq_length", request.seq_length, 0));
  KVC_RETURN_IF_ERROR(expect_at_least("num_pages", request.num_pages, 0));

  const std::int64_t pages_each = pages_for(request.seq_length, request.page_size);
  std::int64_t needed = 0;
  if (!checked_mul(request.batch_size, pages_each, &needed)) {
    return refusal("seq_length", request.seq_length, "less: pages must be countable in 63 bits");
  }
  const std::int64_t num_pages =
      request.num_pages > 0 ? request.num_pages : std::max<std::int64_t>(needed, 1);
  KVC_RETURN_IF_ERROR(layout.check_num_pages(num_pages));
  if (needed > num_pages) {
    return refusal("num_pages", num_pages, "at least " + std::to_string(needed));
  }
  if (request.batch_size > kMaxBytes / 1024) {
    return refusal("batch_size", request.batch_size, "less: bytes must stay under 2^62");
  }
  const std::int64_t entries = needed * layout.num_groups();
  PlannedBytes planned;
  planned.nbytes = request.batch_size * request.seq_length * layout.row_bytes();
  planned.num_pages = entries;
  if (!checked_add(needed * layout.page_bytes(),
                   layout.table_bytes(num_pages, request.batch_size, entries),
                   &planned.reserved_bytes) ||
      planned.reserved_bytes > kMaxBytes) {
    return refusal("batch_size", request.batch_size, "less: bytes must stay under 2^62");
  }
  return planned;
}

}  // namespace kvcache::internal
