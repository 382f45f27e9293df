#include "cache/paged/layout.h"

#include <algorithm>
#include <limits>
#include <numeric>
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
  const std::int64_t codes = spec.format.code_bytes(spec.dim);
  const std::int64_t scales = spec.format.num_scales(spec.dim);
  const bool by_head = layout == Layout::kHND;
  out->head_stride = by_head ? page_size * codes : codes;
  out->token_stride = by_head ? codes : spec.heads * codes;
  out->scale_page_bytes = spec.heads * page_size * spec.format.scale_bytes(spec.dim);
  out->scale_group_stride = 2 * page_size;
  out->scale_head_stride = scales * out->scale_group_stride;
  out->zero_offset = spec.heads * out->scale_head_stride;
  return true;
}

// Steps that peak_pages() looks at: more than any sizes that a model has call for.
constexpr std::int64_t kMostLooks = std::int64_t{1} << 20;

// The same of a plain tail: pages grow until the first rows are coded, and then repeat with the
// places of steps in a page.
std::int64_t peak_tail_pages(const KeepRule& rule, std::int64_t length, std::int64_t step,
                             std::int64_t page_size) {
  if (length == 0) return 0;
  const std::int64_t last = (length - 1) / step;  // the last step
  std::int64_t peak = 0;
  const auto look = [&](std::int64_t index) {
    const std::int64_t n = std::clamp<std::int64_t>(index, 0, last) * step;
    const std::int64_t end = std::min(n + step, length);
    peak = std::max(peak, pages_for(end, page_size) - rule.first(n) / page_size);
  };
  look(last);
  const std::int64_t full = (rule.tail.tokens + page_size - 1) / step;
  for (std::int64_t i = -1; i <= page_size && full + i <= last; ++i) look(full + i);
  return peak;
}

// The most pages that a sequence has on its way to `length` by steps of `step` tokens: those it
// holds before a step, and those of the step. A bound, where these repeat only after more steps
// than anybody waits for. REQUIRES: 1 <= step <= length, if length > 0.
std::int64_t peak_pages(const KeepRule& rule, std::int64_t length, std::int64_t step,
                        std::int64_t page_size) {
  if (rule.is_tail()) return peak_tail_pages(rule, length, step, page_size);
  if (rule.first(length) == 0) return pages_for(length, page_size);
  const std::int64_t sinks = rule.life.sink_tokens;
  const std::int64_t last = (length - 1) / step * step;  // where the last step begins
  std::int64_t peak = 0;
  const auto look = [&](std::int64_t n) {
    const std::int64_t count = std::min(step, length - n);
    const LivePages held = live_pages(rule.first(n), n, sinks, page_size);
    peak = std::max(peak, held.count() + pages_for(n + count, page_size) - held.end);
  };
  look(last);
  // Pages grow as long as nothing is dropped: of a chunk only its last step counts, and of a window
  // those from where it is full. Then they repeat with the places of steps and chunks in a page.
  const std::int64_t stride = std::max(step, rule.life.chunk);
  const std::int64_t kept = rule.life.window + rule.life.chunk + rule.rewind_tokens - 1;
  const std::int64_t places = std::lcm(std::max<std::int64_t>(rule.life.chunk, 1), step);
  const std::int64_t pages = page_size / std::gcd(places, page_size);
  const std::int64_t period = places > last / pages ? last : places * pages;
  const std::int64_t end = std::min(last, kept + 2 * (period + sinks));
  if ((end - kept) / stride > kMostLooks) {
    const std::int64_t most =
        pages_for(sinks, page_size) + pages_for(kept + step + page_size - 1, page_size);
    return std::min(most, pages_for(length, page_size));
  }
  for (std::int64_t full = kept; full < end + stride; full += stride) {
    look(std::min(full / step * step, last));
  }
  return peak;
}

// What the newest rows of a coded layer are stored as: plain, and turned where the codes are.
LayerSpec tail_of(const LayerSpec& spec) {
  LayerSpec tail = spec;
  for (std::int32_t b = 0; b < spec.num_buffers; ++b) {
    tail.buffers[b].format.kind = RowFormat::kStrided;
  }
  return tail;
}

