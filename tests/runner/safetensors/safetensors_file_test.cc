#include "runner/safetensors/safetensors_file.h"

#include <cstring>
#include <random>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/mutate.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using Json = nlohmann::json;

std::string length_of(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(length >> (8 * i)));
  return bytes;
}

// A file of `header` and `data`.
std::string file_of(const std::string& header, const std::string& data) {
  return length_of(header.size()) + header + data;
}

std::string floats(std::initializer_list<float> values) {
  std::string bytes;
  for (const float value : values) {
    char raw[sizeof(value)];
    std::memcpy(raw, &value, sizeof(value));
    bytes.append(raw, sizeof(raw));
  }
  return bytes;
}

Json tensor(const char* dtype, const std::vector<std::int64_t>& shape, std::int64_t begin,
            std::int64_t end) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, end}}};
}

// The error of a header over `bytes` bytes of data.
std::string header_error(const Json& header, std::int64_t bytes) {
  const Status status = parse_safetensors_header(header.dump(), bytes, "f").status();
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  return status.message();
}

class SafetensorsFileTest : public ::testing::Test {
 protected:
  std::string error(const std::string& content) {
    const Result<SafetensorsFile> file = SafetensorsFile::open(dir_.write("f", content));
    EXPECT_EQ(file.status().code(), StatusCode::kCorrupt);
    const std::string message = file.status().message();
    EXPECT_EQ(message.rfind(dir_.path() + "/f: ", 0), 0u) << message;
    return message.substr(std::min(message.size(), dir_.path().size() + 4));
  }

  test::TempDir dir_;
};

TEST_F(SafetensorsFileTest, TensorsAreViewsOfTheFile) {
  Json header = {{"b", tensor("F32", {2, 3}, 0, 24)},
                 {"a", tensor("BF16", {2}, 24, 28)},
                 {"s", tensor("F16", {}, 28, 30)},
                 {"none", tensor("F32", {0, 1LL << 62, 1LL << 62}, 30, 30)},
                 {"__metadata__", {{"format", "pt"}}}};
  std::string text = header.dump();
  while (text.size() % 8 != 0) text += ' ';
  const std::string data = floats({1, 2, 3, 4, 5, 6}) + std::string("\x80\x3f\x00\x40\x00\x3c", 6);
  const Result<SafetensorsFile> file = SafetensorsFile::open(dir_.write("f", file_of(text, data)));
  ASSERT_TRUE(file.ok()) << file.status().to_string();
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->tensors().size(), 4u);

  const TensorView b = *file->find("b");
  EXPECT_EQ(b.dtype, DType::kF32);
  EXPECT_EQ(b.rank, 2);
  EXPECT_EQ(b.shape[0], 2);
  EXPECT_EQ(b.shape[1], 3);
  EXPECT_EQ(b.strides[0], 3);
  EXPECT_EQ(b.strides[1], 1);
  EXPECT_EQ(static_cast<const float*>(b.data)[5], 6.0F);
  const TensorView a = *file->find("a");
  EXPECT_EQ(a.dtype, DType::kBF16);
  EXPECT_EQ(to_float(static_cast<const BFloat16*>(a.data)[1]), 2.0F);
  const TensorView s = *file->find("s");
  EXPECT_EQ(s.rank, 0);
  EXPECT_EQ(s.num_elements(), 1);
  EXPECT_EQ(to_float(*static_cast<const Float16*>(s.data)), 1.0F);
  EXPECT_EQ(file->find("none")->shape[0], 0);
  EXPECT_EQ(file->find("c").status().code(), StatusCode::kNotFound);
}

TEST_F(SafetensorsFileTest, TensorsThatLieUnalignedAreReadAllTheSame) {
  std::string text = Json{{"x", tensor("F32", {2}, 0, 8)}}.dump();
  while (text.size() % 4 != 1) text += ' ';
  const Result<SafetensorsFile> file =
      SafetensorsFile::open(dir_.write("f", file_of(text, floats({1.5F, -2.5F}))));
  ASSERT_TRUE(file.ok()) << file.status().to_string();
  const TensorView x = *file->find("x");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.data) % 4, 0u);
  EXPECT_EQ(static_cast<const float*>(x.data)[1], -2.5F);
}

