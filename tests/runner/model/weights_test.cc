#include "runner/model/weights.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runner/model/model.h"
#include "runner/ops/ops.h"
#include "support/golden_checkpoint.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using Json = nlohmann::ordered_json;

// A copy of a golden checkpoint whose tensors a test may change first.
struct Tensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};
using Tensors = std::map<std::string, Tensor>;

class WeightsTest : public ::testing::Test {
 protected:
  static constexpr const char* kName = "llama_bias";

  // Writes the checkpoint as `change` leaves it and loads it.
  Status load(const std::function<void(Tensors&)>& change, WeightMode mode = WeightMode::kAuto) {
    const std::string from = testing::golden_directory(kName);
    const auto file = SafetensorsFile::open(from + "/model.safetensors");
    EXPECT_TRUE(file.ok());
    Tensors tensors;
    for (const auto& [name, entry] : file->tensors()) {
      const TensorView view = *file->find(name);
      tensors[name] = {entry.dtype, entry.shape,
                       std::string(static_cast<const char*>(view.data),
                                   static_cast<std::size_t>(entry.end - entry.begin))};
    }
    change(tensors);
    Json header = Json::object();
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", tensor.shape},
                      {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    const std::string text = header.dump();
    const auto length = static_cast<std::uint64_t>(text.size());
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, sizeof(length));
    directory_.write("model.safetensors", bytes + text + data);
    directory_.write("config.json", test::read_file(from + "/config.json"));
    auto model = Model::load(directory_.path(), mode);
    if (!model.ok()) return model.status();
    type_ = model->weight_type();
    rows_ = model->default_kv_dtype();
    return {};
  }

  static void narrow_to_bf16(Tensor& tensor) {
    const auto count = static_cast<std::int64_t>(tensor.bytes.size() / sizeof(float));
    std::vector<float> floats(static_cast<std::size_t>(count));
    std::memcpy(floats.data(), tensor.bytes.data(), tensor.bytes.size());
    tensor.bytes.resize(static_cast<std::size_t>(2 * count));
    narrow(floats.data(), DType::kBF16, count, tensor.bytes.data());
    tensor.dtype = "BF16";
  }

  test::TempDir directory_;
  WeightType type_ = WeightType::kF32;
  DType rows_ = DType::kF32;
};

constexpr const char* kQuery = "model.layers.1.self_attn.q_proj.weight";

TEST_F(WeightsTest, AnUnchangedCopyLoads) {
  const Status status = load([](Tensors&) {});
  EXPECT_TRUE(status.ok()) << status.to_string();
}

TEST_F(WeightsTest, AMissingTensorIsNamed) {
  for (const std::string& name : {std::string(kQuery), std::string("model.norm.weight"),
                                  std::string("model.layers.0.mlp.up_proj.bias")}) {
    const Status status = load([&](Tensors& tensors) { tensors.erase(name); });
    EXPECT_EQ(status.code(), StatusCode::kNotFound) << status.to_string();
    EXPECT_NE(status.message().find(name), std::string::npos) << status.message();
  }
}

