#include "runner/safetensors/safetensors_file.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "runner/config/json_file.h"
#include "runner/config/likely_cause.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own reader

struct DTypeBits {
  std::string_view name;
  std::int64_t bits;
};
constexpr DTypeBits kDTypes[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"F64", 64},    {"I64", 64},
    {"U64", 64},        {"C64", 64},
};

std::optional<std::int64_t> bits_of(std::string_view dtype) {
  for (const DTypeBits& known : kDTypes) {
    if (known.name == dtype) return known.bits;
  }
  return std::nullopt;
}

std::optional<DType> usable_dtype(std::string_view dtype) {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "BF16") return DType::kBF16;
  return std::nullopt;
}

Result<std::int64_t> natural(const JsonObject& object, std::string_view key, const Json& value) {
  const auto* number = value.get_ptr<const Json::number_unsigned_t*>();
  if (number == nullptr || *number > static_cast<std::uint64_t>(INT64_MAX)) {
    std::string where = object.where();
    where.append(": ").append(key);
    return found_expected(StatusCode::kCorrupt, where, describe(value), "integers of at least 0");
  }
  return static_cast<std::int64_t>(*number);
}

Result<TensorEntry> parse_entry(const JsonObject& object, std::int64_t data_bytes) {
  TensorEntry entry;
  KVC_ASSIGN_OR_RETURN(entry.dtype, object.text("dtype"));
  const Json* shape = object.find("shape");
  if (shape == nullptr || !shape->is_array()) {
    return object.error(StatusCode::kCorrupt, "shape", "a list of integers");
  }
  entry.num_elements = 1;
  bool overflow = false;
  for (const Json& item : *shape) {
    KVC_ASSIGN_OR_RETURN(const std::int64_t extent, natural(object, "shape", item));
    entry.shape.push_back(extent);
    overflow |= __builtin_mul_overflow(entry.num_elements, extent, &entry.num_elements);
  }
  const Json* offsets = object.find("data_offsets");
  if (offsets == nullptr || !offsets->is_array() || offsets->size() != 2) {
    return object.error(StatusCode::kCorrupt, "data_offsets", "a list of 2 integers");
  }
  KVC_ASSIGN_OR_RETURN(entry.begin, natural(object, "data_offsets", (*offsets)[0]));
  KVC_ASSIGN_OR_RETURN(entry.end, natural(object, "data_offsets", (*offsets)[1]));
  const std::string where = object.where() + ": data_offsets";
  const std::string found =
      "[" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) + "]";
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return found_expected(StatusCode::kCorrupt, where, found,
                          "begin <= end <= " + std::to_string(data_bytes) + " bytes of data");
  }
  const std::optional<std::int64_t> bits = bits_of(entry.dtype);
  std::int64_t size_bits = 0;
  overflow |= __builtin_mul_overflow(entry.num_elements, bits.value_or(8), &size_bits);
  if (overflow) {
    return object.error(StatusCode::kCorrupt, "shape", "one whose bits 63 bits can count");
  }
  // The size of a dtype of the future is unknown; find() refuses it.
  if (bits && (size_bits % 8 != 0 || size_bits / 8 != entry.end - entry.begin)) {
    return found_expected(
        StatusCode::kCorrupt, where, found,
        std::to_string(size_bits / 8) + " bytes for this shape and dtype " + entry.dtype);
  }
  return entry;
}

