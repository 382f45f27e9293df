#include "bench/append.h"

#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

namespace kvcache::bench {
namespace {

using Bytes = std::vector<std::byte>;

DType given_dtype(const AppendOptions& options) { return options.rows.value_or(options.dtype); }

float rounded(float value, DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return to_float(to_float16(value));
    case DType::kBF16:
      return to_float(to_bfloat16(value));
    default:
      return value;
  }
}

void put(Bytes& rows, std::size_t at, float value, DType dtype) {
  std::byte* const to = rows.data() + at * static_cast<std::size_t>(size_of(dtype));
  const Float16 f16 = to_float16(value);
  const BFloat16 bf16 = to_bfloat16(value);
  const void* const from = dtype == DType::kF16    ? static_cast<const void*>(&f16)
                           : dtype == DType::kBF16 ? static_cast<const void*>(&bf16)
                                                   : &value;
  std::memcpy(to, from, static_cast<std::size_t>(size_of(dtype)));
}

// New rows of `tokens` tokens for all heads: as given to the cache or as it must store them.
Bytes token_rows(const AppendOptions& options, std::int64_t tokens, DType dtype) {
  const auto elements = static_cast<std::size_t>(tokens * options.kv_heads * options.head_dim);
  Bytes rows(elements * static_cast<std::size_t>(size_of(dtype)));
  for (std::size_t i = 0; i < elements; ++i) {
    const float value = 1 + static_cast<float>(i * 37 % 251) / 97;
    put(rows, i, rounded(value, given_dtype(options)), dtype);
  }
  return rows;
}

// One cache under test: appends `count` tokens to every layer.
class Target {
 public:
  virtual ~Target() = default;
  virtual Status append(const void* rows, std::int64_t tokens) = 0;
  virtual Status rewind(std::int64_t tokens) = 0;
  // Largest difference between the newest row of layer 0 and what was written.
  virtual Result<double> check(const void* rows) = 0;
};

double difference(const TensorView& stored, const AppendOptions& options, const void* rows) {
  // Compared bit for bit, head by head: 0 or infinite.
  const std::int64_t row_bytes = options.head_dim * size_of(options.dtype);
  const int head_axis = options.layout == Layout::kHND ? 1 : 2;
  const int seq_axis = options.layout == Layout::kHND ? 2 : 1;
  for (std::int64_t h = 0; h < options.kv_heads; ++h) {
    const std::int64_t at =
        h * stored.strides[head_axis] + (stored.shape[seq_axis] - 1) * stored.strides[seq_axis];
    const auto* found = static_cast<const std::byte*>(stored.data) + at * size_of(options.dtype);
    const auto* wanted = static_cast<const std::byte*>(rows) + h * row_bytes;
    if (std::memcmp(found, wanted, static_cast<std::size_t>(row_bytes)) != 0) return INFINITY;
  }
  return 0;
}

class DynamicTarget final : public Target {
 public:
  DynamicTarget(const AppendOptions& options, DynamicCache cache)
      : options_(options), cache_(std::move(cache)) {}

  Status append(const void* rows, std::int64_t tokens) override {
    const std::int64_t heads = options_.kv_heads;
    const std::int64_t dim = options_.head_dim;
    // Rows come packed by token, as a model writes them.
    TensorView packed(rows, given_dtype(options_), {1, tokens, heads, dim});
    if (options_.layout == Layout::kHND) {
      std::swap(packed.shape[1], packed.shape[2]);
      std::swap(packed.strides[1], packed.strides[2]);
    }
    for (std::int64_t layer = 0; layer < options_.layers; ++layer) {
      auto updated = cache_.update(packed, packed, layer);
      if (!updated.ok()) return updated.status();
    }
    return {};
  }

  Status rewind(std::int64_t tokens) override { return cache_.rewind(tokens); }

  Result<double> check(const void* rows) override {
    KVC_ASSIGN_OR_RETURN(const KeyValueView stored, cache_.get(0));
    return difference(stored.key, options_, rows);
  }

 private:
  const AppendOptions& options_;
  DynamicCache cache_;
};

class PagedTarget final : public Target {
 public:
  PagedTarget(const AppendOptions& options, PagedCache cache, SequenceId seq)
      : options_(options), cache_(std::move(cache)), seq_(seq) {}

  Status append(const void* rows, std::int64_t tokens) override {
    const Append append{seq_, tokens};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache_.reserve({&append, 1}));
    const TensorView packed(rows, given_dtype(options_),
                            {tokens, options_.kv_heads, options_.head_dim});
    for (std::int64_t layer = 0; layer < options_.layers; ++layer) {
      KVC_RETURN_IF_ERROR(cache_.write(step, layer, packed, packed));
    }
    return cache_.commit(step);
  }

  Status rewind(std::int64_t tokens) override { return cache_.rewind(seq_, tokens); }

  Result<double> check(const void* rows) override {
    KVC_ASSIGN_OR_RETURN(const std::int64_t length, cache_.seq_length(seq_));
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, cache_.view(0, {&seq_, 1}));
    const KvPart& part = view.get().parts[0];
    const std::int64_t page = part.block_table[(length - 1) / part.page_size];
    const std::int64_t slot = (length - 1) % part.page_size;
    TensorView newest;  // the newest row of each head, as a layout-free tensor of one token
    newest.data = part.k.row_at(page, 0, slot);
    newest.rank = 4;
    newest.dtype = options_.dtype;
    newest.shape[options_.layout == Layout::kHND ? 2 : 1] = 1;
    newest.strides[options_.layout == Layout::kHND ? 1 : 2] =
        part.k.head_stride / size_of(options_.dtype);
    return difference(newest, options_, rows);
  }

 private:
  const AppendOptions& options_;
  PagedCache cache_;
  SequenceId seq_;
};

