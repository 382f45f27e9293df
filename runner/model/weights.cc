#include "runner/model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <random>
#include <utility>

#include "runner/ops/ops.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kWidenBelow = 100'000'000;  // parameters
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

// Visits every tensor of a family in one order, whatever then provides them. `Source` has
// matrix(name, out, in, Weight*) and vector(name, size, std::vector<float>*), both Status.
template <typename Source>
Status visit(const ModelConfig& config, Weights& weights, Source& source) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q_size = config.num_heads * config.head_dim;
  const std::int64_t kv_size = config.num_kv_heads * config.head_dim;
  const std::int64_t inner = config.intermediate_size;
  KVC_RETURN_IF_ERROR(source.matrix(kEmbedding, config.vocab_size, hidden, &weights.embedding));
  weights.layers.resize(static_cast<std::size_t>(config.num_layers));
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    LayerWeights& layer = weights.layers[i];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const std::string attention = prefix + "self_attn.";
    const std::string mlp = prefix + "mlp.";
    KVC_RETURN_IF_ERROR(
        source.vector(prefix + "input_layernorm.weight", hidden, &layer.attention_norm));
    KVC_RETURN_IF_ERROR(source.vector(prefix + "post_attention_layernorm.weight", hidden,
                                      &layer.feed_forward_norm));
    KVC_RETURN_IF_ERROR(source.matrix(attention + "q_proj.weight", q_size, hidden, &layer.q));
    KVC_RETURN_IF_ERROR(source.matrix(attention + "k_proj.weight", kv_size, hidden, &layer.k));
    KVC_RETURN_IF_ERROR(source.matrix(attention + "v_proj.weight", kv_size, hidden, &layer.v));
    KVC_RETURN_IF_ERROR(source.matrix(attention + "o_proj.weight", hidden, q_size, &layer.o));
    if (config.attention_bias) {
      KVC_RETURN_IF_ERROR(source.vector(attention + "q_proj.bias", q_size, &layer.q_bias));
      KVC_RETURN_IF_ERROR(source.vector(attention + "k_proj.bias", kv_size, &layer.k_bias));
      KVC_RETURN_IF_ERROR(source.vector(attention + "v_proj.bias", kv_size, &layer.v_bias));
    }
    if (config.attention_output_bias) {
      KVC_RETURN_IF_ERROR(source.vector(attention + "o_proj.bias", hidden, &layer.o_bias));
    }
    if (config.qk_norm) {
      KVC_RETURN_IF_ERROR(
          source.vector(attention + "q_norm.weight", config.head_dim, &layer.q_norm));
      KVC_RETURN_IF_ERROR(
          source.vector(attention + "k_norm.weight", config.head_dim, &layer.k_norm));
    }
    KVC_RETURN_IF_ERROR(source.matrix(mlp + "gate_proj.weight", inner, hidden, &layer.gate));
    KVC_RETURN_IF_ERROR(source.matrix(mlp + "up_proj.weight", inner, hidden, &layer.up));
    KVC_RETURN_IF_ERROR(source.matrix(mlp + "down_proj.weight", hidden, inner, &layer.down));
    if (config.mlp_bias) {
      KVC_RETURN_IF_ERROR(source.vector(mlp + "gate_proj.bias", inner, &layer.gate_bias));
      KVC_RETURN_IF_ERROR(source.vector(mlp + "up_proj.bias", inner, &layer.up_bias));
      KVC_RETURN_IF_ERROR(source.vector(mlp + "down_proj.bias", hidden, &layer.down_bias));
    }
  }
  KVC_RETURN_IF_ERROR(source.vector("model.norm.weight", hidden, &weights.final_norm));
  if (config.tie_word_embeddings) {
    weights.head = weights.embedding;
    return {};
  }
  return source.matrix(kHead, config.vocab_size, hidden, &weights.head);
}

void count(Weights& weights, std::int64_t parameters, std::int64_t bytes) {
  weights.num_parameters += parameters;
  weights.nbytes += bytes;
}

// Takes a matrix row by row as int8. `read(row)` gives [in] floats. The number of rows that could
// be held: fewer than `out` where the next has an element that is not finite.
template <typename Read>
std::int64_t quantise(Weights& weights, std::int64_t out, std::int64_t in, Weight* weight,
                      Read&& read) {
  auto* elements = reinterpret_cast<std::int8_t*>(weights.owned.take(out * in));
  auto* scales = reinterpret_cast<float*>(weights.owned.take(out * size_of(DType::kF32)));
  *weight = {elements, WeightType::kInt8, out, in, scales, weights.activations};
  for (std::int64_t o = 0; o < out; ++o) {
    if (!quantise_row(read(o), in, elements + o * in, scales + o)) return o;
  }
  count(weights, out * in, out * in + out * size_of(DType::kF32));
  return out;
}

