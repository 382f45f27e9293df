// The layered caches told by plain vectors, and random operations on both side by side.
#ifndef KVCACHE_TESTS_API_LAYERED_MODEL_H_
#define KVCACHE_TESTS_API_LAYERED_MODEL_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/layered.h"
#include "support/refusing_memory.h"

namespace kvcache::testing {

// One operation: what each number means depends on the first. Any numbers make an operation.
using Op = std::array<std::uint32_t, 4>;

// tokens[b][h][t] holds the elements of one row.
using ModelRows = std::vector<std::vector<std::vector<std::vector<float>>>>;

struct ModelLayer {
  bool populated = false;
  std::int64_t batch = 0, heads = 0, k_dim = 0, v_dim = 0;
  std::int64_t length = 0, first_position = 0;
  ModelRows k, v;
};

// Runs operations on a cache and on the model and compares all that can be seen after each.
class LayeredPair {
 public:
  static constexpr std::int64_t kLayers = 3;
  static constexpr std::int64_t kCapacity = 24;

  LayeredPair(LayeredKind kind, Layout layout, DType dtype) : kind_(kind), layout_(layout) {
    CacheOptions options;
    options.layout = layout;
    options.dtype = dtype;
    options.reserve_tokens = 4;
    options.memory = &memory_;
    cache_ = make_layered(kind, options, kCapacity, kLayers);
    layers_.resize(kLayers);
  }

  // An empty string, or what differs.
  std::string step(const Op& op) {
    memory_.refuse(op[3] % 8 == 0 ? 1 + op[3] / 8 % 4 : 0, true);
    switch (op[0] % 12) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        return update(op);
      case 5:
        return select(op);
      case 6:
        return repeat(op);
      case 7:
        return crop(op);
      case 8:
        return truncate(op);
      case 9:
        return rewind(op);
      case 10:
        if (op[1] % 3 == 0) {
          cache_->reset();
          for (ModelLayer& layer : layers_) layer = {};
        }
        return compare("reset");
      default:
        cache_->shrink();
        return compare("shrink");
    }
  }

 private:
  static constexpr StatusCode kOk = StatusCode::kOk;

  // Compares the outcome of a call; a refusal of the memory may replace success.
  // Sets `*apply` if the model is to follow.
  std::string judge(const char* name, const Status& status, StatusCode expected, bool* apply) {
    *apply = status.ok();
    if (status.code() == expected) return "";
    if (expected == kOk && status.code() == StatusCode::kOutOfMemory && memory_.refused())
      return "";
    return std::string(name) + ": " + status.to_string() + ", expected " + name_of(expected);
  }

  std::string update(const Op& op) {
    const std::int64_t index_of_layer = op[1] % kLayers;
    ModelLayer& layer = layers_[static_cast<std::size_t>(index_of_layer)];
    ModelLayer shape = layer;
    if (!layer.populated || op[1] / 4 % 32 == 0) {  // sometimes a shape that does not fit
      static constexpr std::int64_t kDims[] = {1, 3, 2, 200};
      shape.batch = 1 + op[1] / 8 % 3;
      shape.heads = 1 + op[1] / 64 % 2;
      shape.k_dim = kDims[op[1] / 128 % 4];
      shape.v_dim = kDims[op[1] / 512 % 4];
    }
    const std::int64_t count = op[2] % 6;
    const int mode = static_cast<int>(op[2] / 8 % 4);
    const auto near = [&](std::uint32_t i) {  // a row in or a little behind the layer
      return static_cast<std::int64_t>((op[2] / 32 + i * 7 + op[1] * (i % 3)) %
                                       static_cast<std::uint32_t>(layer.length + 9));
    };
    std::vector<std::vector<std::int64_t>> positions;  // [batch][count]
    HostTensor position;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      std::vector<std::int64_t> row;
      for (std::int64_t t = 0; t < count; ++t) {
        const std::uint32_t salt = mode == 3 ? static_cast<std::uint32_t>(b * 5) : 0;
        row.push_back(mode == 0 ? layer.length + t : near(static_cast<std::uint32_t>(t) + salt));
      }
      positions.push_back(row);
    }
    const DType index_type = op[3] % 2 == 0 ? DType::kI32 : DType::kI64;
    if (mode == 1 && count > 0) position = index(positions[0][0], index_type);
    if (mode == 2) position = indices(positions[0], index_type);
    if (mode == 3) position = index_table(positions, index_type);

