// How many threads this process should use.
#ifndef KVCACHE_SRC_BASE_CPU_COUNT_H_
#define KVCACHE_SRC_BASE_CPU_COUNT_H_

#include <cstdint>
#include <string_view>

namespace kvcache::internal {

inline constexpr std::int32_t kMaxThreads = 1024;

// A decimal number 1 .. kMaxThreads and nothing else ("8"); 0 for anything else, null included.
std::int32_t parse_thread_count(const char* text) noexcept;

// CPUs granted by the content of a cgroup v2 `cpu.max` ("150000 100000" -> 2, rounded up); 0 for
// "max ..." and for what cannot be read.
std::int32_t parse_cpu_max(std::string_view text) noexcept;

// The same of a cgroup v1 quota and period, in microseconds; 0 for no quota (-1).
std::int32_t cpus_of_quota(std::int64_t quota, std::int64_t period) noexcept;

// The smallest quota on the way from this process's cgroup up to the root, 0 for none.
// `proc_cgroup` is the content of /proc/self/cgroup, `mount` where cgroups are mounted
// ("/sys/fs/cgroup").
std::int32_t cgroup_cpus(std::string_view proc_cgroup, const char* mount) noexcept;

// KVCACHE_NUM_THREADS if it is a valid count, else the CPUs this process may run on, held to the
// cgroup's quota. At least 1, at most kMaxThreads.
std::int32_t default_thread_count() noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_CPU_COUNT_H_
