// The running batch told by plain vectors, and random operations on both side by side.
#ifndef KVCACHE_TESTS_API_BATCHING_MODEL_H_
#define KVCACHE_TESTS_API_BATCHING_MODEL_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kvcache/batching_cache.h"
#include "support/batching.h"
#include "support/layered.h"
#include "support/refusing_memory.h"

namespace kvcache::testing {

// One operation: what each number means depends on the first. Any numbers make an operation.
using BatchOp = std::array<std::uint32_t, 4>;

class BatchingPair {
 public:
  static constexpr std::int64_t kSlots = 3, kLayers = 2, kHeads = 2, kKDim = 3, kVDim = 2;
  static constexpr std::int64_t kLongest = 20, kCapacity = 12;

  BatchingPair(Layout layout, DType dtype) : layout_(layout), dtype_(dtype) {
    BatchingOptions options;
    options.layout = layout;
    options.dtype = dtype;
    options.num_layers = kLayers;
    options.max_seq_len = kLongest;
    options.memory = &memory_;
    batch_.emplace(BatchingCache::create(kSlots, options).value());
  }

  // An empty string, or what differs.
  std::string step(const BatchOp& op) {
    const std::int64_t refuse = op[3] % 6 == 0 ? 1 + op[3] / 8 % 4 : 0;
    std::string wrong;
    switch (op[0] % 8) {
      case 0:
      case 1:
        wrong = add(op);
        break;
      case 2:
        wrong = remove(op);
        break;
      case 3:
        wrong = rewind(op);
        break;
      case 4:
        wrong = append(op, refuse, true);
        break;
      default:
        wrong = append(op, refuse, false);
    }
    memory_.refuse(0);
    return wrong.empty() ? compare() : wrong;
  }

 private:
  static constexpr StatusCode kOk = StatusCode::kOk;
  using Row = std::vector<float>;  // [heads * dim]
  struct Layer {
    bool populated = false;  // had rows once
    std::vector<Row> k, v;
    std::int64_t length() const { return static_cast<std::int64_t>(k.size()); }
  };
  struct Slot {
    std::int64_t capacity = 0;  // 0: grows
    std::array<Layer, kLayers> layers;
  };

  std::string judge(const char* name, const Status& status, StatusCode expected) const {
    if (status.code() == expected) return "";
    if (expected == kOk && status.code() == StatusCode::kOutOfMemory && memory_.refused()) {
      return "";
    }
    return std::string(name) + ": " + status.to_string() + ", expected " + name_of(expected);
  }

  // The index of (b, head, t, d) in a tensor of `count` tokens.
  std::int64_t at(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d,
                  std::int64_t heads, std::int64_t count, std::int64_t dim) const {
    return layout_ == Layout::kHND ? ((b * heads + h) * count + t) * dim + d
                                   : ((b * count + t) * heads + h) * dim + d;
  }
  Shape shaped(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const {
    return layout_ == Layout::kHND ? Shape{b, h, t, d} : Shape{b, t, h, d};
  }

  // Small whole numbers, exact in every type; rows[b][t].
  HostTensor random_rows(std::int64_t batch, std::int64_t count, std::int64_t heads,
                         std::int64_t dim, std::uint32_t seed,
                         std::vector<std::vector<Row>>* rows) const {
    HostTensor result(DType::kF32, shaped(batch, heads, count, dim));
    rows->assign(static_cast<std::size_t>(batch), {});
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t t = 0; t < count; ++t) {
        Row row;
        for (std::int64_t h = 0; h < heads; ++h) {
          for (std::int64_t d = 0; d < dim; ++d) {
            seed = seed * 1664525u + 1013904223u;
            row.push_back(static_cast<float>(seed >> 28) / 4 - 2);
            result.set(at(b, h, t, d, heads, count, dim), row.back());
          }
        }
        (*rows)[static_cast<std::size_t>(b)].push_back(row);
      }
    }
    return result;
  }

