#include "runner/tokenizer/pre_tokenizer.h"

#include <string>
#include <utility>

#include "runner/tokenizer/component.h"

namespace kvcache::runner {

Result<PreTokenizer::Step> PreTokenizer::read_step(const JsonObject& component, bool is_first,
                                                   const Normalizer& normalizer) {
  KVC_ASSIGN_OR_RETURN(const std::string type, component.text("type"));
  if (type == "Split") {
    KVC_ASSIGN_OR_RETURN(Split split, Split::read(component));
    return Step(std::move(split));
  }
  if (type == "Digits") {
    KVC_ASSIGN_OR_RETURN(Split digits, Split::read_digits(component));
    return Step(std::move(digits));
  }
  if (type == "ByteLevel") {
    KVC_ASSIGN_OR_RETURN(ByteLevel byte_level, ByteLevel::read(component));
    return Step(std::move(byte_level));
  }
  if (type == "Metaspace") {
    KVC_ASSIGN_OR_RETURN(Metaspace metaspace, Metaspace::read(component));
    if (metaspace.prepend == Metaspace::Prepend::kFirst) {
      if (!is_first) {
        return component.error(StatusCode::kUnsupported, "prepend_scheme",
                               "always or never after another pre-tokenizer");
      }
      if (!normalizer.keeps_start()) {
        return component.error(StatusCode::kUnsupported, "prepend_scheme",
                               "always or never with a Replace of anything but one character by "
                               "another before it");
      }
    }
    return Step(std::move(metaspace));
  }
  return component.error(StatusCode::kUnsupported, "type", "Split, Digits, ByteLevel or Metaspace");
}

Result<PreTokenizer> PreTokenizer::create(const JsonObject& root, const Normalizer& normalizer) {
  PreTokenizer result;
  if (!root.has("pre_tokenizer")) return result;
  KVC_ASSIGN_OR_RETURN(const JsonObject component, root.object("pre_tokenizer"));
  KVC_ASSIGN_OR_RETURN(const auto parts, flatten_sequence(component, "pretokenizers"));
  for (const JsonObject& part : parts) {
    KVC_ASSIGN_OR_RETURN(Step step, read_step(part, &part == parts.data(), normalizer));
    result.steps_.push_back(std::move(step));
  }
  return result;
}

Status PreTokenizer::split(std::string_view text, bool starts_text, Words* words) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    const std::vector<std::string_view> whole = std::exchange(pieces, {});
    for (const std::string_view piece : whole) {
      KVC_RETURN_IF_ERROR(std::visit(
          [&](const auto& each) {
            return each.apply(piece, starts_text, &words->storage, &pieces);
          },
          step));
    }
  }
  words->list.insert(words->list.end(), pieces.begin(), pieces.end());
  return Status();
}

}  // namespace kvcache::runner