// Of different types: no. Nothing is lost then, as the tensors are used as they are stored.
Result<bool> hold_the_same(const Checkpoint& checkpoint, const char* one, const char* other) {
  KVC_ASSIGN_OR_RETURN(const TensorView a, checkpoint.find(one));
  KVC_ASSIGN_OR_RETURN(const TensorView b, checkpoint.find(other));
  if (a.dtype != b.dtype || a.rank != b.rank) return false;
  std::int64_t elements = 1;
  for (std::int32_t axis = 0; axis < a.rank; ++axis) {
    if (a.shape[axis] != b.shape[axis]) return false;
    elements *= a.shape[axis];
  }
  const auto bytes = static_cast<std::size_t>(elements * size_of(a.dtype));
  return bytes == 0 || std::memcmp(a.data, b.data, bytes) == 0;
}

class FileSource {
 public:
  FileSource(const Checkpoint& checkpoint, Weights& weights, bool widen_all, bool quantise_all)
      : checkpoint_(checkpoint),
        weights_(weights),
        widen_all_(widen_all),
        quantise_all_(quantise_all) {}

  // The embedding is read from the tensor of the head.
  void take_embedding_from_head() { embedding_ = kHead; }

  Status matrix(const std::string& asked, std::int64_t out, std::int64_t in, Weight* weight) {
    const std::string& name = asked == kEmbedding ? embedding_ : asked;
    KVC_ASSIGN_OR_RETURN(const TensorView stored, find(name, {out, in}));
    if (quantise_all_) return quantised(name, stored, out, in, weight);
    if (widen_all_) {
      weights_.dtype = DType::kF32;
    } else if (first_name_.empty()) {
      weights_.dtype = stored.dtype;
      first_name_ = name;
    } else if (stored.dtype != weights_.dtype) {
      return Status(StatusCode::kUnsupported, checkpoint_.directory() + ": " + name + ": found " +
                                                  name_of(stored.dtype) + ", expected " +
                                                  name_of(weights_.dtype) + " as " + first_name_ +
                                                  " (--weights f32 takes any mixture)");
    }
    weights_.type = weight_type(weights_.dtype);
    *weight = {stored.data, weights_.type, out, in};
    const std::int64_t bytes = out * in * size_of(weights_.dtype);
    if (stored.dtype != weights_.dtype) {  // where all are widened
      std::byte* const copy = weights_.owned.take(bytes);
      widen(stored.data, stored.dtype, out * in, reinterpret_cast<float*>(copy));
      weight->data = copy;
    }
    count(weights_, out * in, bytes);
    return {};
  }

  Status vector(const std::string& name, std::int64_t size, std::vector<float>* values) {
    KVC_ASSIGN_OR_RETURN(const TensorView stored, find(name, {size}));
    values->resize(static_cast<std::size_t>(size));
    widen(stored.data, stored.dtype, size, values->data());
    count(weights_, size, size * size_of(DType::kF32));
    return {};
  }

 private:
  Status quantised(const std::string& name, const TensorView& stored, std::int64_t out,
                   std::int64_t in, Weight* weight) {
    if (first_name_.empty()) {
      weights_.dtype = widen_all_ ? DType::kF32 : stored.dtype;
      first_name_ = name;
    }
    weights_.type = WeightType::kInt8;
    std::vector<float> row(static_cast<std::size_t>(in));
    const Weight source = {stored.data, weight_type(stored.dtype), out, in};
    const std::int64_t done = quantise(weights_, out, in, weight, [&](std::int64_t o) {
      widen_row(source, o, row.data());
      return row.data();
    });
    if (done == out) return {};
    return Status(StatusCode::kUnsupported,
                  checkpoint_.directory() + ": " + name + ": found a NaN or an infinity in row " +
                      std::to_string(done) + ", expected finite numbers for --weights int8");
  }

  Result<TensorView> find(const std::string& name, const std::vector<std::int64_t>& shape) {
    KVC_ASSIGN_OR_RETURN(const TensorView stored, checkpoint_.find(name));
    const std::vector<std::int64_t> found(stored.shape, stored.shape + stored.rank);
    if (found != shape) {
      return Status(StatusCode::kCorrupt, checkpoint_.directory() + ": " + name + ": found shape " +
                                              shape_text(found) + ", expected " +
                                              shape_text(shape) + " by config.json");
    }
    return stored;
  }

  const Checkpoint& checkpoint_;
  Weights& weights_;
  bool widen_all_;
  bool quantise_all_;
  std::string embedding_ = kEmbedding;
  std::string first_name_;
};

class RandomSource {
 public:
  RandomSource(Weights& weights, std::uint64_t seed) : weights_(weights), random_(seed) {}