  std::string add(const BatchOp& op) {
    const std::int64_t id = static_cast<std::int64_t>(op[1] % (kSlots + 1));
    const bool fixed = op[1] / 8 % 3 == 0;
    const std::int64_t length = op[2] % 11;
    std::uint32_t flaw = op[2] / 16 % 16;  // 0: two rows, 1: other heads, 2: unequal layers
    if (flaw == 1 && !shape_known_[0] && !shape_known_[1]) flaw = 3;  // would be the batch's own
    CacheOptions options;
    options.layout = layout_;
    options.dtype = dtype_;
    options.reserve_tokens = 1 + op[1] / 32 % 8;
    options.memory = &memory_;
    std::unique_ptr<Cache> cache = make_layered(
        fixed ? LayeredKind::kStatic : LayeredKind::kDynamic, options, kCapacity, kLayers);
    Slot slot;
    slot.capacity = fixed ? kCapacity : 0;
    const std::int64_t rows_in_batch = flaw == 0 ? 2 : 1, heads = flaw == 1 ? kHeads + 1 : kHeads;
    for (std::int64_t i = 0; i < kLayers && length > 0; ++i) {
      std::vector<std::vector<Row>> k, v;
      const std::int64_t count = length + (flaw == 2 ? i : 0);
      const auto salt = static_cast<std::uint32_t>(i);
      const HostTensor key = random_rows(rows_in_batch, count, heads, kKDim, op[3] + salt, &k);
      const HostTensor value = random_rows(rows_in_batch, count, heads, kVDim, op[3] - salt, &v);
      EXPECT_TRUE(cache->update(key, value, i).ok());
      slot.layers[static_cast<std::size_t>(i)] = {true, k[0], v[0]};
    }
    const StatusCode expected = id == kSlots ? StatusCode::kOutOfRange
                                : slots_[static_cast<std::size_t>(id)].has_value()
                                    ? StatusCode::kInvalidArgument
                                : length > 0 && flaw < 3 ? StatusCode::kInvalidArgument
                                                         : kOk;
    const CacheState before = state_of(*cache);
    const Status status = batch_->add_request(*cache, id);
    if (status.ok()) {
      if (cache->nbytes() != 0 || cache->reserved_bytes() != 0) return "add: given cache not empty";
      slots_[static_cast<std::size_t>(id)] = slot;
      if (length > 0) shape_known_ = {true, true};
    } else if (!(state_of(*cache) == before)) {
      return "add: a refused cache was changed";
    }
    return judge("add_request", status, expected);
  }

  std::string remove(const BatchOp& op) {
    const std::int64_t id = static_cast<std::int64_t>(op[1] % (kSlots + 1));
    const bool there = id < kSlots && slots_[static_cast<std::size_t>(id)].has_value();
    const Status status = batch_->remove_request(id);
    if (there) slots_[static_cast<std::size_t>(id)].reset();
    return judge("remove_request", status,
                 there          ? kOk
                 : id == kSlots ? StatusCode::kOutOfRange
                                : StatusCode::kNotFound);
  }

  std::string rewind(const BatchOp& op) {
    const std::int64_t id = static_cast<std::int64_t>(op[1] % kSlots);
    const std::int64_t n = static_cast<std::int64_t>(op[2] % 6) - 1;
    std::optional<Slot>& slot = slots_[static_cast<std::size_t>(id)];
    std::optional<std::int64_t> shortest;  // of the populated layers
    if (slot) {
      for (const Layer& layer : slot->layers) {
        const std::int64_t length = layer.length();
        if (layer.populated) shortest = std::min(shortest.value_or(length), length);
      }
    }
    const StatusCode expected = !slot                      ? StatusCode::kNotFound
                                : n < 0                    ? StatusCode::kInvalidArgument
                                : n > shortest.value_or(0) ? StatusCode::kOutOfRange
                                                           : kOk;
    const Status status = batch_->rewind(id, n);
    if (status.ok()) {
      for (Layer& layer : slot->layers) {
        if (!layer.populated) continue;
        layer.k.resize(layer.k.size() - static_cast<std::size_t>(n));
        layer.v.resize(layer.v.size() - static_cast<std::size_t>(n));
      }
    }
    return judge("rewind", status, expected);
  }

