#include "runner/tokenizer/chat_template.h"

#include <filesystem>
#include <system_error>

#include "runner/config/json_file.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMaxTokenizerConfigBytes = std::int64_t{16} << 20;

Result<bool> config_has_template(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const Json document, load_json(path, kMaxTokenizerConfigBytes));
  KVC_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::create(document, path));
  return root.has("chat_template");
}

}  // namespace

std::string find_chat_template(const std::string& directory) {
  for (const char* name : {"chat_template.jinja", "chat_template.json"}) {
    const std::string path = directory + "/" + name;
    std::error_code unreadable;
    if (std::filesystem::is_regular_file(path, unreadable)) return path;
  }
  const std::string path = directory + "/tokenizer_config.json";
  const Result<bool> found =
      without_exceptions(path, [&]() -> Result<bool> { return config_has_template(path); });
  return found.ok() && *found ? path : std::string();
}

}  // namespace kvcache::runner