  Status matrix(const std::string&, std::int64_t out, std::int64_t in, Weight* weight) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(in));
    std::vector<float> row(static_cast<std::size_t>(in));
    const auto next = [&](std::int64_t) {
      for (float& value : row) value = scale * normal();
      return row.data();
    };
    if (weights_.type == WeightType::kInt8) {
      quantise(weights_, out, in, weight, next);
      return {};
    }
    const std::int64_t bytes = in * size_of(weights_.dtype);
    std::byte* const data = weights_.owned.take(out * bytes);
    for (std::int64_t o = 0; o < out; ++o) narrow(next(o), weights_.dtype, in, data + o * bytes);
    *weight = {data, weights_.type, out, in};
    count(weights_, out * in, out * bytes);
    return {};
  }

  Status vector(const std::string& name, std::int64_t size, std::vector<float>* values) {
    const float center = name.ends_with("norm.weight") ? 1.0f : 0.0f;
    values->resize(static_cast<std::size_t>(size));
    for (float& value : *values) value = center + 0.1f * normal();
    count(weights_, size, size * size_of(DType::kF32));
    return {};
  }

 private:
  // The sum of four uniform numbers: near enough to normal, and the same on every platform.
  float normal() {
    const std::uint64_t bits = random_();
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>((bits >> (16 * i)) & 0xffff) / 65535.0f;
    return (sum - 2.0f) * 1.7320508f;
  }

  Weights& weights_;
  std::mt19937_64 random_;
};

}  // namespace

WeightMemory::WeightMemory(WeightMemory&& other) noexcept
    : regions_(std::exchange(other.regions_, {})), left_(std::exchange(other.left_, 0)) {}

WeightMemory& WeightMemory::operator=(WeightMemory&& other) noexcept {
  std::swap(regions_, other.regions_);
  std::swap(left_, other.left_);
  return *this;
}

WeightMemory::~WeightMemory() {
  for (const Region& region : regions_) system_memory().release(region, region.bytes);
}

std::byte* WeightMemory::take(std::int64_t bytes) {
  constexpr std::int64_t kRegion = 64 << 20;
  constexpr std::int64_t kLine = 64;
  bytes = (bytes + kLine - 1) / kLine * kLine;
  if (bytes > left_) {
    regions_.reserve(regions_.size() + 1);
    const Result<Region> region = system_memory().reserve(std::max(bytes, kRegion));
    if (!region.ok()) throw std::bad_alloc();
    regions_.push_back(*region);
    left_ = region->bytes;
    if (!system_memory().commit(*region, left_).ok()) throw std::bad_alloc();
    system_memory().will_fill(*region, 0, left_);
  }
  const Region& last = regions_.back();
  left_ -= bytes;
  return last.data + last.bytes - left_ - bytes;
}

Result<WeightMode> parse_weight_mode(std::string_view name) {
  if (name == "auto") return WeightMode::kAuto;
  if (name == "f32") return WeightMode::kF32;
  if (name == "stored") return WeightMode::kStored;
  if (name == "int8") return WeightMode::kInt8;
  return Status(StatusCode::kInvalidArgument,
                "weights: found " + std::string(name) + ", expected auto, f32, stored or int8");
}

Result<Activations> parse_activations(std::string_view name) {
  if (name == "int16") return Activations::kInt16;
  if (name == "int8") return Activations::kInt8;
  return Status(StatusCode::kInvalidArgument,
                "activations: found " + std::string(name) + ", expected int16 or int8");
}

Result<Weights> load_weights(const std::string& directory, ModelConfig config, WeightMode mode,
                             Activations activations) try {
  if (activations != Activations::kInt16 && mode != WeightMode::kInt8) {
    return Status(StatusCode::kInvalidArgument,
                  "activations: found int8, expected int16 where weights are not int8");
  }
  Weights weights;
  weights.activations = activations;
  KVC_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(directory));
  weights.mapped.emplace(std::move(checkpoint));
  const bool widen_all =
      mode == WeightMode::kF32 ||
      (mode != WeightMode::kStored && weights.mapped->num_parameters() < kWidenBelow);
  const bool quantise_all = mode == WeightMode::kInt8;
  FileSource source(*weights.mapped, weights, widen_all, quantise_all);
  if (config.tie_word_embeddings && weights.mapped->contains(kHead)) {
    if (!weights.mapped->contains(kEmbedding)) {
      source.take_embedding_from_head();
      weights.notes.push_back(directory + ": found lm_head.weight without " + kEmbedding +
                              ": it is taken for both, as transformers takes it");
    } else {
      KVC_ASSIGN_OR_RETURN(const bool same, hold_the_same(*weights.mapped, kEmbedding, kHead));
      if (!same) {
        config.tie_word_embeddings = false;
        weights.notes.push_back(directory + "/config.json: tie_word_embeddings: found true, but " +
                                "lm_head.weight differs from " + kEmbedding +
                                ": they are not tied, as in transformers");
      }
    }
  }
  KVC_RETURN_IF_ERROR(visit(config, weights, source));
  if (quantise_all) weights.mapped.reset();  // nothing points into it
  return weights;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, directory + ": found no memory left for the weights");
}

Result<Weights> random_weights(const ModelConfig& config, WeightType type, std::uint64_t seed,
                               Activations activations) try {
  Weights weights;
  weights.activations = activations;
  weights.type = type;
  weights.dtype = type == WeightType::kF16    ? DType::kF16
                  : type == WeightType::kBF16 ? DType::kBF16
                                              : DType::kF32;
  RandomSource source(weights, seed);
  KVC_RETURN_IF_ERROR(visit(config, weights, source));
  return weights;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "found no memory left for random weights");
}

}  // namespace kvcache::runner