  std::string append(const BatchOp& op, std::int64_t refuse, bool attended) {
    const std::int64_t layer = static_cast<std::int64_t>(op[1] % (kLayers + (op[1] % 32 == 31)));
    const std::int64_t count = op[2] % 4;
    const std::int64_t heads = op[2] / 8 % 16 == 0 ? kHeads + 1 : kHeads;
    std::vector<std::vector<Row>> k, v, q;
    const HostTensor key = random_rows(kSlots, count, heads, kKDim, op[3], &k);
    const HostTensor value = random_rows(kSlots, count, heads, kVDim, op[3] + 5, &v);
    StatusCode expected = kOk;
    if (layer >= kLayers) {
      expected = StatusCode::kOutOfRange;
    } else if (heads != kHeads && shape_known_[static_cast<std::size_t>(layer)]) {
      expected = StatusCode::kInvalidArgument;
    } else {
      for (const std::optional<Slot>& slot : slots_) {
        if (!slot) continue;
        const std::int64_t after = slot->layers[static_cast<std::size_t>(layer)].length() + count;
        if (after > kLongest || (slot->capacity > 0 && after > slot->capacity)) {
          expected = StatusCode::kOutOfRange;
        }
      }
    }
    if (heads != kHeads && expected == kOk) return "";  // would give the batch another shape
    Status status;
    const std::int64_t committed = memory_.committed(), regions = memory_.regions();
    HostTensor out(DType::kF32, shaped(kSlots, 2 * kHeads, count, kVDim));
    if (attended) {
      const HostTensor queries = random_rows(kSlots, count, 2 * kHeads, kKDim, op[3] + 9, &q);
      memory_.refuse(refuse, true);
      status = batch_->attend(queries, key, value, out.mutable_view(), layer);
    } else {
      memory_.refuse(refuse, true);
      const Result<BatchFetch> fetched = batch_->update_and_fetch(key, value, count, {}, layer);
      status = fetched.status();
      if (fetched.ok() && !mask_is_right(*fetched, layer, count)) return "mask differs";
    }
    const std::string wrong = judge(attended ? "attend" : "update_and_fetch", status, expected);
    if (!status.ok() && (memory_.committed() != committed || memory_.regions() != regions)) {
      return "a failed append kept memory";
    }
    if (!wrong.empty() || !status.ok()) return wrong;
    for (std::size_t b = 0; b < kSlots; ++b) {
      if (!slots_[b]) continue;
      Layer& rows = slots_[b]->layers[static_cast<std::size_t>(layer)];
      if (count > 0) rows.populated = shape_known_[static_cast<std::size_t>(layer)] = true;
      rows.k.insert(rows.k.end(), k[b].begin(), k[b].end());
      rows.v.insert(rows.v.end(), v[b].begin(), v[b].end());
    }
    return attended ? compare_attention(values(out), q, layer, count) : "";
  }

