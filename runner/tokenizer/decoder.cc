#include "runner/tokenizer/decoder.h"

#include <utility>

#include "runner/tokenizer/component.h"
#include "runner/tokenizer/replace.h"

namespace kvcache::runner {
namespace {

Result<Decoder::Step> read_step(const JsonObject& component, std::size_t* growth) {
  KVC_ASSIGN_OR_RETURN(const std::string type, component.text("type"));
  if (type == "ByteLevel") {
    // None of its options changes what it decodes.
    KVC_RETURN_IF_ERROR(
        refuse_unknown_keys(component, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    return Decoder::Step(Decoder::ByteLevel{});
  }
  if (type == "ByteFallback") {
    KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type"}));
    return Decoder::Step(Decoder::ByteFallback{});
  }
  if (type == "Fuse") {
    KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type"}));
    return Decoder::Step(Decoder::Fuse{});
  }
  if (type == "Replace") {
    KVC_ASSIGN_OR_RETURN(Replace replace, Replace::read(component));
    if (replace.pattern.text() == nullptr) {
      return component.error(StatusCode::kUnsupported, "pattern", "a String in a decoder");
    }
    *growth *= replace.growth();
    if (*growth > kMaxGrowth) {
      return component.error(StatusCode::kUnsupported, "content",
                             "one that leaves a text at most " + std::to_string(kMaxGrowth) +
                                 " times as long as it was");
    }
    return Decoder::Step(Decoder::Replace{*replace.pattern.text(), std::move(replace.content)});
  }
  if (type == "Strip") {
    KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", "content", "start", "stop"}));
    Decoder::Strip strip;
    KVC_ASSIGN_OR_RETURN(strip.content, one_character(component, "content"));
    KVC_ASSIGN_OR_RETURN(const std::int64_t start, component.integer("start", 0, INT32_MAX));
    KVC_ASSIGN_OR_RETURN(const std::int64_t stop, component.integer("stop", 0, INT32_MAX));
    strip.start = static_cast<std::size_t>(start);
    strip.stop = static_cast<std::size_t>(stop);
    return Decoder::Step(std::move(strip));
  }
  return component.error(StatusCode::kUnsupported, "type",
                         "ByteLevel, Replace, ByteFallback, Fuse or Strip");
}

}  // namespace

Result<Decoder> Decoder::create(const JsonObject& root) {
  KVC_ASSIGN_OR_RETURN(const JsonObject component, root.object("decoder"));
  KVC_ASSIGN_OR_RETURN(const auto parts, flatten_sequence(component, "decoders"));
  Decoder result;
  std::size_t growth = 1;
  for (const JsonObject& part : parts) {
    KVC_ASSIGN_OR_RETURN(Step step, read_step(part, &growth));
    result.steps_.push_back(std::move(step));
  }
  return result;
}

}  // namespace kvcache::runner
