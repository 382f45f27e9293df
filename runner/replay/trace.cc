#include "runner/replay/trace.h"

#include <nlohmann/json.hpp>

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 24;

Status wrong(std::int64_t number, const std::string& found, const std::string& expected) {
  return Status(StatusCode::kInvalidArgument,
                "line " + std::to_string(number) + ": found " + found + ", expected " + expected);
}

}  // namespace

Result<bool> TraceReader::next(TraceRequest* request) {
  do {
    if (!std::getline(lines_, line_)) {
      if (lines_.bad()) return Status(StatusCode::kIo, "trace: could not be read");
      return false;
    }
    ++number_;
  } while (line_.find_first_not_of(" \t\r") == std::string::npos);
  const auto json = nlohmann::json::parse(line_, nullptr, false);
  if (!json.is_object()) return wrong(number_, "no JSON object", "one on each line");
  const auto length = json.find("input_length");
  const auto ids = json.find("hash_ids");
  if (length == json.end() || !length->is_number_integer() || ids == json.end() ||
      !ids->is_array()) {
    return wrong(number_, "no input_length and hash_ids", "a number and an array");
  }
  request->input_length = length->get<std::int64_t>();
  if (request->input_length < 1 || request->input_length > kMostTokens) {
    return wrong(number_, "input_length " + std::to_string(request->input_length), "1 .. 2^24");
  }
  request->blocks.clear();
  for (const auto& id : *ids) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
        id.get<std::int64_t>() >= (std::int64_t{1} << 31)) {
      return wrong(number_, "a block id that is none", "0 .. 2^31 - 1");
    }
    request->blocks.push_back(id.get<std::int64_t>());
  }
  const std::int64_t blocks = (request->input_length + kBlockTokens - 1) / kBlockTokens;
  if (static_cast<std::int64_t>(request->blocks.size()) != blocks) {
    return wrong(
        number_, std::to_string(request->blocks.size()) + " block ids",
        std::to_string(blocks) + " for " + std::to_string(request->input_length) + " tokens");
  }
  return true;
}

void tokens_of(const TraceRequest& request, std::vector<std::int32_t>* tokens) {
  tokens->resize(static_cast<std::size_t>(request.input_length));
  for (std::size_t t = 0; t < tokens->size(); ++t) {
    const auto block =
        static_cast<std::uint32_t>(request.blocks[t / std::size_t{TraceReader::kBlockTokens}]);
    // The first token is the block's id; the others are mixed, so that pages within it differ.
    const auto at = static_cast<std::uint32_t>(t % std::size_t{TraceReader::kBlockTokens});
    const std::uint32_t mixed = at == 0 ? block : (block * 2654435761U + at * 40503U) >> 1;
    (*tokens)[t] = static_cast<std::int32_t>(mixed);
  }
}

}  // namespace kvcache::runner