  // After the append: the lengths of the model are those before it.
  bool mask_is_right(const BatchFetch& fetched, std::int64_t layer, std::int64_t count) const {
    const std::vector<float> mask = values(fetched.mask);
    if (static_cast<std::int64_t>(mask.size()) != kSlots * count * fetched.length) return false;
    std::size_t index = 0;
    for (const std::optional<Slot>& slot : slots_) {
      const std::int64_t length =
          slot ? slot->layers[static_cast<std::size_t>(layer)].length() + count : 0;
      for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t j = 0; j < fetched.length; ++j, ++index) {
          const std::int64_t row = j - (fetched.length - length);
          const bool sees = slot && row >= 0 && row <= i + length - count;
          if (mask[index] != (sees ? 0 : kUnseen)) return false;
        }
      }
    }
    return true;
  }

  std::string compare_attention(const std::vector<float>& out,
                                const std::vector<std::vector<Row>>& q, std::int64_t layer,
                                std::int64_t count) const {
    for (std::int64_t b = 0; b < kSlots; ++b) {
      const std::optional<Slot>& slot = slots_[static_cast<std::size_t>(b)];
      for (std::int64_t h = 0; h < 2 * kHeads; ++h) {
        for (std::int64_t t = 0; t < count; ++t) {
          const std::vector<double> expected =
              slot ? naive(slot->layers[static_cast<std::size_t>(layer)],
                           q[static_cast<std::size_t>(b)][static_cast<std::size_t>(t)], h, t, count)
                   : std::vector<double>(kVDim, 0.0);
          for (std::int64_t d = 0; d < kVDim; ++d) {
            const double got =
                out[static_cast<std::size_t>(at(b, h, t, d, 2 * kHeads, count, kVDim))];
            if (!(std::abs(got - expected[static_cast<std::size_t>(d)]) < 1e-4)) {
              return "attention differs in slot " + std::to_string(b);
            }
          }
        }
      }
    }
    return "";
  }

  // Softmax attention of query head `h`, new token t of `count`, in double.
  static std::vector<double> naive(const Layer& rows, const Row& query, std::int64_t h,
                                   std::int64_t t, std::int64_t count) {
    const std::int64_t kv_head = h / 2, seen = rows.length() - count + t + 1;
    std::vector<double> out(kVDim, 0.0);
    double sum = 0;
    for (std::int64_t j = 0; j < seen; ++j) {
      double score = 0;
      for (std::int64_t d = 0; d < kKDim; ++d) {
        score +=
            static_cast<double>(query[static_cast<std::size_t>(h * kKDim + d)]) *
            static_cast<double>(
                rows.k[static_cast<std::size_t>(j)][static_cast<std::size_t>(kv_head * kKDim + d)]);
      }
      const double weight = std::exp(score / std::sqrt(static_cast<double>(kKDim)));
      sum += weight;
      for (std::int64_t d = 0; d < kVDim; ++d) {
        out[static_cast<std::size_t>(d)] +=
            weight *
            static_cast<double>(
                rows.v[static_cast<std::size_t>(j)][static_cast<std::size_t>(kv_head * kVDim + d)]);
      }
    }
    for (double& x : out) x /= sum;
    return out;
  }

  std::string compare() {
    std::int64_t active = 0, nbytes = 0;
    for (std::int64_t b = 0; b < kSlots; ++b) {
      const std::optional<Slot>& slot = slots_[static_cast<std::size_t>(b)];
      if (batch_->occupied(b) != slot.has_value()) return "occupied differs";
      if (!slot) continue;
      ++active;
      for (std::int64_t i = 0; i < kLayers; ++i) {
        const std::int64_t length = slot->layers[static_cast<std::size_t>(i)].length();
        if (batch_->seq_length(b, i).value() != length) return "length differs";
        nbytes += length * kHeads * (kKDim + kVDim) * size_of(dtype_);
      }
    }
    if (batch_->active() != active) return "active differs";
    if (batch_->nbytes() != nbytes) return "nbytes differs";
    for (std::int64_t i = 0; i < kLayers; ++i) {
      const HostTensor key(DType::kF32, shaped(kSlots, kHeads, 0, kKDim));
      const HostTensor value(DType::kF32, shaped(kSlots, kHeads, 0, kVDim));
      const BatchFetch all = batch_->update_and_fetch(key, value, 0, {}, i).value();
      if (!same(all.key, all.length, i, kKDim, &Layer::k)) return "keys differ";
      if (!same(all.value, all.length, i, kVDim, &Layer::v)) return "values differ";
    }
    if (batch_->reserved_bytes() != memory_.committed()) return "reserved_bytes differs";
    return "";
  }

  bool same(const TensorView& dense, std::int64_t longest, std::int64_t layer, std::int64_t dim,
            std::vector<Row> Layer::*member) const {
    std::vector<float> expected(static_cast<std::size_t>(kSlots * kHeads * longest * dim), 0.0f);
    std::int64_t found = 0;
    for (std::int64_t b = 0; b < kSlots; ++b) {
      const std::optional<Slot>& slot = slots_[static_cast<std::size_t>(b)];
      if (!slot) continue;
      const Layer& rows = slot->layers[static_cast<std::size_t>(layer)];
      found = std::max(found, rows.length());
      for (std::int64_t t = 0; t < rows.length(); ++t) {
        for (std::int64_t h = 0; h < kHeads; ++h) {
          for (std::int64_t d = 0; d < dim; ++d) {
            expected[static_cast<std::size_t>(
                at(b, h, longest - rows.length() + t, d, kHeads, longest, dim))] =
                (rows.*member)[static_cast<std::size_t>(t)][static_cast<std::size_t>(h * dim + d)];
          }
        }
      }
    }
    return found == longest && shape_of(dense) == shaped(kSlots, kHeads, longest, dim) &&
           values(dense) == expected;
  }

  Layout layout_;
  DType dtype_;
  RefusingMemory memory_;
  std::optional<BatchingCache> batch_;
  std::array<std::optional<Slot>, kSlots> slots_;
  std::array<bool, kLayers> shape_known_{};
};

// Runs all of them on a fresh batch; an empty string, or what differed and where.
inline std::string run_batch_operations(Layout layout, DType dtype,
                                        const std::vector<BatchOp>& ops) {
  BatchingPair pair(layout, dtype);
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const std::string wrong = pair.step(ops[i]);
    if (!wrong.empty()) return "operation " + std::to_string(i) + ": " + wrong;
  }
  return "";
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_API_BATCHING_MODEL_H_
