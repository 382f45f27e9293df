// Bytes and operations of a model, and a small one measured.
#include "bench/decode_model.h"

#include <map>
#include <string>

#include "bench/report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

using runner::WeightType;

runner::ModelConfig tiny() {
  runner::ModelConfig config;
  config.vocab_size = 50;
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 256;
  config.tie_word_embeddings = true;
  return config;
}

// q and o [16, 32], k and v [16, 16], gate, up and down [16, 24].
constexpr std::int64_t kLayer = 16 * (2 * 32 + 2 * 16 + 3 * 24);

TEST(DecodeBytes, CountMatricesOnceAndTheRowsOfTheDepth) {
  EXPECT_EQ(decode_bytes(tiny(), WeightType::kF32, 7, 0), (2 * kLayer + 50 * 16) * 4);
  EXPECT_EQ(decode_bytes(tiny(), WeightType::kBF16, 2 * 2 * 2 * 8 * 2, 10),
            (2 * kLayer + 50 * 16) * 2 + 10 * 2 * 2 * 2 * 8 * 2);
}

TEST(PromptOperations, CountTheHeadForTheLastTokenAndCausalPairs) {
  EXPECT_EQ(prompt_operations(tiny(), 3),
            2.0 * 2 * kLayer * 3 + 2.0 * 50 * 16 + 4.0 * 2 * 4 * 8 * (1 + 2 + 3));
}

TEST(ModelShape, HasTheParametersOfItsName) {
  const auto qwen = model_shape("qwen2-0.5b");
  ASSERT_TRUE(qwen.ok());
  EXPECT_NEAR(static_cast<double>(decode_bytes(*qwen, WeightType::kBF16, 0, 0)) / 2, 0.494e9,
              0.001e9);
  const auto llama = model_shape("llama-1b");
  ASSERT_TRUE(llama.ok());
  EXPECT_NEAR(static_cast<double>(decode_bytes(*llama, WeightType::kBF16, 0, 0)) / 2, 1.236e9,
              0.001e9);
  EXPECT_THAT(model_shape("gpt-9").status().message(), ::testing::HasSubstr("found gpt-9"));
}

TEST(RunDecodeModel, MeasuresAndChecksEveryCacheAndType) {
  DecodeModelOptions options;
  options.config = tiny();
  options.depths = {0, 40};
  options.prompt = 20;
  options.tokens = 2;
  options.repeats = 2;
  options.threads = 2;
  options.roof_bytes = 1 << 20;
  for (const auto cache :
       {runner::HistoryKind::kDynamic, runner::HistoryKind::kStatic, runner::HistoryKind::kPaged}) {
    for (const WeightType weights :
         {WeightType::kF32, WeightType::kF16, WeightType::kBF16, WeightType::kInt8}) {
      options.cache = cache;
      options.weights = weights;
      const auto cases = run_decode_model(options, {});
      ASSERT_TRUE(cases.ok()) << cases.status().to_string();
      ASSERT_EQ(cases->size(), 3u);
      EXPECT_EQ((*cases)[0].name, "prompt of 20");
      EXPECT_EQ((*cases)[2].name, "decode at depth 40");
      EXPECT_TRUE(check_answers(*cases).ok()) << check_answers(*cases).to_string();
      for (const Case& each : *cases) {
        EXPECT_GT(each.achieved, 0);
        std::map<std::string, double> details(each.details.begin(), each.details.end());
        // What a token, or a prompt, is made of.
        EXPECT_GT(details["linear ms"], 0);
        EXPECT_GT(details["attention ms"], 0);
        EXPECT_GT(details["rest ms"], 0);
      }
    }
  }
}

TEST(RunDecodeModel, CodedRowsReadFewerBytes) {
  DecodeModelOptions options;
  options.config = tiny();
  options.config.head_dim = 32;
  options.cache = runner::HistoryKind::kPaged;
  options.depths = {40};
  options.prompt = 20;
  options.tokens = 2;
  options.repeats = 1;
  options.threads = 2;
  options.roof_bytes = 1 << 20;
  for (const char* words : {"int8", "k=int8,v=lm4", "int4:0,bf16"}) {
    auto rows = runner::KvDtype::parse(words);
    ASSERT_TRUE(rows.ok());
    options.kv_dtype = *std::move(rows);
    const auto cases = run_decode_model(options, {});
    ASSERT_TRUE(cases.ok()) << words << cases.status().to_string();
    EXPECT_TRUE(check_answers(*cases).ok()) << words << check_answers(*cases).to_string();
  }
  options.cache = runner::HistoryKind::kDynamic;
  EXPECT_EQ(run_decode_model(options, {}).status().message(),
            "cache: found dynamic for rows in int4:0,bf16, expected paged, batching or none");
}

TEST(RunDecodeModel, DepthsPastTheModelAreRefused) {
  DecodeModelOptions options;
  options.config = tiny();
  options.prompt = 20;
  options.tokens = 2;
  options.depths = {256};
  const Status status = run_decode_model(options, {}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("depth: found 256, expected 0 .. 244"));
}

}  // namespace
}  // namespace kvcache::bench