// The index of the group for layers like this one, which is made where there is none: with a group
// of tails behind it where its newest rows stay plain.
std::size_t group_for(PagedLayout& result, const LayerSpec& spec, bool split) {
  for (std::size_t g = 0; g < result.groups.size(); ++g) {
    const GroupLayout& group = result.groups[g];
    if (group.rule.life == spec.life && group.codes < 0 && (group.tail >= 0) == split) return g;
  }
  const std::size_t made = result.groups.size();
  result.groups.emplace_back().rule = {spec.life, result.rewind_tokens, {}};
  if (!split) return made;
  result.groups[made].tail = static_cast<std::int32_t>(made) + 1;
  GroupLayout& tails = result.groups.emplace_back();
  tails.rule = {spec.life, 0, result.tail};
  tails.codes = static_cast<std::int32_t>(made);
  return made;
}

// `total`: the bytes of a page in all layers so far.
Status add_layer(const std::string& name, const LayerSpec& spec, const PagedLayout& layout,
                 GroupLayout& group, std::int64_t* total) {
  LayerLayout made;
  made.layer = static_cast<std::int64_t>(layout.places.size()) - 1;
  made.spec = spec;
  for (std::int32_t b = 0; b < spec.num_buffers; ++b) {
    if (buffer_layout(spec.buffers[b], layout.page_size, layout.layout, &made.buffers[b])) continue;
    return refusal(name + ".heads", spec.buffers[b].heads,
                   "fewer: the bytes of a page must stay under 2^61");
  }
  for (const BufferLayout& buffer : made.used()) {
    if (!checked_add(*total, buffer.page_bytes, total) || *total > kMaxBytes / 2) {
      return refusal(name, "too many bytes",
                     "fewer: those of a page in all layers must stay under 2^61");
    }
    group.page_bytes += buffer.page_bytes;
    if (buffer.spec.format.is_coded()) ++group.coded_buffers;
  }
  group.row_bytes += bytes_per_token(spec);
  group.layers.push_back(made);
  return {};
}

}  // namespace

std::int64_t PagedLayout::page_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const GroupLayout& group : groups) bytes += group.page_bytes;
  return bytes;
}

bool PagedLayout::is_bounded() const noexcept {
  return std::none_of(groups.begin(), groups.end(),
                      [](const GroupLayout& group) { return group.rule.keeps_all(); });
}

std::int64_t PagedLayout::sharing_bytes(std::int64_t touched, std::int64_t sequences,
                                        std::int64_t entries) const noexcept {
  const std::int64_t brought = touched * (kSequenceBytes + kTableEntryBytes * (num_groups() + 1));
  const std::int64_t used = sequences * kSequenceBytes + entries * kTableEntryBytes;
  return std::max<std::int64_t>(0, used - brought);
}

std::int64_t PagedLayout::pages_in_budget(std::int64_t budget_bytes) const noexcept {
  std::int64_t smallest = page_bytes();
  for (const GroupLayout& group : groups) smallest = std::min(smallest, group.page_bytes);
  const std::int64_t others = page_bytes() - smallest;
  if (budget_bytes < page_bytes() + page_table_bytes()) return 0;
  return std::min((budget_bytes - others) / (smallest + page_table_bytes()), kMaxInt32 / page_size);
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
                                      Layout layout, std::int64_t rewind_tokens,
                                      std::int64_t residual_tokens) {
  if (layers.empty() || static_cast<std::int64_t>(layers.size()) > kMaxInt32) {
    return refusal("layers", static_cast<std::int64_t>(layers.size()), "at least 1");
  }
  KVC_RETURN_IF_ERROR(expect_between("page_size", page_size, 1, kMaxInt32));
  if (layout != Layout::kHND && layout != Layout::kNHD) {
    return refusal("layout", static_cast<std::int64_t>(layout), "kHND or kNHD");
  }
  KVC_RETURN_IF_ERROR(expect_between("rewind_tokens", rewind_tokens, 0, kMaxInt32));
  KVC_RETURN_IF_ERROR(expect_between("residual_tokens", residual_tokens, 0, kMaxInt32));
  PagedLayout result;
  result.layout = layout;
  result.page_size = page_size;
  result.rewind_tokens = rewind_tokens;
  result.tail = {residual_tokens, page_size};
  result.places.reserve(layers.size());
  std::int64_t total = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerSpec& spec = layers[i];
    const std::string name = "layers[" + std::to_string(i) + "]";
    KVC_RETURN_IF_ERROR(check_layer_spec(name, spec));
    const bool split = residual_tokens > 0 && is_coded(spec);
    if (split && !(spec.life == Life())) {
      return refusal(StatusCode::kUnsupported, name + ".life", "a window or chunk",
                     "none in a coded layer beside residual_tokens");
    }
    const std::size_t group = group_for(result, spec, split);
    result.places.push_back({static_cast<std::int32_t>(group),
                             static_cast<std::int32_t>(result.groups[group].layers.size())});
    KVC_RETURN_IF_ERROR(add_layer(name, spec, result, result.groups[group], &total));
    if (!split) continue;
    GroupLayout& tails = result.groups[static_cast<std::size_t>(result.groups[group].tail)];
    KVC_RETURN_IF_ERROR(add_layer(name, tail_of(spec), result, tails, &total));
  }
  if (residual_tokens > 0 && std::none_of(layers.begin(), layers.end(), is_coded)) {
    return refusal("residual_tokens", residual_tokens, "0 where no layer is coded");
  }
  return result;
}

