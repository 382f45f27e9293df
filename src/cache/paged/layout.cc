#include "cache/paged/layout.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/expect.h"
#include "cache/layer_check.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

// Strides and bytes of a buffer in a page. False past kMaxBytes / 2.
bool buffer_layout(const BufferSpec& spec, std::int64_t page_size, Layout layout,
                   BufferLayout* out) {
  const std::int64_t row = spec.format.bytes(spec.dim);
  out->spec = spec;
  if (!checked_product({spec.heads, page_size, row}, &out->page_bytes) ||
      out->page_bytes > kMaxBytes / 2) {
    return false;
  }
  const bool by_head = layout == Layout::kHND;
  out->head_stride = by_head ? page_size * row : row;
  out->token_stride = by_head ? row : spec.heads * row;
  return true;
}

}  // namespace

std::int64_t PagedLayout::page_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const GroupLayout& group : groups) bytes += group.page_bytes;
  return bytes;
}

std::int64_t PagedLayout::row_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const GroupLayout& group : groups) bytes += group.row_bytes();
  return bytes;
}

std::int64_t PagedLayout::sharing_bytes(std::int64_t num_pages, std::int64_t sequences,
                                        std::int64_t entries) const noexcept {
  const std::int64_t brought = num_pages * (kSequenceBytes + kTableEntryBytes * (num_groups() + 1));
  const std::int64_t used = sequences * kSequenceBytes + entries * kTableEntryBytes;
  return std::max<std::int64_t>(0, used - brought);
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
  KVC_RETURN_IF_ERROR(expect_between("page_size", page_size, 1, kMaxInt32));
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
    KVC_RETURN_IF_ERROR(check_layer_spec(name, spec));
    auto group = std::find_if(result.groups.begin(), result.groups.end(),
                              [&](const GroupLayout& g) { return g.spec == spec; });
    if (group == result.groups.end()) {
      GroupLayout fresh;
      fresh.spec = spec;
      for (std::int32_t b = 0; b < spec.num_buffers; ++b) {
        if (buffer_layout(spec.buffers[b], page_size, layout, &fresh.buffers[b])) continue;
        return refusal(name + ".heads", spec.buffers[b].heads,
                       "fewer: the bytes of a page must stay under 2^61");
      }
      result.groups.push_back(std::move(fresh));
      group = result.groups.end() - 1;
    }
    for (const BufferLayout& buffer : group->used()) {
      if (!checked_add(total, buffer.page_bytes, &total) || total > kMaxBytes / 2) {
        return refusal("layers", static_cast<std::int64_t>(layers.size()),
                       "fewer: the bytes of a page in all layers must stay under 2^61");
      }
      group->page_bytes += buffer.page_bytes;
    }
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
  const std::int64_t entries = needed * (layout.num_groups() + 1);
  PlannedBytes planned;
  planned.nbytes = request.batch_size * request.seq_length * layout.row_bytes();
  planned.num_pages = needed * layout.num_groups();
  if (!checked_add(needed * layout.page_bytes(),
                   layout.table_bytes(num_pages, request.batch_size, entries),
                   &planned.reserved_bytes) ||
      planned.reserved_bytes > kMaxBytes) {
    return refusal("batch_size", request.batch_size, "less: bytes must stay under 2^62");
  }
  return planned;
}

}  // namespace kvcache::internal
