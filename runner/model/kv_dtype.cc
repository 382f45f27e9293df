#include "runner/model/kv_dtype.h"

#include <charconv>
#include <cstdio>
#include <memory>
#include <utility>

namespace kvcache::runner {
namespace {

constexpr std::string_view kRotated = "-rotated";
constexpr std::string_view kUnrotated = "-unrotated";
constexpr const char* kForms = "f32, f16, bf16, int8, fp8_e4m3, int4, lm4, q8_0 or q4_0";

Status refusal(std::string_view found, const std::string& expected) {
  return Status(StatusCode::kInvalidArgument,
                "kv_dtype: found " + std::string(found) + ", expected " + expected);
}

std::string_view trimmed(std::string_view text) {
  constexpr const char* kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// A number of a layer; -1 for what is none.
std::int64_t layer_from(std::string_view text) {
  std::int64_t layer = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), layer);
  const bool whole = parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
  return whole && layer >= 0 ? layer : -1;
}

Result<RowFormat> form_from(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (name == name_of(dtype)) return plain(dtype);
  }
  // As the frameworks write them.
  if (name == "float32") return plain(DType::kF32);
  if (name == "float16") return plain(DType::kF16);
  if (name == "bfloat16") return plain(DType::kBF16);
  std::optional<bool> rotate;
  std::string_view base = name;
  if (base.ends_with(kUnrotated)) {
    rotate = false;
    base.remove_suffix(kUnrotated.size());
  } else if (base.ends_with(kRotated)) {
    rotate = true;
    base.remove_suffix(kRotated.size());
  }
  const auto kind = coded_form("kv_dtype", std::string(base).c_str());
  if (!kind.ok()) {
    return refusal(name, std::string(kForms) + ", the last six with -rotated or -unrotated too");
  }
  if (*kind == RowFormat::kLm4 && rotate == false) {
    return refusal(name, "lm4, of which rotation is a part");
  }
  RowFormat format = coded(*kind);
  if (rotate.has_value()) format.rotate = *rotate;
  return format;
}

// The items of a file, one behind the other.
Result<std::string> read_items(const std::string& path) {
  constexpr std::size_t kMost = 65536;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  if (file == nullptr) {
    return Status(StatusCode::kNotFound, "kv_dtype: " + path + ": found no file that can be read");
  }
  std::string text(kMost + 1, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file.get()));
  if (std::ferror(file.get()) != 0) {
    return Status(StatusCode::kIo, "kv_dtype: " + path + ": reading failed");
  }
  if (text.size() > kMost) return refusal(path, "a file of at most 64 KiB");
  std::string items;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t end = rest.find('\n');
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    if (!items.empty()) items += ',';
    items += line;
  }
  if (items.empty()) return refusal(path + ", which says nothing", "a form a line");
  return items;
}

}  // namespace

KvDtype::KvDtype(DType dtype) : words_(name_of(dtype)) {
  items_.push_back({words_, true, true, plain(dtype)});
}

KvDtype::KvDtype(std::optional<DType> dtype) {
  if (dtype.has_value()) *this = KvDtype(*dtype);
}

Result<KvDtype::Item> KvDtype::parse_item(std::string_view words) {
  Item item;
  item.words = std::string(words);
  if (words.starts_with("k=") || words.starts_with("v=")) {
    item.keys = words.front() == 'k';
    item.values = !item.keys;
    words.remove_prefix(2);
  }
  if (const std::size_t colon = words.find(':'); colon != std::string_view::npos) {
    const std::string_view range = words.substr(colon + 1);
    words = words.substr(0, colon);
    const std::size_t dash = range.find('-');
    item.first_layer = layer_from(range.substr(0, dash));
    item.last_layer =
        dash == std::string_view::npos ? item.first_layer : layer_from(range.substr(dash + 1));
    if (item.first_layer < 0 || item.last_layer < item.first_layer) {
      return refusal(item.words, "layers as 3 or 0-3 behind the colon");
    }
  }
  KVC_ASSIGN_OR_RETURN(item.format, form_from(words));
  return item;
}

