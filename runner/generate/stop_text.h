// StopText: cuts a stream of text at the first of several stop texts, and holds back what may
// still become one.
#ifndef KVCACHE_RUNNER_GENERATE_STOP_TEXT_H_
#define KVCACHE_RUNNER_GENERATE_STOP_TEXT_H_

#include <string>
#include <string_view>
#include <vector>

namespace kvcache::runner {

class StopText {
 public:
  // Empty stop texts are left out.
  explicit StopText(std::vector<std::string> stops);

  // Adds a piece; returns what may be shown now. After a stop text was found, nothing more comes.
  std::string push(std::string_view piece);

  // What was held back, when the stream ends without a stop text.
  std::string flush();

  bool found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_STOP_TEXT_H_
