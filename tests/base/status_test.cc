#include "kvcache/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "base/door.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
namespace {

TEST(Status, DefaultIsOkAndSaysSo) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kOk);
  EXPECT_EQ(status.to_string(), "ok");
}

TEST(Status, ErrorIsCodeAndMessage) {
  const Status status(StatusCode::kOutOfRange, "layer_idx: found 7, expected 0 .. 3");
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.to_string(), "out of range: layer_idx: found 7, expected 0 .. 3");
}

TEST(Status, EveryCodeHasANameOfItsOwn) {
  std::string seen = ",";
  for (int code = 0; code <= 11; ++code) {
    const std::string name = name_of(static_cast<StatusCode>(code));
    EXPECT_EQ(seen.find("," + name + ","), std::string::npos) << name;
    seen += name + ",";
  }
  EXPECT_STREQ(name_of(static_cast<StatusCode>(99)), "unknown error");
}

Result<std::unique_ptr<int>> make_int(bool good) {
  if (!good) return Status(StatusCode::kNotFound, "int: found none, expected one");
  return std::make_unique<int>(7);
}

Status use_int(bool good, int* out) {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<int> value, make_int(good));
  KVC_RETURN_IF_ERROR(Status());
  *out = *value;
  return {};
}

TEST(Result, CarriesMoveOnlyValuesAndErrorsThroughTheMacros) {
  int out = 0;
  EXPECT_TRUE(use_int(true, &out).ok());
  EXPECT_EQ(out, 7);
  const Status status = use_int(false, &out);
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(out, 7);
}

TEST(Door, ExceptionsOfContainersBecomeOutOfMemory) {
  const Status no_memory = internal::at_door([]() -> Status { throw std::bad_alloc(); });
  EXPECT_EQ(no_memory.code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(no_memory.to_string(), "out of memory");
  const Result<int> too_long =
      internal::at_door([]() -> Result<int> { throw std::length_error("vector"); });
  EXPECT_EQ(too_long.status().code(), StatusCode::kOutOfMemory);
}

TEST(Door, AnyOtherExceptionBecomesAnErrorThatSaysWhatItSaid) {
  const Status told = internal::at_door([]() -> Status { throw std::runtime_error("no luck"); });
  EXPECT_EQ(told.code(), StatusCode::kInternal);
  EXPECT_EQ(told.message(), "exception: no luck");
  const Result<int> untold = internal::at_door([]() -> Result<int> { throw 7; });
  EXPECT_EQ(untold.status().code(), StatusCode::kInternal);
  EXPECT_EQ(untold.status().message(), "exception: of no known type");
}

TEST(Door, ValuesPassThrough) {
  const Result<int> value = internal::at_door([]() -> Result<int> { return 5; });
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(*value, 5);
}

TEST(Names, DtypesAndLayouts) {
  EXPECT_STREQ(name_of(DType::kF32), "f32");
  EXPECT_STREQ(name_of(DType::kF16), "f16");
  EXPECT_STREQ(name_of(DType::kBF16), "bf16");
  EXPECT_STREQ(name_of(DType::kI32), "i32");
  EXPECT_STREQ(name_of(DType::kI64), "i64");
  EXPECT_STREQ(name_of(static_cast<DType>(77)), "?");
  EXPECT_STREQ(name_of(Layout::kHND), "hnd");
  EXPECT_STREQ(name_of(Layout::kNHD), "nhd");
}

TEST(Version, LibraryAgreesWithItsHeaders) {
  EXPECT_EQ(std::string(version()), std::to_string(KVC_VERSION_MAJOR) + "." +
                                        std::to_string(KVC_VERSION_MINOR) + "." +
                                        std::to_string(KVC_VERSION_PATCH));
}

}  // namespace
}  // namespace kvcache
