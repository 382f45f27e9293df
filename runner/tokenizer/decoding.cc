// The steps of a Decoder at work. Each sink is the definition of its step: Tokenizer::decode() runs
// the same ones.
#include <algorithm>
#include <optional>
#include <utility>

#include "runner/tokenizer/byte_alphabet.h"
#include "runner/tokenizer/decoder.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {

class Decoding::Sink {
 public:
  virtual ~Sink() = default;
  Sink() = default;
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;

  virtual void text(std::string_view part) = 0;  // more of the current token; whole characters
  virtual void end_token() = 0;
  virtual void finish() = 0;  // after the last end_token()
};

namespace {

using Sink = Decoding::Sink;

// The end of the chain.
class Collect final : public Sink {
 public:
  explicit Collect(std::string* out) : out_(out) {}

  void text(std::string_view part) override { *out_ += part; }
  void end_token() override {}
  void finish() override {}

 private:
  std::string* out_;
};

// A step that looks at whole tokens.
class WholeTokens : public Sink {
 public:
  void text(std::string_view part) final { token_ += part; }
  void end_token() final { take(std::exchange(token_, {})); }

 protected:
  virtual void take(std::string token) = 0;

 private:
  std::string token_;
};

class ByteLevelSink final : public WholeTokens {
 public:
  explicit ByteLevelSink(Sink* next) : next_(next) {}

  void finish() override {
    if (!pending_.empty()) next_->text(kReplacementCharacter);
    next_->end_token();
    next_->finish();
  }

 protected:
  void take(std::string token) override {
    const std::optional<std::string> bytes = bytes_of_token(token);
    pending_ += bytes ? *bytes : token;
    std::string certain;
    pending_.erase(0, append_complete_utf8(pending_, &certain));
    if (!certain.empty()) next_->text(certain);
  }

 private:
  Sink* next_;
  std::string pending_;  // the start of one character, at most 3 bytes
};

class ReplaceSink final : public Sink {
 public:
  ReplaceSink(const Decoder::Replace& step, Sink* next) : step_(step), next_(next) {}

  void text(std::string_view part) override {
    held_ += part;
    std::size_t done = 0;
    for (std::size_t at; (at = held_.find(step_.pattern, done)) != std::string::npos;) {
      pass(std::string_view(held_).substr(done, at - done));
      pass(step_.content);
      done = at + step_.pattern.size();
    }
    // The longest end that the pattern may begin with waits for what follows.
    std::size_t keep = std::min(step_.pattern.size() - 1, held_.size() - done);
    while (keep > 0 && !held_.ends_with(std::string_view(step_.pattern).substr(0, keep))) --keep;
    pass(std::string_view(held_).substr(done, held_.size() - keep - done));
    held_.erase(0, held_.size() - keep);
  }
  void end_token() override {
    pass(std::exchange(held_, {}));
    next_->end_token();
  }
  void finish() override { next_->finish(); }

 private:
  void pass(std::string_view part) {
    if (!part.empty()) next_->text(part);
  }

  const Decoder::Replace& step_;
  Sink* next_;
  std::string held_;
};

// The byte that a token like <0x0A> names. As Rust's from_str_radix reads it: a sign may stand
// before one digit.
std::optional<char> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  std::string_view digits = token.substr(3, 2);
  if (digits.front() == '+') digits.remove_prefix(1);
  int value = 0;
  for (const char c : digits) {
    int digit = 0;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      digit = c - 'a' + 10;
    } else if (c >= 'A' && c <= 'F') {
      digit = c - 'A' + 10;
    } else {
      return std::nullopt;
    }
    value = value * 16 + digit;
  }
  return static_cast<char>(value);
}

class ByteFallbackSink final : public WholeTokens {
 public:
  explicit ByteFallbackSink(Sink* next) : next_(next) {}

  void finish() override {
    end_run();
    next_->finish();
  }

 protected:
  void take(std::string token) override {
    if (const std::optional<char> byte = byte_of_token(token)) {
      run_ += *byte;
      return;
    }
    end_run();
    if (!token.empty()) next_->text(token);
    next_->end_token();
  }

 private:
  void end_run() {
    const std::string run = std::exchange(run_, {});
    if (run.empty()) return;
    if (!find_invalid_utf8(run)) {
      next_->text(run);
      next_->end_token();
      return;
    }
    for (std::size_t i = 0; i < run.size(); ++i) {
      next_->text(kReplacementCharacter);
      next_->end_token();
    }
  }

  Sink* next_;
  std::string run_;  // bytes of tokens that follow one another
};

class FuseSink final : public Sink {
 public:
  explicit FuseSink(Sink* next) : next_(next) {}

  void text(std::string_view part) override { next_->text(part); }
  void end_token() override {}
  void finish() override {
    next_->end_token();
    next_->finish();
  }

 private:
  Sink* next_;
};

class StripSink final : public Sink {
 public:
  StripSink(const Decoder::Strip& step, Sink* next)
      : step_(step), next_(next), left_at_start_(step.start) {}

  void text(std::string_view part) override {
    std::string passed;
    while (!part.empty()) {
      const std::string_view character = part.substr(0, next_utf8(part).length);
      part.remove_prefix(character.size());
      if (character != step_.content) {
        for (; held_ > 0; --held_) passed += step_.content;
        passed += character;
        left_at_start_ = 0;
      } else if (left_at_start_ > 0) {
        --left_at_start_;
      } else if (held_ < step_.stop) {
        ++held_;
      } else {
        passed += character;
      }
    }
    if (!passed.empty()) next_->text(passed);
  }
  void end_token() override {
    held_ = 0;
    left_at_start_ = step_.start;
    next_->end_token();
  }
  void finish() override { next_->finish(); }

 private:
  const Decoder::Strip& step_;
  Sink* next_;
  std::size_t left_at_start_;  // characters it may still take from the start of the token
  std::size_t held_ = 0;       // those that may be its end
};

struct MakeSink {
  Sink* next;

  std::unique_ptr<Sink> operator()(const Decoder::ByteLevel& /*step*/) const {
    return std::make_unique<ByteLevelSink>(next);
  }
  std::unique_ptr<Sink> operator()(const Decoder::Replace& step) const {
    return std::make_unique<ReplaceSink>(step, next);
  }
  std::unique_ptr<Sink> operator()(const Decoder::ByteFallback& /*step*/) const {
    return std::make_unique<ByteFallbackSink>(next);
  }
  std::unique_ptr<Sink> operator()(const Decoder::Fuse& /*step*/) const {
    return std::make_unique<FuseSink>(next);
  }
  std::unique_ptr<Sink> operator()(const Decoder::Strip& step) const {
    return std::make_unique<StripSink>(step, next);
  }
};

}  // namespace

Decoding::Decoding(const Decoder& decoder) : text_(std::make_unique<std::string>()) {
  sinks_.push_back(std::make_unique<Collect>(text_.get()));
  for (auto step = decoder.steps().rbegin(); step != decoder.steps().rend(); ++step) {
    sinks_.push_back(std::visit(MakeSink{sinks_.back().get()}, *step));
  }
}

Decoding::~Decoding() = default;
Decoding::Decoding(Decoding&&) noexcept = default;
Decoding& Decoding::operator=(Decoding&&) noexcept = default;

void Decoding::push(std::string_view token) {
  if (!token.empty()) sinks_.back()->text(token);
  sinks_.back()->end_token();
}

void Decoding::finish() { sinks_.back()->finish(); }

std::string Decoding::take() { return std::exchange(*text_, {}); }

}  // namespace kvcache::runner
