#include "bench/attention_shape.h"

#include <algorithm>
#include <random>
#include <utility>

namespace kvcache::bench {
namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 24;  // of all sequences together
constexpr DType kDTypes[] = {DType::kF16, DType::kBF16, DType::kF32};

Status refuse(const std::string& name, const std::string& found, const std::string& expected) {
  return Status(StatusCode::kInvalidArgument, name + ": found " + found + ", expected " + expected);
}

Status check_range(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return {};
  return refuse(name, std::to_string(value), std::to_string(least) + " .. " + std::to_string(most));
}

// Tokens stored for `lengths`, a shared prefix once.
std::int64_t rows_once(const AttentionShape& shape, const std::vector<std::int32_t>& lengths) {
  std::int64_t rows = shape.shared_prefix;
  for (const std::int32_t length : lengths) rows += length - shape.shared_prefix;
  return rows;
}

std::vector<AttentionShape> decode_cases(const AttentionShape& base) {
  std::vector<AttentionShape> cases;
  const auto add_each = [&](const std::string& name, const auto& change) {
    for (const DType dtype : kDTypes) {
      AttentionShape shape = base;
      shape.dtype = dtype;
      change(shape);
      shape.name = name + ", " + name_of(dtype);
      cases.push_back(std::move(shape));
    }
  };
  const auto same = [](AttentionShape&) {};
  add_each("decode 16k", same);
  add_each("decode 64k", [](AttentionShape& s) { s.kv_len = 65536; });
  add_each("decode 4k", [](AttentionShape& s) { s.kv_len = 4096; });
  add_each("decode 1k", [](AttentionShape& s) { s.kv_len = 1024; });
  add_each("decode 16k, 1 thread", [](AttentionShape& s) { s.threads = 1; });
  add_each("decode 16k, pages of 16", [](AttentionShape& s) { s.page_size = 16; });
  add_each("decode 16k, 8/8 heads", [](AttentionShape& s) { s.heads = 8; });
  add_each("decode 16k, 64/8 heads", [](AttentionShape& s) { s.heads = 64; });
  add_each("decode 16k, 14/2 heads x 64", [](AttentionShape& s) {
    s.heads = 14;
    s.kv_heads = 2;
    s.head_dim = 64;
  });
  add_each("decode 16k, 32/8 heads x 64", [](AttentionShape& s) { s.head_dim = 64; });
  add_each("decode 8 sequences x 4k", [](AttentionShape& s) {
    s.kv_len = 4096;
    s.batch = 8;
  });
  add_each("decode 8 ragged of 1..16k", [](AttentionShape& s) {
    s.batch = 8;
    s.ragged = true;
    s.page_size = 16;
  });
  for (const std::int64_t heads : {std::int64_t{32}, std::int64_t{8}}) {
    for (const std::int64_t shared : {std::int64_t{8192}, std::int64_t{0}}) {
      AttentionShape shape = base;
      shape.dtype = DType::kBF16;
      shape.heads = heads;
      shape.kv_len = 8392;
      shape.batch = 32;
      shape.page_size = 16;
      shape.shared_prefix = shared;
      shape.name = "decode 32 x 8392, " + std::to_string(heads) + "/8 heads, " +
                   (shared > 0 ? "8192 shared" : "none shared") + ", bf16";
      cases.push_back(std::move(shape));
    }
  }
  return cases;
}

std::vector<AttentionShape> prefill_cases(const AttentionShape& base) {
  std::vector<AttentionShape> cases;
  const std::pair<std::int64_t, std::int64_t> sizes[] = {{4, 4096},   {16, 4096},   {63, 4096},
                                                         {512, 4096}, {512, 16384}, {512, 512}};
  for (const auto& [queries, kv_len] : sizes) {
    for (const DType dtype : kDTypes) {
      AttentionShape shape = base;
      shape.queries = queries;
      shape.kv_len = kv_len;
      shape.dtype = dtype;
      shape.name =
          std::to_string(queries) + " over " +
          (kv_len % 1024 == 0 ? std::to_string(kv_len / 1024) + "k" : std::to_string(kv_len)) +
          ", " + name_of(dtype);
      cases.push_back(std::move(shape));
    }
  }
  return cases;
}

std::vector<AttentionShape> ladder_cases(const AttentionShape& base) {
  std::vector<AttentionShape> cases;
  for (const DType dtype : kDTypes) {
    for (const std::int64_t queries : {1, 2, 4, 8, 9, 16, 32, 63, 64, 128, 256, 512}) {
      AttentionShape shape = base;
      shape.queries = queries;
      shape.kv_len = 4096;
      shape.dtype = dtype;
      shape.name = std::to_string(queries) + " over 4k, " + name_of(dtype);
      cases.push_back(std::move(shape));
    }
  }
  return cases;
}

}  // namespace