Result<KvDtype> KvDtype::parse(std::string_view words) {
  std::string items(words);
  if (words.starts_with('@')) {
    KVC_ASSIGN_OR_RETURN(items, read_items(std::string(words.substr(1))));
  }
  KvDtype parsed;
  for (std::string_view rest = items;;) {
    const std::size_t end = rest.find(',');
    const std::string_view words_of_item = trimmed(rest.substr(0, end));
    if (words_of_item.empty()) return refusal("an empty item", kForms);
    KVC_ASSIGN_OR_RETURN(Item item, parse_item(words_of_item));
    if (!parsed.words_.empty()) parsed.words_ += ',';
    parsed.words_ += item.words;
    parsed.items_.push_back(std::move(item));
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  // Of items without layers only one may speak of keys, and of values.
  for (const bool of_keys : {true, false}) {
    const Item* before = nullptr;
    for (const Item& item : parsed.items_) {
      if (item.first_layer >= 0 || !(of_keys ? item.keys : item.values)) continue;
      if (before != nullptr) {
        return refusal(
            before->words + " and " + item.words,
            std::string("one form for the ") + (of_keys ? "keys" : "values") + " of all layers");
      }
      before = &item;
    }
  }
  return parsed;
}

Result<std::vector<LayerSpec>> KvDtype::layers(const ModelConfig& config, DType otherwise) const {
  struct Named {
    RowFormat format;
    const Item* by = nullptr;
  };
  const auto count = static_cast<std::size_t>(config.num_layers);
  std::vector<Named> keys(count, {plain(otherwise)}), values = keys;
  for (const bool in_layers : {false, true}) {
    for (const Item& item : items_) {
      if ((item.first_layer >= 0) != in_layers) continue;
      if (item.last_layer >= config.num_layers) {
        return refusal(item.words, "layers 0 .. " + std::to_string(config.num_layers - 1));
      }
      const std::size_t first = in_layers ? static_cast<std::size_t>(item.first_layer) : 0;
      const std::size_t end = in_layers ? static_cast<std::size_t>(item.last_layer) + 1 : count;
      for (std::size_t layer = first; layer < end; ++layer) {
        for (Named* named :
             {item.keys ? &keys[layer] : nullptr, item.values ? &values[layer] : nullptr}) {
          if (named == nullptr) continue;
          if (named->by != nullptr && in_layers && named->by->first_layer >= 0) {
            return refusal(named->by->words + " and " + item.words,
                           "one form for layer " + std::to_string(layer));
          }
          *named = {item.format, &item};
        }
      }
    }
  }
  std::vector<LayerSpec> specs;
  specs.reserve(count);
  for (std::size_t layer = 0; layer < count; ++layer) {
    specs.push_back(LayerSpec::kv(config.num_kv_heads, config.head_dim, config.head_dim,
                                  keys[layer].format, values[layer].format));
  }
  if (residual_tokens_ != 0 && !is_coded()) {
    return Status(StatusCode::kInvalidArgument, "residual_tokens: found " +
                                                    std::to_string(residual_tokens_) +
                                                    ", expected 0 where no layer is coded");
  }
  return specs;
}

bool KvDtype::is_coded() const noexcept {
  return std::any_of(items_.begin(), items_.end(),
                     [](const Item& item) { return item.format.is_coded(); });
}

bool KvDtype::needs_pages() const noexcept {
  if (items_.empty()) return false;
  const Item& first = items_.front();
  return items_.size() > 1 || first.format.is_coded() || !first.keys || !first.values ||
         first.first_layer >= 0;
}

std::optional<DType> one_dtype(std::span<const LayerSpec> layers) noexcept {
  if (layers.empty()) return std::nullopt;
  const RowFormat& format = layers.front().key().format;
  if (format.is_coded()) return std::nullopt;
  for (const LayerSpec& layer : layers) {
    if (!(layer.key().format == format) || !(layer.value().format == format)) return std::nullopt;
  }
  return format.dtype;
}

std::int64_t bytes_per_token(std::span<const LayerSpec> layers) noexcept {
  std::int64_t bytes = 0;
  for (const LayerSpec& layer : layers) bytes += kvcache::bytes_per_token(layer);
  return bytes;
}

}  // namespace kvcache::runner
