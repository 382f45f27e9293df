// Any text as tokenizer.json, and what follows a byte 0 as a text to encode: refused, or ids that
// exist and decode to UTF-8, the same whether at once or as they come.
#include <vector>

#include "runner/tokenizer/stream_decoder.h"
#include "runner/tokenizer/tokenizer.h"
#include "runner/tokenizer/utf8.h"
#include "support/fuzz.h"

using kvcache::fuzz::expect;
using kvcache::runner::find_invalid_utf8;
using kvcache::runner::StreamDecoder;
using kvcache::runner::Tokenizer;

namespace {

// A pattern may take long over a long text; here the files are what is looked at.
constexpr std::size_t kMaxTextBytes = 48;

void check_text(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  for (const bool skip_special : {false, true}) {
    const std::string text = tokenizer.decode(ids, skip_special);
    expect(!find_invalid_utf8(text), "UTF-8");
    StreamDecoder decoder(tokenizer, skip_special);
    std::string streamed;
    for (const std::int32_t id : ids) {
      const std::string piece = decoder.push(id);
      expect(!find_invalid_utf8(piece), "pieces of whole characters");
      streamed += piece;
    }
    expect(streamed + decoder.flush() == text, "the same text in pieces as at once");
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto [json, rest] = kvcache::fuzz::split_at_zero(data, size);
  const auto tokenizer = Tokenizer::parse(json, "t");
  if (!tokenizer.ok()) {
    const std::string message = tokenizer.status().message();
    expect(message.rfind("t: ", 0) == 0, "an error that names the file");
    expect(message.find('\n') == std::string::npos, "an error of one line");
    return 0;
  }
  for (const std::string_view text :
       {rest.substr(0, kMaxTextBytes), std::string_view("ab <s> \xc3\xa9")}) {
    const auto ids = tokenizer->encode(text);
    if (!ids.ok()) continue;
    for (const std::int32_t id : *ids) expect(tokenizer->contains(id), "ids that exist");
    check_text(*tokenizer, *ids);
  }
  // The ids themselves, of which text reaches a few.
  std::vector<std::int32_t> ids;
  for (const char byte : rest.substr(0, kMaxTextBytes)) {
    ids.push_back(static_cast<unsigned char>(byte));
  }
  check_text(*tokenizer, ids);
  return 0;
}