Status check_coverage(const SafetensorsHeader& header, std::int64_t data_bytes,
                      const std::string& name) {
  std::vector<const std::pair<const std::string, TensorEntry>*> order;
  order.reserve(header.tensors.size());
  for (const auto& item : header.tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::int64_t covered = 0;
  for (const auto* item : order) {
    if (item->second.begin != covered) {
      return found_expected(
          StatusCode::kCorrupt,
          name + ": tensor " + describe(std::string_view(item->first)) + ": data_offsets",
          "begin " + std::to_string(item->second.begin),
          std::to_string(covered) + ": tensors without overlap or hole");
    }
    covered = item->second.end;
  }
  if (covered != data_bytes) {
    return found_expected(StatusCode::kCorrupt, name, std::to_string(data_bytes) + " bytes of data",
                          std::to_string(covered) + " as the header says");
  }
  return Status();
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, std::int64_t data_bytes,
                                                   const std::string& name) {
  return without_exceptions(name, [&]() -> Result<SafetensorsHeader> {
    KVC_ASSIGN_OR_RETURN(const Json document, parse_json(json, name + ": header"));
    KVC_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::create(document, name + ": header"));
    SafetensorsHeader header;
    for (const auto& [key, value] : document.items()) {
      if (key == "__metadata__") {
        if (value.is_null()) continue;
        KVC_ASSIGN_OR_RETURN(const JsonObject metadata, root.object(key));
        for (const auto& [field, unused] : value.items()) {
          KVC_ASSIGN_OR_RETURN(header.metadata[field], metadata.text(field));
        }
        continue;
      }
      const std::string where = name + ": tensor " + describe(std::string_view(key));
      KVC_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::create(value, where));
      KVC_ASSIGN_OR_RETURN(header.tensors[key], parse_entry(object, data_bytes));
    }
    KVC_RETURN_IF_ERROR(check_coverage(header, data_bytes, name));
    return header;
  });
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  return without_exceptions(path, [&]() -> Result<SafetensorsFile> {
    KVC_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(path));
    const std::span<const std::byte> bytes = mapped.bytes();
    const auto size = static_cast<std::int64_t>(bytes.size());
    if (size < kLengthBytes) {
      return found_expected(StatusCode::kCorrupt, path, std::to_string(size) + " bytes",
                            "at least 8 for the header length");
    }
    std::uint64_t length = 0;
    for (int i = kLengthBytes - 1; i >= 0; --i) {
      length = length << 8 | std::to_integer<std::uint64_t>(bytes[static_cast<std::size_t>(i)]);
    }
    const std::int64_t limit = std::min(kMaxHeaderBytes, size - kLengthBytes);
    if (length > static_cast<std::uint64_t>(limit)) {
      const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                                   std::min<std::size_t>(bytes.size(), 256));
      if (const std::string kind = kind_of_content(start); !kind.empty()) {
        return found_expected(StatusCode::kCorrupt, path, kind, "a safetensors file");
      }
      return found_expected(StatusCode::kCorrupt, path + ": header length", std::to_string(length),
                            "at most " + std::to_string(limit) + " bytes");
    }
    const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
    SafetensorsFile result(path, std::move(mapped));
    result.data_ = bytes.subspan(static_cast<std::size_t>(kLengthBytes) + length);
    KVC_ASSIGN_OR_RETURN(
        result.header_,
        parse_safetensors_header(json, static_cast<std::int64_t>(result.data_.size()), path));
    for (const auto& [name, entry] : result.header_.tensors) {
      const std::optional<DType> dtype = usable_dtype(entry.dtype);
      if (!dtype || entry.begin == entry.end) continue;
      const std::byte* data = result.data_.data() + entry.begin;
      if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size_of(*dtype)) ==
          0) {
        continue;
      }
      const auto count = static_cast<std::size_t>(entry.end - entry.begin);
      auto copy = std::make_unique<std::byte[]>(count);
      std::memcpy(copy.get(), data, count);
      result.realigned_.emplace(name, std::move(copy));
    }
    return result;
  });
}

Result<TensorView> SafetensorsFile::find(std::string_view name) const {
  const auto it = header_.tensors.find(name);
  const std::string where = path_ + ": tensor " + describe(name);
  if (it == header_.tensors.end()) {
    return found_expected(StatusCode::kNotFound, where, "nothing", "a tensor of this name");
  }
  const TensorEntry& entry = it->second;
  const std::optional<DType> dtype = usable_dtype(entry.dtype);
  if (!dtype) {
    return found_expected(StatusCode::kUnsupported, where + ": dtype", entry.dtype,
                          "one of F32 F16 BF16");
  }
  if (entry.shape.size() > static_cast<std::size_t>(kMaxRank)) {
    return found_expected(StatusCode::kUnsupported, where + ": shape",
                          std::to_string(entry.shape.size()) + " axes",
                          "at most " + std::to_string(kMaxRank));
  }
  TensorView view;
  const auto copy = realigned_.find(name);
  view.data = copy != realigned_.end() ? copy->second.get() : data_.data() + entry.begin;
  view.dtype = *dtype;
  view.rank = static_cast<std::int32_t>(entry.shape.size());
  std::int64_t stride = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    view.shape[axis] = entry.shape[static_cast<std::size_t>(axis)];
    if (entry.num_elements == 0) continue;  // extents beside a 0 are not bounded
    view.strides[axis] = stride;
    stride *= view.shape[axis];
  }
  return view;
}

}  // namespace kvcache::runner