TEST_F(SafetensorsFileTest, ADTypeItCannotUseIsListedAndRefusedWhenAskedFor) {
  const Json header = {{"i", tensor("I8", {3}, 0, 3)},
                       {"q", tensor("F4", {2, 2}, 3, 5)},
                       {"new", tensor("F3", {7}, 5, 9)},
                       {"deep", tensor("F32", {1, 1, 1, 1, 1}, 9, 13)}};
  const Result<SafetensorsFile> file =
      SafetensorsFile::open(dir_.write("f", file_of(header.dump(), std::string(13, '\0'))));
  ASSERT_TRUE(file.ok()) << file.status().to_string();
  EXPECT_EQ(file->tensors().size(), 4u);
  const Status status = file->find("i").status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_EQ(status.message(),
            dir_.path() + "/f: tensor \"i\": dtype: found I8, expected one of F32 F16 BF16");
  EXPECT_EQ(file->find("new").status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(file->find("deep").status().code(), StatusCode::kUnsupported);
}

TEST_F(SafetensorsFileTest, TheHeaderLengthIsCheckedBeforeItIsUsed) {
  EXPECT_EQ(error(""), "found 0 bytes, expected at least 8 for the header length");
  error("1234567");
  EXPECT_NE(error(length_of(3) + "{}").find("header length: found 3, expected at most 2 bytes"),
            std::string::npos);
  for (const std::uint64_t length : {std::uint64_t{100'000'001}, std::uint64_t{1} << 62,
                                     std::uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    error(length_of(length) + "{}" + std::string(100, ' '));
  }
  error(length_of(0));
}

TEST_F(SafetensorsFileTest, EveryTruncationOfAFileIsRefused) {
  const Json header = {{"x", tensor("F32", {2}, 0, 8)}};
  const std::string whole = file_of(header.dump(), floats({1, 2}));
  ASSERT_TRUE(SafetensorsFile::open(dir_.write("f", whole)).ok());
  for (std::size_t size = 0; size < whole.size(); ++size) error(whole.substr(0, size));
  error(whole + "x");
}

TEST_F(SafetensorsFileTest, WhatIsNoFileIsAnError) {
  EXPECT_EQ(SafetensorsFile::open(dir_.path() + "/absent").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::open(dir_.path()).status().code(), StatusCode::kIo);
}

TEST(SafetensorsHeader, OffsetsThatLieAreRefused) {
  const auto one = [](const Json& entry, std::int64_t bytes) {
    return header_error({{"x", entry}}, bytes);
  };
  EXPECT_EQ(
      one(tensor("F32", {2}, 8, 0), 8),
      "f: tensor \"x\": data_offsets: found [8, 0], expected begin <= end <= 8 bytes of data");
  EXPECT_EQ(
      one(tensor("F32", {2}, 0, 8), 7),
      "f: tensor \"x\": data_offsets: found [0, 8], expected begin <= end <= 7 bytes of data");
  EXPECT_EQ(one(tensor("F32", {3}, 0, 8), 8),
            "f: tensor \"x\": data_offsets: found [0, 8], expected 12 bytes for this shape and "
            "dtype F32");
  EXPECT_EQ(one(tensor("F32", {2}, 0, 8), 9),
            "f: found 9 bytes of data, expected 8 as the header "
            "says");
  EXPECT_EQ(one(tensor("F32", {2}, 4, 12), 12),
            "f: tensor \"x\": data_offsets: found begin 4, expected 0: tensors without overlap or "
            "hole");
  // 2^61 * 2 * 4 bytes wrap to 0 where nobody looks.
  EXPECT_EQ(one(tensor("F32", {1LL << 61, 2}, 0, 0), 0),
            "f: tensor \"x\": shape: found a list of 2, expected one whose bits 63 bits can count");
  one(tensor("F32", {1LL << 62, 1LL << 62}, 0, 0), 0);
  one(tensor("F3", {1LL << 62, 1LL << 62}, 0, 0), 0);
  one(tensor("F4", {3}, 0, 1), 1);
}

TEST(SafetensorsHeader, OverlapsAndHolesAreRefused) {
  EXPECT_EQ(header_error({{"a", tensor("F32", {2}, 0, 8)}, {"b", tensor("F32", {2}, 4, 12)}}, 12),
            "f: tensor \"b\": data_offsets: found begin 4, expected 8: tensors without overlap or "
            "hole");
  EXPECT_EQ(header_error({{"a", tensor("F32", {1}, 0, 4)}, {"b", tensor("F32", {1}, 8, 12)}}, 12),
            "f: tensor \"b\": data_offsets: found begin 8, expected 4: tensors without overlap or "
            "hole");
  header_error({{"a", tensor("F32", {1}, 0, 4)}, {"b", tensor("F32", {1}, 0, 4)}}, 4);
}

TEST(SafetensorsHeader, FieldsOfTheWrongKindAreRefused) {
  const Json good = tensor("F32", {1}, 0, 4);
  ASSERT_TRUE(parse_safetensors_header(Json{{"x", good}}.dump(), 4, "f").ok());
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    for (const Json& value :
         {Json(nullptr), Json(true), Json(1), Json::object(), Json(""), Json{-1, 4}, Json{0.0, 4},
          Json{0, 4, 4}, Json{UINT64_MAX, 4}, Json{"0", "4"}}) {
      Json entry = good;
      entry[key] = value;
      if (std::string(key) == "dtype" && value == "") continue;  // listed, of no known size
      header_error({{"x", entry}}, 4);
    }
    Json entry = good;
    entry.erase(key);
    header_error({{"x", entry}}, 4);
  }
  for (const Json& entry : {Json(1), Json::array(), Json("x"), Json(nullptr)}) {
    header_error({{"x", entry}}, 4);
  }
  header_error({{"x", good}, {"__metadata__", {{"a", 1}}}}, 4);
  header_error({{"x", good}, {"__metadata__", 1}}, 4);
  for (const char* text : {"", " ", "[]", "{", "{\"x\"", "1", "{}{}", "\xff\xfe", "nul"}) {
    EXPECT_EQ(parse_safetensors_header(text, 0, "f").status().code(), StatusCode::kCorrupt) << text;
  }
  const std::string twice = "{\"x\":" + good.dump() + ",\"x\":" + good.dump() + "}";
  EXPECT_EQ(parse_safetensors_header(twice, 4, "f").status().message(),
            "f: tensor \"x\": found two values of one key, expected an object");
}

TEST(SafetensorsHeader, DamagedHeadersNeverCrash) {
  std::mt19937_64 random(20260102);
  const std::string text = Json{
      {"a", tensor("F32", {2, 3}, 0, 24)},
      {"b", tensor("BF16", {4}, 24, 32)},
      {"__metadata__",
       {{"format", "pt"}}}}.dump();
  for (int i = 0; i < 5000; ++i) {
    const Result<SafetensorsHeader> header =
        parse_safetensors_header(test::mutate(text, random), 32, "f");
    if (!header.ok()) {
      EXPECT_EQ(header.status().message().rfind("f: ", 0), 0u);
      continue;
    }
    for (const auto& [name, entry] : header->tensors) {
      EXPECT_LE(0, entry.begin);
      EXPECT_LE(entry.begin, entry.end);
      EXPECT_LE(entry.end, 32);
    }
  }
}

TEST_F(SafetensorsFileTest, DamagedFilesNeverCrash) {
  std::mt19937_64 random(20260103);
  const std::string whole = file_of(Json{{"x", tensor("F32", {2}, 0, 8)}}.dump(), floats({1, 2}));
  for (int i = 0; i < 300; ++i) {
    const Result<SafetensorsFile> file =
        SafetensorsFile::open(dir_.write("f", test::mutate(whole, random)));
    if (!file.ok()) continue;
    for (const auto& [name, entry] : file->tensors()) {
      const Result<TensorView> view = file->find(name);
      if (!view.ok() || view->num_elements() == 0) continue;
      // Reading first and last byte: a lie would show as a fault.
      const auto* bytes = static_cast<const unsigned char*>(view->data);
      EXPECT_GE(bytes[0] + bytes[view->num_elements() * size_of(view->dtype) - 1], 0);
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