    StatusCode expected = kOk;
    const bool same_shape = shape.batch == layer.batch && shape.heads == layer.heads &&
                            shape.k_dim == layer.k_dim && shape.v_dim == layer.v_dim;
    std::int64_t end = layer.length;
    for (const auto& row : positions) {
      for (std::int64_t p : row) end = std::max(end, p + 1);
    }
    if (layer.populated && !same_shape) {
      expected = StatusCode::kInvalidArgument;
    } else if (mode == 1 && count != 1 && count > 0) {
      expected = StatusCode::kInvalidArgument;
    } else if (kind_ == LayeredKind::kStatic && end > kCapacity) {
      expected = StatusCode::kOutOfRange;
    }
    ModelRows k_new, v_new;
    const HostTensor key = random_rows(shape, count, shape.k_dim, op[3], &k_new);
    const HostTensor value = random_rows(shape, count, shape.v_dim, op[3] + 17, &v_new);
    const bool with_position = mode != 0 && !(mode == 1 && count == 0);
    const Status status =
        cache_->update(key, value, index_of_layer, with_position ? position.view() : TensorView())
            .status();
    bool apply = false;
    const std::string wrong = judge("update", status, expected, &apply);
    if (!wrong.empty()) return wrong;
    if (apply && count > 0) {
      if (!layer.populated) {
        layer = shape;
        layer.populated = true;
        layer.k.assign(static_cast<std::size_t>(shape.batch), {});
        for (auto& heads : layer.k) heads.resize(static_cast<std::size_t>(shape.heads));
        layer.v = layer.k;
      }
      layer.length = end;
      store(&layer.k, layer.k_dim, end, k_new, positions);
      store(&layer.v, layer.v_dim, end, v_new, positions);
    }
    return compare("update");
  }

  static void store(ModelRows* rows, std::int64_t dim, std::int64_t end, const ModelRows& fresh,
                    const std::vector<std::vector<std::int64_t>>& positions) {
    for (std::size_t b = 0; b < rows->size(); ++b) {
      for (std::size_t h = 0; h < (*rows)[b].size(); ++h) {
        auto& tokens = (*rows)[b][h];
        tokens.resize(static_cast<std::size_t>(end),
                      std::vector<float>(static_cast<std::size_t>(dim), 0.0f));
        for (std::size_t t = 0; t < positions[b].size(); ++t) {
          tokens[static_cast<std::size_t>(positions[b][t])] = fresh[b][h][t];
        }
      }
    }
  }

  HostTensor random_rows(const ModelLayer& shape, std::int64_t count, std::int64_t dim,
                         std::uint32_t seed, ModelRows* rows) const {
    const bool by_head = layout_ == Layout::kHND;
    HostTensor result(static_cast<DType>(seed % 3),
                      by_head ? Shape{shape.batch, shape.heads, count, dim}
                              : Shape{shape.batch, count, shape.heads, dim});
    rows->assign(static_cast<std::size_t>(shape.batch), {});
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      auto& heads = (*rows)[static_cast<std::size_t>(b)];
      heads.resize(static_cast<std::size_t>(shape.heads));
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        for (std::int64_t t = 0; t < count; ++t) {
          std::vector<float> row;
          for (std::int64_t d = 0; d < dim; ++d) {
            seed = seed * 1664525u + 1013904223u;
            const float x = static_cast<float>(seed >> 25) + 1;  // exact in every type, never 0
            row.push_back(x);
            result.set(((b * (by_head ? shape.heads : count) + (by_head ? h : t)) *
                            (by_head ? count : shape.heads) +
                        (by_head ? t : h)) *
                               dim +
                           d,
                       x);
          }
          heads[static_cast<std::size_t>(h)].push_back(row);
        }
      }
    }
    return result;
  }

  std::int64_t smallest_batch() const {
    std::int64_t batch = 1000;
    for (const ModelLayer& layer : layers_) {
      if (layer.populated) batch = std::min(batch, layer.batch);
    }
    return batch;
  }

  static void gather(ModelLayer* layer, const std::vector<std::int64_t>& sources) {
    const ModelLayer old = *layer;
    layer->k.clear();
    layer->v.clear();
    for (std::int64_t source : sources) {
      layer->k.push_back(old.k[static_cast<std::size_t>(source)]);
      layer->v.push_back(old.v[static_cast<std::size_t>(source)]);
    }
    layer->batch = static_cast<std::int64_t>(sources.size());
  }

  std::string select(const Op& op) {
    std::vector<std::int64_t> sources;
    for (std::uint32_t i = 0; i < op[1] % 5; ++i) {
      sources.push_back(static_cast<std::int64_t>((op[2] >> (2 * i)) % 4) - (op[2] % 64 == 0));
    }
    StatusCode expected = kOk;
    for (std::int64_t source : sources) {
      if (source < 0 || source >= smallest_batch()) expected = StatusCode::kOutOfRange;
    }
    if (sources.empty()) expected = StatusCode::kInvalidArgument;
    bool apply = false;
    const std::string wrong =
        judge("batch_select", cache_->batch_select(indices(sources)), expected, &apply);
    if (!wrong.empty()) return wrong;
    for (ModelLayer& layer : layers_) {
      if (apply && layer.populated) gather(&layer, sources);
    }
    return compare("batch_select");
  }

  std::string repeat(const Op& op) {
    const std::int64_t n = static_cast<std::int64_t>(op[1] % 4) - 1;
    for (const ModelLayer& layer : layers_) {
      if (layer.batch * n > 8) return "";
    }
    bool apply = false;
    const std::string wrong = judge("batch_repeat_interleave", cache_->batch_repeat_interleave(n),
                                    n < 1 ? StatusCode::kInvalidArgument : kOk, &apply);
    if (!wrong.empty()) return wrong;
    for (ModelLayer& layer : layers_) {
      if (!apply || !layer.populated) continue;
      std::vector<std::int64_t> sources;
      for (std::int64_t i = 0; i < layer.batch * n; ++i) sources.push_back(i / n);
      gather(&layer, sources);
    }
    return compare("batch_repeat_interleave");
  }

  // Keeps tokens [begin, end) of a layer.
  static void keep(ModelLayer* layer, std::int64_t begin, std::int64_t end) {
    for (ModelRows* rows : {&layer->k, &layer->v}) {
      for (auto& heads : *rows) {
        for (auto& tokens : heads) {
          tokens = {tokens.begin() + begin, tokens.begin() + end};
        }
      }
    }
    layer->length = end - begin;
  }

  std::string crop(const Op& op) {
    const std::int64_t n = static_cast<std::int64_t>(op[1] % 24) - (op[2] % 16 == 0 ? 24 : 0);
    bool apply = false;
    const std::string wrong =
        judge("crop", cache_->crop(n), n < 0 ? StatusCode::kInvalidArgument : kOk, &apply);
    if (!wrong.empty()) return wrong;
    for (ModelLayer& layer : layers_) {
      if (!apply || n >= layer.length) continue;
      layer.first_position += layer.length - n;
      keep(&layer, layer.length - n, layer.length);
    }
    return compare("crop");
  }

  std::string truncate(const Op& op) {
    const std::int64_t n = static_cast<std::int64_t>(op[1] % 24) - (op[2] % 16 == 0 ? 24 : 0);
    bool apply = false;
    const std::string wrong =
        judge("truncate", cache_->truncate(n), n < 0 ? StatusCode::kInvalidArgument : kOk, &apply);
    if (!wrong.empty()) return wrong;
    for (ModelLayer& layer : layers_) {
      if (apply && n < layer.length) keep(&layer, 0, n);
    }
    return compare("truncate");
  }

  std::string rewind(const Op& op) {
    const std::int64_t n = static_cast<std::int64_t>(op[1] % 8) - (op[2] % 16 == 0 ? 8 : 0);
    std::optional<std::int64_t> shortest;
    for (const ModelLayer& layer : layers_) {
      if (layer.populated) shortest = std::min(shortest.value_or(layer.length), layer.length);
    }
    const StatusCode expected = n < 0                      ? StatusCode::kInvalidArgument
                                : n > shortest.value_or(0) ? StatusCode::kOutOfRange
                                                           : kOk;
    bool apply = false;
    const std::string wrong = judge("rewind", cache_->rewind(n), expected, &apply);
    if (!wrong.empty()) return wrong;
    for (ModelLayer& layer : layers_) {
      if (apply && layer.populated) keep(&layer, 0, layer.length - n);
    }
    return compare("rewind");
  }

  std::string compare(const char* after) const {
    std::int64_t nbytes = 0;
    for (std::int64_t i = 0; i < kLayers; ++i) {
      const ModelLayer& layer = layers_[static_cast<std::size_t>(i)];
      const std::string where = std::string(after) + ", layer " + std::to_string(i) + ": ";
      if (cache_->seq_length(i).value() != layer.length) return where + "length differs";
      if (cache_->next_position(i).value() != layer.first_position + layer.length) {
        return where + "next_position differs";
      }
      const KeyValueView rows = cache_->get(i).value();
      if (rows.key.defined() != layer.populated) return where + "populated differs";
      if (!layer.populated) continue;
      if (!equal(rows.key, layer, layer.k, layer.k_dim)) return where + "keys differ";
      if (!equal(rows.value, layer, layer.v, layer.v_dim)) return where + "values differ";
      nbytes += layer.batch * layer.heads * layer.length *
                (layer.k_dim * size_of(rows.key.dtype) + layer.v_dim * size_of(rows.value.dtype));
    }
    if (cache_->nbytes() != nbytes) return std::string(after) + ": nbytes differs";
    if (cache_->reserved_bytes() != memory_.committed()) {
      return std::string(after) + ": reserved_bytes is not what was committed";
    }
    if (cache_->reserved_bytes() < nbytes) return std::string(after) + ": too little reserved";
    return "";
  }

  bool equal(const TensorView& got, const ModelLayer& layer, const ModelRows& rows,
             std::int64_t dim) const {
    const bool by_head = layout_ == Layout::kHND;
    if (shape_of(got) != (by_head ? Shape{layer.batch, layer.heads, layer.length, dim}
                                  : Shape{layer.batch, layer.length, layer.heads, dim})) {
      return false;
    }
    const std::vector<float> flat = values(got);
    std::size_t at = 0;
    const std::int64_t outer = by_head ? layer.heads : layer.length;
    const std::int64_t inner = by_head ? layer.length : layer.heads;
    for (std::int64_t b = 0; b < layer.batch; ++b) {
      for (std::int64_t i = 0; i < outer; ++i) {
        for (std::int64_t j = 0; j < inner; ++j) {
          const auto& row =
              rows[static_cast<std::size_t>(b)][static_cast<std::size_t>(by_head ? i : j)]
                  [static_cast<std::size_t>(by_head ? j : i)];
          if (!std::equal(row.begin(), row.end(), flat.begin() + static_cast<long>(at))) {
            return false;
          }
          at += row.size();
        }
      }
    }
    return true;
  }

  LayeredKind kind_;
  Layout layout_;
  RefusingMemory memory_;
  std::unique_ptr<Cache> cache_;
  std::vector<ModelLayer> layers_;
};

// Runs all of them on a fresh cache; an empty string, or what differed and where.
inline std::string run_operations(LayeredKind kind, Layout layout, DType dtype,
                                  const std::vector<Op>& ops) {
  LayeredPair pair(kind, layout, dtype);
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const std::string wrong = pair.step(ops[i]);
    if (!wrong.empty()) return "operation " + std::to_string(i) + ": " + wrong;
  }
  return "";
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_API_LAYERED_MODEL_H_
