#include "base/cpu_count.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/checked_math.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace kvcache::internal {
namespace {

// Reads a number from the front of `text`. False if there is none.
bool take_number(std::string_view* text, std::int64_t* value) noexcept {
  while (!text->empty() && text->front() == ' ') text->remove_prefix(1);
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), *value);
  if (error != std::errc()) return false;
  text->remove_prefix(static_cast<std::size_t>(end - text->data()));
  return true;
}

// A small file as text, in `buffer`; empty if it cannot be read.
template <std::size_t Size>
std::string_view read_file(const char* path, char (&buffer)[Size]) noexcept {
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return {};
  const std::size_t size = std::fread(buffer, 1, Size, file);
  std::fclose(file);
  return {buffer, size};
}

// "<mount><controller><group>/<name>" into `path`; false if it is too long.
template <std::size_t Size>
bool join_path(const char* mount, const char* controller, std::string_view group, const char* name,
               char (&path)[Size]) noexcept {
  const int written = std::snprintf(path, Size, "%s%s%.*s/%s", mount, controller,
                                    static_cast<int>(group.size()), group.data(), name);
  return written > 0 && static_cast<std::size_t>(written) < Size;
}

std::int32_t group_cpus(const char* mount, const char* controller, std::string_view group,
                        bool v2) noexcept {
  char path[1024];
  char content[64];
  if (v2) {
    if (!join_path(mount, controller, group, "cpu.max", path)) return 0;
    return parse_cpu_max(read_file(path, content));
  }
  std::int64_t quota = 0;
  std::int64_t period = 0;
  if (!join_path(mount, controller, group, "cpu.cfs_quota_us", path)) return 0;
  std::string_view text = read_file(path, content);
  if (!take_number(&text, &quota)) return 0;
  if (!join_path(mount, controller, group, "cpu.cfs_period_us", path)) return 0;
  text = read_file(path, content);
  if (!take_number(&text, &period)) return 0;
  return cpus_of_quota(quota, period);
}

// The smaller of two counts of which 0 means none.
std::int32_t smaller(std::int32_t a, std::int32_t b) noexcept {
  if (a == 0 || b == 0) return a + b;
  return std::min(a, b);
}

bool names_cpu(std::string_view controllers) noexcept {
  while (!controllers.empty()) {
    const std::size_t comma = std::min(controllers.find(','), controllers.size());
    if (controllers.substr(0, comma) == "cpu") return true;
    controllers.remove_prefix(std::min(comma + 1, controllers.size()));
  }
  return false;
}

std::int32_t allowed_cpus() noexcept {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<std::int32_t>(std::min(std::thread::hardware_concurrency(), 1u << 16));
}

}  // namespace

std::int32_t parse_thread_count(const char* text) noexcept {
  if (text == nullptr) return 0;
  std::int32_t count = 0;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, count);
  if (error != std::errc() || rest != end) return 0;
  return count >= 1 && count <= kMaxThreads ? count : 0;
}

std::int32_t cpus_of_quota(std::int64_t quota, std::int64_t period) noexcept {
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<std::int32_t>(std::min<std::int64_t>(ceil_div(quota, period), 1 << 16));
}

std::int32_t parse_cpu_max(std::string_view text) noexcept {
  std::int64_t quota = 0;
  std::int64_t period = 0;
  if (!take_number(&text, &quota) || !take_number(&text, &period)) return 0;
  return cpus_of_quota(quota, period);
}

std::int32_t cgroup_cpus(std::string_view proc_cgroup, const char* mount) noexcept {
  std::int32_t found = 0;
  while (!proc_cgroup.empty()) {
    // A line is "hierarchy:controllers:group"; v2 has hierarchy 0 and no controllers.
    const std::size_t end = std::min(proc_cgroup.find('\n'), proc_cgroup.size());
    const std::string_view line = proc_cgroup.substr(0, end);
    proc_cgroup.remove_prefix(std::min(end + 1, proc_cgroup.size()));
    const std::size_t first = line.find(':');
    if (first == std::string_view::npos) continue;
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && !names_cpu(controllers)) continue;
    std::string_view group = line.substr(second + 1);
    while (!group.empty() && group.back() == '/') group.remove_suffix(1);
    while (true) {
      found = smaller(found, group_cpus(mount, v2 ? "" : "/cpu", group, v2));
      if (group.empty()) break;
      const std::size_t slash = group.rfind('/');
      group = group.substr(0, slash == std::string_view::npos ? 0 : slash);
    }
  }
  return found;
}

std::int32_t default_thread_count() noexcept {
  if (const std::int32_t asked = parse_thread_count(std::getenv("KVCACHE_NUM_THREADS"))) {
    return asked;
  }
  char content[4096];
  const std::int32_t quota = cgroup_cpus(read_file("/proc/self/cgroup", content), "/sys/fs/cgroup");
  return std::clamp(smaller(allowed_cpus(), quota), std::int32_t{1}, kMaxThreads);
}

}  // namespace kvcache::internal
