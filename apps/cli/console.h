// What the commands share: errors and exit codes, a progress bar, text for people.
#ifndef KVCACHE_APPS_CLI_CONSOLE_H_
#define KVCACHE_APPS_CLI_CONSOLE_H_

#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvcache/status.h"

namespace kvcache::cli {

// Opens what this program was started without of stdin, stdout and stderr, so that no other file
// takes their place: the first two fail when they are used, what stderr is told is lost.
void hold_standard_streams();

// Formatted text to stdout, as `fmt::print`. Output that finds no room is seen at the end, by main.
template <typename... Args>
void print(fmt::format_string<Args...> format, Args&&... args) {
  const std::string text = fmt::format(format, std::forward<Args>(args)...);
  std::fwrite(text.data(), 1, text.size(), stdout);
}

// The same to stderr. What finds no room there is lost, and changes nothing else.
template <typename... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  const std::string text = fmt::format(format, std::forward<Args>(args)...);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

// 0 success, 1 failure (out of memory, a bug of ours), 2 bad input (arguments, files, prompts).
int exit_code(const Status& status);

// Prints "kvcache: <message>" to stderr, on one line, and returns the exit code.
int fail(const Status& status);

// A bar on stderr for long work, where stderr is a terminal; nothing elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Draws at most every 50 ms.
  void update(std::int64_t done, std::int64_t total);
  void clear();

 private:
  std::string label_;
  bool visible_;
  bool drawn_ = false;
  double last_draw_ = 0;
};

// "123", "12 345", "1 234 567".
std::string with_thousands(std::int64_t value);

// "512 B", "1.5 KiB", "64.0 MiB".
std::string human_bytes(std::int64_t bytes);

// Lines of equal columns, the first line and the first column to the left, numbers to the right.
std::string table(const std::vector<std::vector<std::string>>& rows);

// The whole of a file, or of stdin for "-". Errors: kNotFound, kIo; kInvalidArgument past 64 MiB.
Result<std::string> read_input(const std::string& path);

bool stdout_is_terminal();
bool stderr_is_terminal();

// A file of the share folder of this program ("models/storyteller", "tools/plot.py"), beside a
// built binary as beside an installed one. Errors: kNotFound naming where it looked.
Result<std::string> shared_file(std::string_view relative);

}  // namespace kvcache::cli

#endif  // KVCACHE_APPS_CLI_CONSOLE_H_