// What transformers does where config.json says that the head is the embedding.
TEST_F(WeightsTest, TheHeadIsTiedAsTheStoredTensorsAllow) {
  constexpr const char* kEmbedding = "model.embed_tokens.weight";
  constexpr const char* kHead = "lm_head.weight";
  const auto tied = [&](const std::function<void(Tensors&)>& change) {
    static_cast<void>(load(change));  // writes the files; not all of them load untied
    Json config = Json::parse(test::read_file(directory_.path() + "/config.json"));
    config["tie_word_embeddings"] = true;
    directory_.write("config.json", config.dump());
    auto model = Model::load(directory_.path(), WeightMode::kAuto);
    EXPECT_TRUE(model.ok()) << model.status().to_string();
    return std::move(model).value();
  };
  std::string head;
  const auto both = [&](Tensors& tensors) {
    tensors[kHead] = tensors.at(kEmbedding);
    head = tensors[kHead].bytes;
  };
  const Model same = tied(both);
  EXPECT_TRUE(same.config().tie_word_embeddings);
  EXPECT_TRUE(same.config().notes.empty());

  const Model differing = tied([&](Tensors& tensors) {
    both(tensors);
    tensors[kHead].bytes[3] ^= 1;
  });
  EXPECT_FALSE(differing.config().tie_word_embeddings);
  EXPECT_EQ(differing.config().notes,
            (std::vector<std::string>{directory_.path() +
                                      "/config.json: tie_word_embeddings: found true, but "
                                      "lm_head.weight differs from model.embed_tokens.weight: they "
                                      "are not tied, as in transformers"}));
  EXPECT_GT(differing.num_parameters(), same.num_parameters());

  const Model alone = tied([&](Tensors& tensors) {
    both(tensors);
    tensors.erase(kEmbedding);
  });
  EXPECT_TRUE(alone.config().tie_word_embeddings);
  EXPECT_EQ(alone.num_parameters(), same.num_parameters());
  EXPECT_EQ(alone.config().notes.size(), 1u);
  const auto weights = load_weights(directory_.path(), alone.config(), WeightMode::kStored);
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ(weights->head.data, weights->embedding.data);
  EXPECT_EQ(std::memcmp(weights->embedding.data, head.data(), head.size()), 0);

  // Without the word of config.json an embedding is missed.
  EXPECT_EQ(load([&](Tensors& tensors) {
              both(tensors);
              tensors.erase(kEmbedding);
            }).code(),
            StatusCode::kNotFound);
}

TEST_F(WeightsTest, AWrongShapeNamesWhatWasFoundAndExpected) {
  const Status status = load([](Tensors& tensors) {
    auto& shape = tensors.at(kQuery).shape;
    shape = {shape[0] * 2, shape[1] / 2};
  });
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_NE(status.message().find(kQuery), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("found shape"), std::string::npos);
  EXPECT_NE(status.message().find("expected ["), std::string::npos);
  EXPECT_EQ(status.message().find('\n'), std::string::npos);

  const Status flat = load([](Tensors& tensors) {
    auto& shape = tensors.at(kQuery).shape;
    shape = {shape[0] * shape[1]};
  });
  EXPECT_EQ(flat.code(), StatusCode::kCorrupt);
}

TEST_F(WeightsTest, ADtypeThatNoProductTakesIsRefused) {
  const Status status = load([](Tensors& tensors) {
    Tensor& tensor = tensors.at(kQuery);
    tensor.dtype = "I32";
  });
  EXPECT_EQ(status.code(), StatusCode::kUnsupported) << status.to_string();
  EXPECT_NE(status.message().find(kQuery), std::string::npos) << status.message();
}

TEST_F(WeightsTest, MixedDtypesAreRefusedAsStoredAndWidenedOtherwise) {
  const auto mix = [](Tensors& tensors) { narrow_to_bf16(tensors.at(kQuery)); };
  const Status stored = load(mix, WeightMode::kStored);
  EXPECT_EQ(stored.code(), StatusCode::kUnsupported) << stored.to_string();
  EXPECT_NE(stored.message().find(kQuery), std::string::npos) << stored.message();
  for (const WeightMode mode : {WeightMode::kAuto, WeightMode::kF32}) {
    const Status widened = load(mix, mode);
    EXPECT_TRUE(widened.ok()) << widened.to_string();
    EXPECT_EQ(type_, WeightType::kF32);
  }
}

TEST_F(WeightsTest, NormsMayHaveAnotherDtypeThanMatrices) {
  const Status status = load(
      [](Tensors& tensors) {
        for (auto& [name, tensor] : tensors) {
          if (tensor.shape.size() == 2) narrow_to_bf16(tensor);
        }
      },
      WeightMode::kStored);
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(type_, WeightType::kBF16);
}

