#include "runner/model/kv_dtype.h"

#include <cstdint>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runner/model/fresh_history.h"
#include "runner/model/model.h"
#include "runner/model/paged_history.h"
#include "support/model_runs.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using ::testing::HasSubstr;

ModelConfig config_of(std::int64_t head_dim) {
  ModelConfig config = testing::small_config();
  config.num_layers = 5;
  config.head_dim = head_dim;
  return config;
}

std::vector<LayerSpec> layers_of(std::string_view words, DType otherwise = DType::kBF16) {
  const auto parsed = KvDtype::parse(words);
  EXPECT_TRUE(parsed.ok()) << parsed.status().to_string();
  if (!parsed.ok()) return {};
  const auto layers = parsed->layers(config_of(64), otherwise);
  EXPECT_TRUE(layers.ok()) << layers.status().to_string();
  return layers.ok() ? *layers : std::vector<LayerSpec>();
}

std::string refusal_of(std::string_view words) {
  const auto parsed = KvDtype::parse(words);
  if (!parsed.ok()) return parsed.status().message();
  return parsed->layers(config_of(64), DType::kF32).status().message();
}

TEST(KvDtype, AFormIsOfAllRowsAndNoneIsTheModels) {
  for (const LayerSpec& layer : layers_of("int8")) {
    EXPECT_EQ(layer.key().format, coded(RowFormat::kInt8));
    EXPECT_EQ(layer.value().format, coded(RowFormat::kInt8));
  }
  const auto otherwise = KvDtype().layers(config_of(64), DType::kF16);
  ASSERT_TRUE(otherwise.ok());
  EXPECT_EQ(one_dtype(*otherwise), DType::kF16);
  EXPECT_EQ(one_dtype(layers_of("float32")), DType::kF32);
  EXPECT_FALSE(one_dtype(layers_of("k=f16")).has_value()) << "values are bf16";
  EXPECT_TRUE(one_dtype(layers_of("k=bf16")).has_value());
}

TEST(KvDtype, KeysValuesAndLayersChooseApartAndLayersGoFirst) {
  const auto layers = layers_of("lm4,k=int8:1-2, v=int4-unrotated:2 ,q8_0:4");
  ASSERT_EQ(layers.size(), 5u);
  EXPECT_EQ(layers[0].key().format, coded(RowFormat::kLm4));
  EXPECT_EQ(layers[1].key().format, coded(RowFormat::kInt8));
  EXPECT_EQ(layers[1].value().format, coded(RowFormat::kLm4));
  EXPECT_EQ(layers[2].key().format, coded(RowFormat::kInt8));
  EXPECT_EQ(layers[2].value().format, coded(RowFormat::kInt4, false));
  EXPECT_EQ(layers[3].value().format, coded(RowFormat::kLm4));
  EXPECT_EQ(layers[4].value().format, coded(RowFormat::kQ8_0));
  const auto rest = layers_of("int8:0-3");
  EXPECT_EQ(rest[4].key().format, plain(DType::kBF16));
}

TEST(KvDtype, RotationIsPartOfTheName) {
  EXPECT_TRUE(layers_of("int8-rotated")[0].key().format.rotate);
  EXPECT_FALSE(layers_of("int8-unrotated")[0].key().format.rotate);
  EXPECT_TRUE(layers_of("int4")[0].key().format.rotate);
  EXPECT_FALSE(layers_of("int4-unrotated")[0].key().format.rotate);
  EXPECT_TRUE(layers_of("lm4-rotated")[0].value().format.rotate);
  EXPECT_TRUE(layers_of("q4_0-rotated")[0].value().format.rotate);
}

TEST(KvDtype, WhatIsWrongIsSaidByName) {
  EXPECT_THAT(refusal_of("int5"), HasSubstr("kv_dtype: found int5, expected f32, f16, bf16, int8"));
  EXPECT_THAT(refusal_of(""), HasSubstr("found an empty item"));
  EXPECT_THAT(refusal_of("int8,"), HasSubstr("found an empty item"));
  EXPECT_THAT(refusal_of("f16-rotated"), HasSubstr("found f16-rotated"));
  EXPECT_THAT(refusal_of("lm4-unrotated"), HasSubstr("of which rotation is a part"));
  EXPECT_THAT(refusal_of("x=int8"), HasSubstr("found x=int8"));
  EXPECT_THAT(refusal_of("int8:"), HasSubstr("found int8:, expected layers as 3 or 0-3"));
  for (const char* words : {"int8:-1", "int8:3-1", "int8:a", "int8:1-", "int8:1-2-3", "int8:+1",
                            "int8:99999999999999999999", "int8: 1"}) {
    EXPECT_THAT(refusal_of(words), HasSubstr("expected layers as")) << words;
  }
  EXPECT_EQ(refusal_of("int8:3-5"), "kv_dtype: found int8:3-5, expected layers 0 .. 4");
  EXPECT_EQ(refusal_of("int8,lm4"),
            "kv_dtype: found int8 and lm4, expected one form for the keys of all layers");
  EXPECT_EQ(refusal_of("k=int8,v=lm4,v=int4"),
            "kv_dtype: found v=lm4 and v=int4, expected one form for the values of all layers");
  EXPECT_EQ(refusal_of("int8:0-3,k=lm4:3"),
            "kv_dtype: found int8:0-3 and k=lm4:3, expected one form for layer 3");
}