Status check_shape(const AttentionShape& shape) {
  KVC_RETURN_IF_ERROR(check_range("kv-len", shape.kv_len, 1, kMostTokens));
  KVC_RETURN_IF_ERROR(check_range("queries", shape.queries, 1, shape.kv_len));
  KVC_RETURN_IF_ERROR(check_range("kv-heads", shape.kv_heads, 1, 1024));
  KVC_RETURN_IF_ERROR(check_range("heads", shape.heads, 1, 1024));
  if (shape.heads % shape.kv_heads != 0) {
    return refuse("heads", std::to_string(shape.heads),
                  "a multiple of kv-heads " + std::to_string(shape.kv_heads));
  }
  KVC_RETURN_IF_ERROR(check_range("head-dim", shape.head_dim, 1, 1024));
  KVC_RETURN_IF_ERROR(check_range("v-head-dim", shape.v_dim(), 1, 1024));
  if (!is_floating(shape.dtype)) return refuse("dtype", name_of(shape.dtype), "f32, f16 or bf16");
  KVC_RETURN_IF_ERROR(check_range("page-size", shape.page_size, 0, kMostTokens));
  KVC_RETURN_IF_ERROR(check_range("batch", shape.batch, 1, kMostTokens / shape.kv_len));
  KVC_RETURN_IF_ERROR(check_range("threads", shape.threads, 0, 1024));
  if (shape.shared_prefix != 0) {
    KVC_RETURN_IF_ERROR(
        check_range("shared-prefix", shape.shared_prefix, 0, shape.kv_len - shape.queries));
    if (shape.page_size == 0) return refuse("page-size", "contiguous", "pages, to share a prefix");
    if (shape.shared_prefix % shape.page_size != 0) {
      return refuse("shared-prefix", std::to_string(shape.shared_prefix),
                    "a multiple of page-size " + std::to_string(shape.page_size));
    }
  }
  return {};
}

std::vector<std::int32_t> lengths_of(const AttentionShape& shape, std::uint64_t seed) {
  std::vector<std::int32_t> lengths(static_cast<std::size_t>(shape.batch),
                                    static_cast<std::int32_t>(shape.kv_len));
  if (!shape.ragged) return lengths;
  const std::int64_t least = shape.shared_prefix + shape.queries;
  std::mt19937_64 random(seed);
  // Evenly spaced from the shortest to the longest: a run differs from another in order alone.
  for (std::int64_t i = 0; i < shape.batch; ++i) {
    const std::int64_t steps = std::max<std::int64_t>(1, shape.batch - 1);
    lengths[static_cast<std::size_t>(i)] =
        static_cast<std::int32_t>(shape.kv_len - i * (shape.kv_len - least) / steps);
  }
  std::shuffle(lengths.begin(), lengths.end(), random);
  return lengths;
}

AttentionCounts count_attention(const AttentionShape& shape,
                                const std::vector<std::int32_t>& lengths) {
  AttentionCounts counts;
  counts.rows = rows_once(shape, lengths);
  const std::int64_t row = shape.kv_heads * (shape.head_dim + shape.v_dim());
  counts.bytes = counts.rows * row * size_of(shape.dtype);
  double pairs = 0;
  for (const std::int32_t length : lengths) {
    // Query i of L sees length - L + i + 1 keys.
    pairs += static_cast<double>(shape.queries) *
             (static_cast<double>(length) - 0.5 * static_cast<double>(shape.queries - 1));
  }
  counts.operations = 2.0 * static_cast<double>(shape.heads) *
                      static_cast<double>(shape.head_dim + shape.v_dim()) * pairs;
  counts.widened = shape.dtype == DType::kF32 ? 0 : static_cast<double>(counts.rows * row);
  return counts;
}

Bound bound_of(const AttentionCounts& counts, const Rates& rates) {
  return {static_cast<double>(counts.bytes) / rates.read,
          counts.operations / rates.compute + counts.widened / rates.widen};
}

Result<std::vector<AttentionShape>> attention_cases(std::string_view list,
                                                    const AttentionShape& base) {
  AttentionShape common;
  common.threads = base.threads;
  common.backend = base.backend;
  if (list == "decode") return decode_cases(common);
  if (list == "prefill") return prefill_cases(common);
  if (list == "ladder") return ladder_cases(common);
  if (list == "all") {
    std::vector<AttentionShape> cases = decode_cases(common);
    for (AttentionShape& shape : prefill_cases(common)) cases.push_back(std::move(shape));
    for (AttentionShape& shape : ladder_cases(common)) cases.push_back(std::move(shape));
    return cases;
  }
  return refuse("cases", std::string(list), "decode, prefill, ladder, window, coded or all");
}

std::string describe(const AttentionShape& shape) {
  if (!shape.name.empty()) return shape.name;
  std::string text = std::to_string(shape.queries) + " over " + std::to_string(shape.kv_len) +
                     ", " + std::to_string(shape.heads) + "/" + std::to_string(shape.kv_heads) +
                     " x " + std::to_string(shape.head_dim);
  if (shape.v_dim() != shape.head_dim) text += "+" + std::to_string(shape.v_dim());
  text += std::string(", ") + name_of(shape.dtype);
  if (shape.batch > 1) text += ", batch " + std::to_string(shape.batch);
  if (shape.ragged) text += ", ragged";
  if (shape.page_size > 0) text += ", pages of " + std::to_string(shape.page_size);
  if (shape.layout == Layout::kNHD) text += ", nhd";
  if (shape.shared_prefix > 0) text += ", " + std::to_string(shape.shared_prefix) + " shared";
  return text;
}

}  // namespace kvcache::bench
