#include "apps/cli/console.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

namespace kvcache::cli {
namespace {

constexpr std::size_t kMostInput = std::size_t{64} << 20;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Through stdio: std::cin takes a failure for the end.
Result<std::string> read_stream(std::FILE* stream, const std::string& name) {
  std::string text;
  char piece[65536];
  for (std::size_t count; (count = std::fread(piece, 1, sizeof(piece), stream)) > 0;) {
    text.append(piece, count);
    if (text.size() > kMostInput) {
      return Status(StatusCode::kInvalidArgument,
                    name + ": found more than 64 MiB, expected a prompt");
    }
  }
  if (std::ferror(stream) != 0) {
    return Status(StatusCode::kIo, name + ": reading failed: " + std::strerror(errno));
  }
  return text;
}

}  // namespace

void hold_standard_streams() {
  for (int file = STDIN_FILENO; file <= STDERR_FILENO; ++file) {
    if (::fcntl(file, F_GETFD) != -1 || errno != EBADF) continue;
    // The lowest free number is this one.
    const int opened = ::open("/dev/null", file == STDOUT_FILENO ? O_RDONLY : O_WRONLY);
    if (opened < 0) return;
  }
}

int exit_code(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return 0;
    case StatusCode::kInvalidArgument:
    case StatusCode::kOutOfRange:
    case StatusCode::kNotFound:
    case StatusCode::kUnsupported:
    case StatusCode::kCorrupt:
    case StatusCode::kUnavailable:
      return 2;
    default:
      return 1;
  }
}

int fail(const Status& status) {
  std::string line = status.message().empty() ? name_of(status.code()) : status.message();
  std::replace(line.begin(), line.end(), '\n', ' ');
  say("kvcache: {}\n", line);
  return exit_code(status);
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), visible_(stderr_is_terminal()) {}

ProgressBar::~ProgressBar() { clear(); }

void ProgressBar::update(std::int64_t done, std::int64_t total) {
  if (!visible_ || total <= 0) return;
  const double now = now_seconds();
  if (drawn_ && now - last_draw_ < 0.05) return;
  last_draw_ = now;
  drawn_ = true;
  constexpr std::int64_t kWidth = 30;
  const auto filled = static_cast<std::size_t>(kWidth * std::min(done, total) / total);
  say("\r{:<10} [{:<30}] {}/{} ", label_, std::string(filled, '#'), done, total);
  std::fflush(stderr);
}

void ProgressBar::clear() {
  if (!drawn_) return;
  say("\r\033[K");
  std::fflush(stderr);
  drawn_ = false;
}

std::string with_thousands(std::int64_t value) {
  std::string digits = std::to_string(value);
  const std::size_t first = value < 0 ? 1 : 0;
  for (std::size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, " ");
  }
  return digits;
}

std::string human_bytes(std::int64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (value /= 1024; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  return fmt::format("{:.1f} {}", value, units[unit]);
}

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t c = 0; c < row.size(); ++c) {
      line += c == 0 ? fmt::format("{:<{}}", row[c], widths[c])
                     : fmt::format("  {:>{}}", row[c], widths[c]);
    }
    text += line + "\n";
  }
  return text;
}

Result<std::string> read_input(const std::string& path) {
  if (path == "-") return read_stream(stdin, "stdin");
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return Status(StatusCode::kNotFound, path + ": no such file");
  }
  if (!std::filesystem::is_regular_file(path, error) && !std::filesystem::is_fifo(path, error)) {
    return Status(StatusCode::kInvalidArgument, path + ": found no file, expected a text file");
  }
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(path.c_str(), "rbe"),
                                                               &std::fclose);
  if (!stream) return Status(StatusCode::kIo, path + ": cannot be opened for reading");
  return read_stream(stream.get(), path);
}

bool stdout_is_terminal() { return isatty(STDOUT_FILENO) == 1; }
bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

Result<std::string> shared_file(std::string_view relative) {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return Status(StatusCode::kIo, "/proc/self/exe: " + error.message());
  const auto path = program.parent_path().parent_path() / "share" / "kvcache" / relative;
  if (!std::filesystem::exists(path, error)) {
    return Status(StatusCode::kNotFound, path.string() + ": no such file");
  }
  return path.string();
}

}  // namespace kvcache::cli