Status PagedLayout::add_prefixes() {
  if (tail.tokens > 0) {
    return refusal(StatusCode::kUnsupported, "prefixes", "it beside residual_tokens",
                   "one of both");
  }
  prefix_bytes = kPrefixNodeBytes + kPrefixPageBytes * num_groups();
  return {};
}

Result<PlannedBytes> plan_paged(const MemoryPlanRequest& request) {
  KVC_ASSIGN_OR_RETURN(PagedLayout layout,
                       make_paged_layout(request.layers, request.page_size, request.layout,
                                         request.rewind_tokens, request.residual_tokens));
  if (request.prefixes) KVC_RETURN_IF_ERROR(layout.add_prefixes());
  KVC_RETURN_IF_ERROR(expect_at_least("batch_size", request.batch_size, 1));
  KVC_RETURN_IF_ERROR(expect_at_least("seq_length", request.seq_length, 0));
  KVC_RETURN_IF_ERROR(expect_at_least("step_tokens", request.step_tokens, 0));
  KVC_RETURN_IF_ERROR(expect_at_least("num_pages", request.num_pages, 0));
  if (request.seq_length > kMaxInt32 && (layout.is_bounded() || layout.num_groups() > 1)) {
    return refusal("seq_length", request.seq_length, "at most 2147483647");
  }
  const std::int64_t step = request.step_tokens > 0
                                ? std::min(request.step_tokens, request.seq_length)
                                : request.seq_length;
  std::int64_t most = 0;             // pages of the group that needs most of them
  std::vector<std::int64_t> needed;  // of each group
  // Rows of a sequence that are the group's, dropped ones counted.
  const auto length_in = [&](const GroupLayout& group) {
    return group.tail >= 0 ? layout.tail.coded(request.seq_length) : request.seq_length;
  };
  for (const GroupLayout& group : layout.groups) {
    const std::int64_t pages =
        group.rule.keeps_all()
            ? pages_for(length_in(group), request.page_size)
            : peak_pages(group.rule, request.seq_length, step, request.page_size);
    if (!checked_mul(request.batch_size, pages, &needed.emplace_back())) {
      return refusal("seq_length", request.seq_length, "less: pages must be countable in 63 bits");
    }
    most = std::max(most, needed.back());
  }
  const std::int64_t num_pages =
      request.num_pages > 0 ? request.num_pages : std::max<std::int64_t>(most, 1);
  KVC_RETURN_IF_ERROR(layout.check_num_pages(num_pages));
  if (most > num_pages) {
    return refusal("num_pages", num_pages, "at least " + std::to_string(most));
  }
  if (request.batch_size > kMaxBytes / 1024) {
    return refusal("batch_size", request.batch_size, "less: bytes must stay under 2^62");
  }
  PlannedBytes planned;
  std::int64_t entries = 0;
  std::int64_t bytes = 0;
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    const GroupLayout& group = layout.groups[g];
    const std::int64_t sinks = group.rule.life.sink_tokens;
    const std::int64_t length = length_in(group);
    const std::int64_t first = group.rule.first(length);
    const std::int64_t rows = std::min(sinks, first) + length - first;
    planned.nbytes += request.batch_size * rows * group.row_bytes;
    planned.num_pages += needed[g];
    bytes += needed[g] * group.page_bytes;
    entries += request.batch_size * live_pages(first, length, sinks, request.page_size).count();
  }
  if (!checked_add(bytes, layout.table_bytes(most, request.batch_size, entries),
                   &planned.reserved_bytes) ||
      planned.reserved_bytes > kMaxBytes) {
    return refusal("batch_size", request.batch_size, "less: bytes must stay under 2^62");
  }
  return planned;
}

}  // namespace kvcache::internal