TEST(KvDtype, AFileHasItemsAndRemarks) {
  const test::TempDir directory;
  const std::string path = directory.path() + "/forms";
  std::ofstream(path) << "# the first layers matter more\nint8:0-1   # both\n\r\n  k=int8,v=lm4\n";
  const auto parsed = KvDtype::parse("@" + path);
  ASSERT_TRUE(parsed.ok()) << parsed.status().to_string();
  EXPECT_EQ(parsed->words(), "int8:0-1,k=int8,v=lm4");
  std::ofstream(path) << "# nothing\n";
  EXPECT_THAT(KvDtype::parse("@" + path).status().message(), HasSubstr("says nothing"));
  std::ofstream(path) << std::string(70000, '#');
  EXPECT_THAT(KvDtype::parse("@" + path).status().message(), HasSubstr("at most 64 KiB"));
  EXPECT_EQ(KvDtype::parse("@" + directory.path() + "/none").status().code(),
            StatusCode::kNotFound);
}

TEST(KvDtype, OnlyPagesHoldRowsInCodesOrThatDiffer) {
  for (const char* words : {"int8", "k=f16", "f16:0-1", "f16,f32:2", "k=int8,v=lm4"}) {
    EXPECT_TRUE(KvDtype::parse(words)->needs_pages()) << words;
  }
  EXPECT_FALSE(KvDtype::parse("bf16")->needs_pages());
  EXPECT_FALSE(KvDtype().needs_pages());
  HistoryOptions options;
  options.rows = *KvDtype::parse("int8:0,bf16");
  options.max_length = 8;
  for (const HistoryKind kind :
       {HistoryKind::kDynamic, HistoryKind::kStatic, HistoryKind::kFunctional}) {
    options.kind = kind;
    const Status status = make_history(config_of(64), options).status();
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    EXPECT_EQ(status.message(), std::string("cache: found ") + name_of(kind) +
                                    " for rows in int8:0,bf16, expected paged, batching or none");
  }
}

TEST(KvDtype, AHeadSizeThatAFormDoesNotAllowIsRefusedByLayer) {
  HistoryOptions options;
  options.kind = HistoryKind::kPaged;
  options.max_length = 8;
  options.rows = *KvDtype::parse("int8,q8_0:2");
  EXPECT_EQ(make_history(config_of(80), options).status().message(),
            "layers[2].key.dim: found 80, expected a multiple of 32 for q8_0");
  options.rows = *KvDtype::parse("v=int8-rotated");
  EXPECT_EQ(make_history(config_of(72), options).status().message(),
            "layers[0].value.dim: found 72, expected a multiple of 16 in rotated rows for int8");
}

// A model that decodes over coded rows, against the whole text anew each step with rows that are
// coded the same way.
TEST(KvDtype, DecodingHasTheLogitsOfTheTextAnewWithRowsInTheSameForm) {
  ModelConfig config = config_of(64);
  const auto model = Model::random(config, WeightType::kF32, 3);
  ASSERT_TRUE(model.ok());
  const auto tokens = testing::some_tokens(40, config.vocab_size);
  for (const char* words : {"int8", "k=int8,v=lm4", "int8-rotated:0-1,k=fp8_e4m3,v=q4_0",
                            "k=f16,v=f32", "int4:0,q8_0:3,f32"}) {
    testing::ModelRun none, paged;
    none.history.kind = HistoryKind::kNone;
    paged.history.kind = HistoryKind::kPaged;
    none.steps = paged.steps = {11, 9, 1};
    none.attention.reproducible = paged.attention.reproducible = true;
    none.history.max_length = paged.history.max_length = 40;
    none.history.rows = paged.history.rows = *KvDtype::parse(words);
    const auto expected = testing::logits_of(*model, tokens, none);
    const auto found = testing::logits_of(*model, tokens, paged);
    // Sums in another order may move a code to its neighbour.
    EXPECT_LT(testing::relative_difference(found, expected), 1e-3) << words;
  }
}

TEST(KvDtype, WhatIsStoredWeighsWhatThePlanSays) {
  const ModelConfig config = config_of(64);
  const auto model = Model::random(config, WeightType::kF32, 3);
  ASSERT_TRUE(model.ok());
  for (const char* words : {"int8", "k=int8,v=lm4", "int4:0-1,q8_0:3,f32"}) {
    for (const std::int64_t tokens : {1, 16, 37}) {
      HistoryOptions options;
      options.kind = HistoryKind::kPaged;
      options.max_length = tokens;
      options.rows = *KvDtype::parse(words);
      const auto history = make_history(config, options);
      ASSERT_TRUE(history.ok());
      ForwardState state;
      std::vector<float> logits;
      ASSERT_TRUE(
          model->forward(testing::some_tokens(tokens, config.vocab_size), **history, state, logits)
              .ok());
      const auto layers = options.rows.layers(config, options.dtype);
      MemoryPlanRequest request;
      request.layers = *layers;
      request.seq_length = tokens;
      const auto planned = plan_memory(CacheKind::kPaged, request);
      ASSERT_TRUE(planned.ok());
      EXPECT_EQ((*history)->usage().nbytes, planned->nbytes) << words;
      EXPECT_EQ((*history)->usage().nbytes, tokens * bytes_per_token(*layers)) << words;
      EXPECT_EQ((*history)->usage().reserved_bytes, planned->reserved_bytes) << words;
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
