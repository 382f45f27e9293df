#include "runner/config/json_reader.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <system_error>
#include <utility>

#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

Json JsonReader::unreadable(std::string_view what) {
  return Json::binary({what.begin(), what.end()});
}

std::optional<Json> JsonReader::read() {
  State state = State::kValue;
  while (true) {
    skip_space();
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    switch (state) {
      case State::kValueOrEnd:
      case State::kKeyOrEnd:
        if (c == (state == State::kValueOrEnd ? ']' : '}')) {
          if (!close(c)) return std::nullopt;
          state = State::kCommaOrEnd;
          break;
        }
        if (state == State::kValueOrEnd) {
          if (!read_value(&state)) return std::nullopt;
        } else {
          if (!read_key()) return std::nullopt;
          state = State::kValue;
        }
        break;
      case State::kValue:
        if (!read_value(&state)) return std::nullopt;
        break;
      case State::kKey:
        if (!read_key()) return std::nullopt;
        state = State::kValue;
        break;
      case State::kCommaOrEnd:
        if (brackets_.empty()) {
          if (at_ != text_.size()) return std::nullopt;
          return std::move(root_);
        }
        if (c == ',') {
          ++at_;
          state = brackets_.back() == '{' ? State::kKey : State::kValue;
        } else if (!close(c)) {
          return std::nullopt;
        }
        break;
    }
  }
}

void JsonReader::skip_space() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
    ++at_;
  }
}

bool JsonReader::take(std::string_view word) {
  if (!text_.substr(at_).starts_with(word)) return false;
  at_ += word.size();
  return true;
}

// Reads a scalar whole, of a list or an object its bracket.
bool JsonReader::read_value(State* next) {
  if (at_ == text_.size()) return false;
  const char c = text_[at_];
  if (c == '[' || c == '{') {
    ++at_;
    open(c);
    *next = c == '[' ? State::kValueOrEnd : State::kKeyOrEnd;
    return true;
  }
  *next = State::kCommaOrEnd;
  return read_scalar();
}

bool JsonReader::read_scalar() {
  if (text_[at_] == '"') {
    std::string text;
    bool whole = true;
    if (!read_string(&text, &whole)) return false;
    put(whole ? Json(std::move(text)) : unreadable("text with half a surrogate pair"));
    return true;
  }
  if (take("null")) {
    put(nullptr);
  } else if (take("true")) {
    put(true);
  } else if (take("false")) {
    put(false);
  } else if (take("NaN")) {
    put(unreadable("NaN"));
  } else if (take("Infinity")) {
    put(unreadable("Infinity"));
  } else if (take("-Infinity")) {
    put(unreadable("-Infinity"));
  } else {
    return read_number();
  }
  return true;
}

bool JsonReader::read_number() {
  const std::size_t begin = at_;
  const auto peek = [this] { return at_ < text_.size() ? text_[at_] : '\0'; };
  const auto digits = [&] {
    if (!is_digit(peek())) return false;
    while (is_digit(peek())) ++at_;
    return true;
  };
  if (peek() == '-') ++at_;
  if (peek() == '0') {
    ++at_;
  } else if (!digits()) {
    return false;
  }
  bool integral = true;
  if (peek() == '.') {
    integral = false;
    ++at_;
    if (!digits()) return false;
  }
  if (peek() == 'e' || peek() == 'E') {
    integral = false;
    ++at_;
    if (peek() == '+' || peek() == '-') ++at_;
    if (!digits()) return false;
  }
  const char* first = text_.data() + begin;
  const char* last = text_.data() + at_;
  if (integral) {
    std::uint64_t natural = 0;
    std::int64_t integer = 0;
    if (*first != '-' && std::from_chars(first, last, natural).ec == std::errc()) {
      put(natural);
      return true;
    }
    if (*first == '-' && std::from_chars(first, last, integer).ec == std::errc()) {
      put(integer);
      return true;
    }
  }
  double number = 0;
  const auto parsed = std::from_chars(first, last, number);
  // Of a number that is out of range nothing is stored: near 0 it is 0, as everywhere.
  const bool tiny =
      parsed.ec == std::errc::result_out_of_range &&
      text_.substr(begin, at_ - begin).find_first_of("eE") != std::string_view::npos &&
      text_.substr(begin, at_ - begin).find("-", 1) != std::string_view::npos;
  if (parsed.ec == std::errc() || tiny) {
    put(number);
  } else {
    put(unreadable(text_.substr(begin, at_ - begin)));
  }
  return true;
}

