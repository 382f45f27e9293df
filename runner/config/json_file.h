// Reading the JSON files of a model directory: bounded, without exceptions, and with errors that
// name the file and the field. Whoever looks into a Json itself includes <nlohmann/json.hpp>.
#ifndef KVCACHE_RUNNER_CONFIG_JSON_FILE_H_
#define KVCACHE_RUNNER_CONFIG_JSON_FILE_H_

#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json_fwd.hpp>

#include "kvcache/status.h"

namespace kvcache::runner {

using Json = nlohmann::json;

// The bytes of a regular file.
// Errors: kNotFound, kIo; kCorrupt when it holds more than `max_bytes` (checked before allocating).
Result<std::string> read_text_file(const std::string& path, std::int64_t max_bytes);

// `text` as JSON. `name` is what errors call it (a path). A value that no field can have is refused
// by who asks for it, not here: NaN, two values of one key, what lies deeper than 64, and the rest
// of json_reader.h. Errors: kCorrupt.
Result<Json> parse_json(std::string_view text, const std::string& name);

// read_text_file and parse_json.
Result<Json> load_json(const std::string& path, std::int64_t max_bytes);

// A value as it may stand in a message: one line, at most about 60 characters.
std::string describe(const Json& value);
std::string describe(std::string_view text);

// "where: found X, expected Y".
Status found_expected(StatusCode code, std::string_view where, std::string_view found,
                      std::string_view expected);

// An object and the name errors give it ("path: rope_scaling"). A field that is null reads as
// absent. Every getter answers kCorrupt for a value of another type or out of range, and for an
// absent field when there is no fallback.
class JsonObject {
 public:
  // Refuses a node that is not an object. The node must outlive the result.
  static Result<JsonObject> create(const Json& node, std::string where);

  // nullptr when the field is absent or null.
  const Json* find(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr; }

  // Inclusive bounds; a fallback is not checked against them.
  Result<std::int64_t> integer(std::string_view key, std::int64_t lowest, std::int64_t highest,
                               std::optional<std::int64_t> fallback = std::nullopt) const;
  // Finite, and strictly greater than `above`.
  Result<double> number_above(std::string_view key, double above,
                              std::optional<double> fallback = std::nullopt) const;
  Result<bool> boolean(std::string_view key, std::optional<bool> fallback = std::nullopt) const;
  Result<std::string> text(std::string_view key,
                           std::optional<std::string> fallback = std::nullopt) const;
  Result<JsonObject> object(std::string_view key) const;

  // "where: key: found <its value, or nothing>, expected Y".
  Status error(StatusCode code, std::string_view key, std::string_view expected) const;

  const std::string& where() const { return where_; }
  const Json& node() const { return *node_; }

 private:
  JsonObject(const Json& node, std::string where) : node_(&node), where_(std::move(where)) {}

  const Json* node_;
  std::string where_;
};

// Runs `body` (which returns a Status or a Result) and turns what the standard library throws into
// an error: nothing leaves the doors of the runner as an exception.
template <typename Body>
auto without_exceptions(const std::string& name, Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kOutOfMemory, name + ": found no memory left to read it");
  } catch (const std::exception& error) {
    return Status(StatusCode::kInternal, name + ": " + describe(std::string_view(error.what())));
  }
}

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_CONFIG_JSON_FILE_H_
