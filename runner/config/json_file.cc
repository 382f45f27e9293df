#include "runner/config/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "runner/config/json_reader.h"
#include "runner/config/likely_cause.h"

namespace kvcache::runner {
namespace {

constexpr std::size_t kMaxShown = 60;

Status io_error(const std::string& path, const char* what) {
  const int code = errno;
  return Status(code == ENOENT || code == ENOTDIR ? StatusCode::kNotFound : StatusCode::kIo,
                path + ": " + what + ": " + std::strerror(code));
}

}  // namespace

Result<std::string> read_text_file(const std::string& path, std::int64_t max_bytes) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return io_error(path, "cannot be opened");
  struct Closer {
    int file;
    ~Closer() { ::close(file); }
  } closer{file};
  struct stat info = {};
  if (::fstat(file, &info) != 0) return io_error(path, "cannot be examined");
  if (!S_ISREG(info.st_mode)) {
    return found_expected(StatusCode::kIo, path, "something else", "a regular file");
  }
  if (info.st_size > max_bytes) {
    return found_expected(StatusCode::kCorrupt, path, std::to_string(info.st_size) + " bytes",
                          "at most " + std::to_string(max_bytes));
  }
  return without_exceptions(path, [&]() -> Result<std::string> {
    std::string text(static_cast<std::size_t>(info.st_size), '\0');
    std::size_t done = 0;
    while (done < text.size()) {
      const ssize_t count = ::read(file, text.data() + done, text.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return io_error(path, "cannot be read");
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    text.resize(done);
    return text;
  });
}

Result<Json> parse_json(std::string_view text, const std::string& name) {
  return without_exceptions(name, [&]() -> Result<Json> {
    JsonReader reader(text);
    std::optional<Json> document = reader.read();
    if (!document) {
      const std::string kind = kind_of_content(text);
      return found_expected(
          StatusCode::kCorrupt, name,
          kind.empty() ? "bad syntax at byte " + std::to_string(reader.position()) : kind, "JSON");
    }
    return *std::move(document);
  });
}

Result<Json> load_json(const std::string& path, std::int64_t max_bytes) {
  KVC_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, max_bytes));
  return parse_json(text, path);
}

std::string describe(std::string_view text) {
  std::string shown = "\"";
  for (const char c : text) {
    if (shown.size() > kMaxShown) return shown + "...\"";
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      static constexpr char kHex[] = "0123456789abcdef";
      shown += "\\x";
      shown += kHex[byte >> 4];
      shown += kHex[byte & 15];
    } else {
      shown += c;
    }
  }
  return shown + "\"";
}

std::string describe(const Json& value) {
  if (const auto* text = value.get_ptr<const Json::string_t*>()) {
    return describe(std::string_view(*text));
  }
  if (const auto* unreadable = value.get_ptr<const Json::binary_t*>()) {
    const std::string what(unreadable->begin(), unreadable->end());
    return what.size() <= kMaxShown ? what : what.substr(0, kMaxShown) + "...";
  }
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list of " + std::to_string(value.size());
  return value.dump();
}

Status found_expected(StatusCode code, std::string_view where, std::string_view found,
                      std::string_view expected) {
  std::string message(where);
  message.append(": found ").append(found).append(", expected ").append(expected);
  return Status(code, std::move(message));
}

Result<JsonObject> JsonObject::create(const Json& node, std::string where) {
  if (!node.is_object()) {
    return found_expected(StatusCode::kCorrupt, where, describe(node), "an object");
  }
  return JsonObject(node, std::move(where));
}

const Json* JsonObject::find(std::string_view key) const {
  const auto it = node_->find(key);
  return it == node_->end() || it->is_null() ? nullptr : &*it;
}

Status JsonObject::error(StatusCode code, std::string_view key, std::string_view expected) const {
  const Json* value = find(key);
  std::string field = where_;
  field.append(": ").append(key);
  return found_expected(code, field, value == nullptr ? "nothing" : describe(*value), expected);
}

Result<std::int64_t> JsonObject::integer(std::string_view key, std::int64_t lowest,
                                         std::int64_t highest,
                                         std::optional<std::int64_t> fallback) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr) {
    if (const auto* natural = value->get_ptr<const Json::number_unsigned_t*>()) {
      if (*natural <= static_cast<std::uint64_t>(INT64_MAX)) {
        const auto number = static_cast<std::int64_t>(*natural);
        if (lowest <= number && number <= highest) return number;
      }
    } else if (const auto* number = value->get_ptr<const Json::number_integer_t*>()) {
      if (lowest <= *number && *number <= highest) return *number;
    }
  }
  return error(StatusCode::kCorrupt, key,
               "an integer " + std::to_string(lowest) + " .. " + std::to_string(highest));
}

Result<double> JsonObject::number_above(std::string_view key, double above,
                                        std::optional<double> fallback) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number > above) return number;
  }
  std::string expected = "a number above " + Json(above).dump();
  return error(StatusCode::kCorrupt, key, expected);
}

Result<bool> JsonObject::boolean(std::string_view key, std::optional<bool> fallback) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr) {
    if (const auto* flag = value->get_ptr<const Json::boolean_t*>()) return *flag;
  }
  return error(StatusCode::kCorrupt, key, "true or false");
}

Result<std::string> JsonObject::text(std::string_view key,
                                     std::optional<std::string> fallback) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr) {
    if (const auto* string = value->get_ptr<const Json::string_t*>()) return *string;
  }
  return error(StatusCode::kCorrupt, key, "a string");
}

Result<JsonObject> JsonObject::object(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_object()) {
    return error(StatusCode::kCorrupt, key, "an object");
  }
  std::string where = where_;
  where.append(": ").append(key);
  return JsonObject(*value, std::move(where));
}

}  // namespace kvcache::runner