// A text in quotes. `whole` is left alone, or made false for half a surrogate pair.
bool JsonReader::read_string(std::string* text, bool* whole) {
  ++at_;
  while (at_ < text_.size()) {
    const auto c = static_cast<unsigned char>(text_[at_]);
    if (c == '"') {
      ++at_;
      return true;
    }
    if (c < 0x20) return false;
    if (c == '\\') {
      ++at_;
      if (!read_escape(text, whole)) return false;
      continue;
    }
    const Utf8Step step = next_utf8(text_.substr(at_));
    if (step.kind != Utf8Step::kCharacter) return false;
    text->append(text_, at_, step.length);
    at_ += step.length;
  }
  return false;
}

bool JsonReader::read_escape(std::string* text, bool* whole) {
  static constexpr std::string_view kEscapes = "\"\\/bfnrt";
  static constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
  if (at_ == text_.size()) return false;
  const std::size_t known = kEscapes.find(text_[at_]);
  if (known != std::string_view::npos) {
    ++at_;
    *text += kMeanings[known];
    return true;
  }
  if (text_[at_] != 'u') return false;
  ++at_;
  const std::optional<unsigned> first = read_hex();
  if (!first) return false;
  if (*first < 0xD800 || *first > 0xDFFF) {
    append_utf8(*first, text);
    return true;
  }
  if (*first < 0xDC00 && text_.substr(at_).starts_with("\\u")) {
    const std::size_t after_first = at_;
    at_ += 2;
    const std::optional<unsigned> second = read_hex();
    if (!second) return false;
    if (*second >= 0xDC00 && *second <= 0xDFFF) {
      append_utf8(0x10000 + ((*first & 0x3FF) << 10 | (*second & 0x3FF)), text);
      return true;
    }
    at_ = after_first;
  }
  *whole = false;
  *text += kReplacementCharacter;
  return true;
}

std::optional<unsigned> JsonReader::read_hex() {
  const std::string_view digits = text_.substr(at_, 4);
  unsigned value = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  if (digits.size() < 4 || parsed.ptr != digits.data() + 4) return std::nullopt;
  at_ += 4;
  return value;
}

bool JsonReader::read_key() {
  if (at_ == text_.size() || text_[at_] != '"') return false;
  std::string key;
  bool whole = true;
  if (!read_string(&key, &whole)) return false;
  skip_space();
  if (!take(":")) return false;
  if (ignored_ != 0) return true;
  auto [slot, inserted] = open_.back()->emplace(std::move(key), nullptr);
  slot_ = &*slot;
  // Readers differ in which of two they take.
  ignore_next_ = !inserted;
  return true;
}

void JsonReader::open(char bracket) {
  brackets_ += bracket;
  if (ignored_ != 0) return;
  if (ignore_next_ || open_.size() == kMaxDepth) {
    put(unreadable("nesting deeper than " + std::to_string(kMaxDepth)));
    ignored_ = brackets_.size();
    return;
  }
  Json value = bracket == '[' ? Json::array() : Json::object();
  if (open_.empty()) {
    root_ = std::move(value);
    open_.push_back(&root_);
  } else if (slot_ != nullptr) {
    *slot_ = std::move(value);
    open_.push_back(std::exchange(slot_, nullptr));
  } else {
    open_.push_back(&open_.back()->emplace_back(std::move(value)));
  }
}

bool JsonReader::close(char bracket) {
  if (brackets_.empty() || brackets_.back() != (bracket == ']' ? '[' : '{') ||
      (bracket != ']' && bracket != '}')) {
    return false;
  }
  ++at_;
  if (ignored_ == 0) open_.pop_back();
  if (ignored_ == brackets_.size()) ignored_ = 0;
  brackets_.pop_back();
  return true;
}

void JsonReader::put(Json value) {
  if (ignored_ != 0) return;
  if (std::exchange(ignore_next_, false)) value = unreadable("two values of one key");
  if (open_.empty()) {
    root_ = std::move(value);
  } else if (slot_ != nullptr) {
    *std::exchange(slot_, nullptr) = std::move(value);
  } else {
    open_.back()->push_back(std::move(value));
  }
}

}  // namespace kvcache::runner
