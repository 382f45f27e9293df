// From tokens back to text, step by step, as the tokens come.
#ifndef KVCACHE_RUNNER_TOKENIZER_DECODER_H_
#define KVCACHE_RUNNER_TOKENIZER_DECODER_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"

namespace kvcache::runner {

// "decoder" of tokenizer.json: ByteLevel, Replace, ByteFallback, Fuse, Strip, or a Sequence of
// them. Each turns a list of tokens into another; the last list, joined, is the text.
class Decoder {
 public:
  // All tokens become one, the bytes their characters stand for; U+FFFD where those are not UTF-8.
  // A token with a character that stands for no byte is taken as it is.
  struct ByteLevel {};
  struct Replace {
    std::string pattern;
    std::string content;
  };
  // Neighbours like <0xE2> become the characters whose bytes they are; where those of a run are not
  // UTF-8, each of them becomes U+FFFD.
  struct ByteFallback {};
  struct Fuse {};  // all tokens become one
  // Takes up to `start` and `stop` characters `content` from the ends of every token.
  struct Strip {
    std::string content;
    std::size_t start = 0;
    std::size_t stop = 0;
  };
  using Step = std::variant<ByteLevel, Replace, ByteFallback, Fuse, Strip>;

  // Errors: kUnsupported for any other type, by name, for a Replace by a regular expression, whose
  // matches nobody knows before the last token, and for Replaces that let text grow without bounds;
  // kCorrupt.
  static Result<Decoder> create(const JsonObject& root);

  const std::vector<Step>& steps() const { return steps_; }

 private:
  std::vector<Step> steps_;
};

// A decoder at work on one text. What take() returns after every push, joined, is the decoded text;
// each piece is UTF-8. A step holds back only what a later token may change: the start of a
// character, a run of byte tokens, a part of what Replace or Strip may yet take away. The decoder's
// steps must outlive it.
class Decoding {
 public:
  explicit Decoding(const Decoder& decoder);
  ~Decoding();
  Decoding(Decoding&&) noexcept;
  Decoding& operator=(Decoding&&) noexcept;

  void push(std::string_view token);
  void finish();  // no token follows

  // The text that has become certain since the last call.
  std::string take();

  // What a step hands to the next: the texts of tokens, which may come in several parts.
  class Sink;

 private:
  std::vector<std::unique_ptr<Sink>> sinks_;  // the last step first
  std::unique_ptr<std::string> text_;         // what came out at the end
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_DECODER_H_