Result<std::unique_ptr<Target>> make_target(bool paged, const AppendOptions& options,
                                            std::int64_t most_tokens) {
  if (!paged) {
    CacheOptions cache;
    cache.dtype = options.dtype;
    cache.layout = options.layout;
    KVC_ASSIGN_OR_RETURN(DynamicCache rows, DynamicCache::create(cache));
    return std::unique_ptr<Target>(std::make_unique<DynamicTarget>(options, std::move(rows)));
  }
  CacheConfig config =
      CacheConfig::uniform(options.layers, options.kv_heads, options.head_dim, options.dtype);
  config.page_size = options.page_size;
  config.num_pages = (most_tokens + options.page_size - 1) / options.page_size;
  config.layout = options.layout;
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, cache.open());
  return std::unique_ptr<Target>(std::make_unique<PagedTarget>(options, std::move(cache), seq));
}

Status fill(Target& target, std::int64_t tokens, const AppendOptions& options) {
  constexpr std::int64_t kPiece = 1024;
  const Bytes rows = token_rows(options, kPiece, given_dtype(options));
  for (std::int64_t done = 0; done < tokens; done += kPiece) {
    KVC_RETURN_IF_ERROR(target.append(rows.data(), std::min(kPiece, tokens - done)));
  }
  return {};
}

// Seconds a token for copying the same rows, one head after another, into fresh memory, or into
// memory written to before.
Result<double> copy_roof(const AppendOptions& options, const void* rows) {
  const std::int64_t row = options.head_dim * size_of(options.dtype);
  const std::int64_t streams = options.layers * 2 * options.kv_heads;  // K and V
  const auto bytes = static_cast<std::size_t>(streams * options.appends * row);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return Status(StatusCode::kOutOfMemory,
                  "roof: found no memory for " + std::to_string(bytes) + " bytes");
  }
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  auto* to = static_cast<std::byte*>(memory);
  const auto* from = static_cast<const std::byte*>(rows);
  if (options.warm) std::memset(memory, 1, bytes);
  const double start = seconds_now();
  for (std::int64_t token = 0; token < options.appends; ++token) {
    for (std::int64_t stream = 0; stream < streams; ++stream) {
      std::memcpy(to + (stream * options.appends + token) * row,
                  from + stream % options.kv_heads * row, static_cast<std::size_t>(row));
    }
  }
  const double seconds = (seconds_now() - start) / static_cast<double>(options.appends);
  munmap(memory, bytes);
  return seconds;
}

Status check_options(const AppendOptions& options) {
  for (const auto& [name, value] :
       {std::pair("layers", options.layers), std::pair("kv_heads", options.kv_heads),
        std::pair("head_dim", options.head_dim), std::pair("page_size", options.page_size),
        std::pair("appends", options.appends),
        std::pair("repeats", std::int64_t{options.repeats})}) {
    if (value < 1 || value > (1 << 20)) {
      return Status(
          StatusCode::kInvalidArgument,
          std::string(name) + ": found " + std::to_string(value) + ", expected 1 .. 1048576");
    }
  }
  for (const std::int64_t length : options.lengths) {
    if (length < 0 || length > (std::int64_t{1} << 30)) {
      return Status(StatusCode::kInvalidArgument,
                    "length: found " + std::to_string(length) + ", expected 0 .. 2^30");
    }
  }
  return {};
}

}  // namespace

Result<std::vector<Case>> run_append(const AppendOptions& options,
                                     const std::function<void(int, int)>& on_progress) {
  KVC_RETURN_IF_ERROR(check_options(options));
  const Bytes rows = token_rows(options, 1, given_dtype(options));
  const Bytes stored = token_rows(options, 1, options.dtype);
  const std::size_t num_lengths = options.lengths.size();
  const int total = options.repeats * 2 * static_cast<int>(num_lengths);
  int done = 0;
  // [cache kind][length]: microseconds of each repeat. Lengths are interleaved with the roof.
  std::vector<std::vector<double>> times(2 * num_lengths);
  std::vector<double> roofs;
  std::vector<double> errors(2 * num_lengths, 0);
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (std::size_t at = 0; at < times.size(); ++at) {
      const std::int64_t length = options.lengths[at % num_lengths];
      KVC_ASSIGN_OR_RETURN(const auto target,
                           make_target(at >= num_lengths, options, length + options.appends));
      KVC_RETURN_IF_ERROR(fill(*target, length, options));
      if (options.warm) {
        KVC_RETURN_IF_ERROR(fill(*target, options.appends, options));
        KVC_RETURN_IF_ERROR(target->rewind(options.appends));
      }
      const double start = seconds_now();
      for (std::int64_t i = 0; i < options.appends; ++i) {
        KVC_RETURN_IF_ERROR(target->append(rows.data(), 1));
      }
      times[at].push_back((seconds_now() - start) / static_cast<double>(options.appends) * 1e6);
      KVC_ASSIGN_OR_RETURN(const double error, target->check(stored.data()));
      errors[at] = std::max(errors[at], error);
      KVC_ASSIGN_OR_RETURN(const double roof, copy_roof(options, stored.data()));
      roofs.push_back(roof * 1e6);
      if (on_progress) on_progress(++done, total);
    }
  }
  std::vector<Case> cases;
  for (std::size_t at = 0; at < times.size(); ++at) {
    Case result;
    result.name = std::string(at < num_lengths ? "dynamic" : "paged") + ", after " +
                  std::to_string(options.lengths[at % num_lengths]) + " tokens";
    result.achieved = median(times[at]);
    result.roof = median(roofs);
    result.ratio = result.roof / result.achieved;
    result.unit = "us/token";
    result.error = errors[at];
    cases.push_back(std::move(result));
  }
  return cases;
}

}  // namespace kvcache::bench