TEST_F(WeightsTest, Int8TakesAnyMixtureAndKeepsTheRowsOfAuto) {
  const auto mix = [](Tensors& tensors) { narrow_to_bf16(tensors.at(kQuery)); };
  const Status status = load(mix, WeightMode::kInt8);
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(type_, WeightType::kInt8);
  EXPECT_EQ(rows_, DType::kF32);
}

TEST_F(WeightsTest, Int8RefusesWhatIsNotFiniteAndNamesItsRow) {
  for (const float bad : {NAN, INFINITY}) {
    const auto spoil = [&](Tensors& tensors) {
      Tensor& tensor = tensors.at(kQuery);
      const auto width = static_cast<std::size_t>(tensor.shape[1]);
      std::memcpy(tensor.bytes.data() + (2 * width + 1) * sizeof(float), &bad, sizeof(bad));
    };
    const Status status = load(spoil, WeightMode::kInt8);
    EXPECT_EQ(status.code(), StatusCode::kUnsupported) << status.to_string();
    EXPECT_NE(status.message().find(std::string(kQuery) + ": found a NaN or an infinity in row 2, "
                                                          "expected finite numbers"),
              std::string::npos)
        << status.message();
    EXPECT_EQ(status.message().find('\n'), std::string::npos);
    EXPECT_TRUE(load(spoil, WeightMode::kStored).ok());
  }
}

TEST(WeightModeTest, NamesAreReadBack) {
  EXPECT_EQ(*parse_weight_mode("auto"), WeightMode::kAuto);
  EXPECT_EQ(*parse_weight_mode("f32"), WeightMode::kF32);
  EXPECT_EQ(*parse_weight_mode("stored"), WeightMode::kStored);
  EXPECT_EQ(*parse_weight_mode("int8"), WeightMode::kInt8);
  const Status unknown = parse_weight_mode("int4").status();
  EXPECT_EQ(unknown.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(unknown.message(), "weights: found int4, expected auto, f32, stored or int8");
}

TEST(ActivationsTest, NamesAreReadBackAndEightBitsNeedInt8Weights) {
  EXPECT_EQ(*parse_activations("int16"), Activations::kInt16);
  EXPECT_EQ(*parse_activations("int8"), Activations::kInt8);
  EXPECT_EQ(parse_activations("f16").status().message(),
            "activations: found f16, expected int16 or int8");
  const std::string directory = testing::golden_directory(testing::golden_names()[0]);
  for (const WeightMode mode : {WeightMode::kAuto, WeightMode::kF32, WeightMode::kStored}) {
    const Status refused = Model::load(directory, mode, Activations::kInt8).status();
    EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(refused.message(),
              "activations: found int8, expected int16 where weights are not int8");
  }
  EXPECT_TRUE(Model::load(directory, WeightMode::kInt8, Activations::kInt8).ok());
}

TEST(WeightsOfGoldenTest, StoredWeightsAreMappedAndCountedOnce) {
  for (const std::string& name : testing::golden_names()) {
    const auto stored = Model::load(testing::golden_directory(name), WeightMode::kStored);
    const auto widened = Model::load(testing::golden_directory(name), WeightMode::kF32);
    ASSERT_TRUE(stored.ok()) << stored.status().to_string();
    ASSERT_TRUE(widened.ok()) << widened.status().to_string();
    EXPECT_EQ(stored->num_parameters(), widened->num_parameters());
    EXPECT_EQ(widened->weight_bytes(), 4 * widened->num_parameters());
    EXPECT_LE(stored->weight_bytes(), widened->weight_bytes());
    const auto checkpoint = Checkpoint::open(testing::golden_directory(name));
    ASSERT_TRUE(checkpoint.ok());
    EXPECT_EQ(stored->num_parameters(), checkpoint->num_parameters()) << name;
  }
}

}  // namespace
}  // namespace kvcache::runner
