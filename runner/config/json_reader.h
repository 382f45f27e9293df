// JSON as the files of models are written: by Python, which writes more than JSON allows.
#ifndef KVCACHE_RUNNER_CONFIG_JSON_READER_H_
#define KVCACHE_RUNNER_CONFIG_JSON_READER_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "runner/config/json_file.h"

namespace kvcache::runner {

// Reads one document. Values that nobody can use where they stand are kept as `unreadable` values,
// which only who asks for them refuses: NaN, Infinity and numbers past a double, a text with half a
// surrogate pair, the value of a key that its object names twice, what lies deeper than kMaxDepth.
// Takes memory for what it keeps, no stack for depth.
class JsonReader {
 public:
  static constexpr std::size_t kMaxDepth = 64;

  explicit JsonReader(std::string_view text) : text_(text) {}

  // The document, or nothing where the text is not JSON. Throws std::bad_alloc.
  std::optional<Json> read();

  // Where it stopped being JSON, in bytes.
  std::size_t position() const { return at_; }

  // A value that stands for one that cannot be read, and the words for it in a message.
  static Json unreadable(std::string_view what);

 private:
  // What may come next.
  enum class State { kValue, kValueOrEnd, kKey, kKeyOrEnd, kCommaOrEnd };

  void skip_space();
  bool take(std::string_view word);
  bool read_value(State* next);
  bool read_scalar();
  bool read_key();
  bool read_number();
  bool read_string(std::string* text, bool* whole);
  bool read_escape(std::string* text, bool* whole);
  std::optional<unsigned> read_hex();
  void open(char bracket);
  bool close(char bracket);
  void put(Json value);

  std::string_view text_;
  std::size_t at_ = 0;
  Json root_;
  std::string brackets_;      // all that are open
  std::vector<Json*> open_;   // the first kMaxDepth of them; growing a list moves no open one
  Json* slot_ = nullptr;      // where the value of the key just read belongs
  std::size_t ignored_ = 0;   // depth from which on nothing is kept, while not 0
  bool ignore_next_ = false;  // the value of a key named twice
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_CONFIG_JSON_READER_H_
