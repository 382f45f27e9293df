#include "base/cpu_count.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/cpu_features.h"

namespace kvcache::internal {
namespace {

TEST(ThreadCount, AcceptsACountAndNothingElse) {
  EXPECT_EQ(parse_thread_count("1"), 1);
  EXPECT_EQ(parse_thread_count("1024"), 1024);
  for (const char* bad : {"0", "1025", "-1", "", " 4", "4 ", "4x", "0x4", "+4", "1e1", "2.0",
                          "99999999999999999999"}) {
    EXPECT_EQ(parse_thread_count(bad), 0) << '"' << bad << '"';
  }
  EXPECT_EQ(parse_thread_count(nullptr), 0);
}

TEST(ThreadCount, QuotaRoundsUp) {
  EXPECT_EQ(parse_cpu_max("150000 100000\n"), 2);
  EXPECT_EQ(parse_cpu_max("200000 100000\n"), 2);
  EXPECT_EQ(parse_cpu_max("1 100000"), 1);
  EXPECT_EQ(parse_cpu_max("max 100000\n"), 0);
  EXPECT_EQ(parse_cpu_max(""), 0);
  EXPECT_EQ(parse_cpu_max("100000"), 0);
  EXPECT_EQ(parse_cpu_max("100000 0"), 0);
  EXPECT_EQ(cpus_of_quota(-1, 100000), 0);
}

class CgroupTree : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::path(::testing::TempDir()) /
            ("kvcache_cgroup_" + std::to_string(getpid()));
    std::filesystem::remove_all(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& content) {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << content;
  }

  std::int32_t cpus(const std::string& proc_cgroup) {
    return cgroup_cpus(proc_cgroup, root_.c_str());
  }

  std::filesystem::path root_;
};

TEST_F(CgroupTree, SmallestQuotaUpToTheRootCounts) {
  write("cpu.max", "800000 100000\n");
  write("a/cpu.max", "300000 100000\n");
  write("a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(cpus("0::/a/b\n"), 3);
  EXPECT_EQ(cpus("0::/\n"), 8);
  EXPECT_EQ(cpus("0::/elsewhere\n"), 8);
}

TEST_F(CgroupTree, VersionOneFollowsTheCpuController) {
  write("cpu/job/cpu.cfs_quota_us", "250000\n");
  write("cpu/job/cpu.cfs_period_us", "100000\n");
  write("cpu/cpu.cfs_quota_us", "-1\n");
  write("cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpus("5:cpuset:/x\n4:cpu,cpuacct:/job\n1:name=systemd:/y\n"), 3);
  EXPECT_EQ(cpus("5:cpuset:/job\n"), 0);
}

TEST_F(CgroupTree, NonsenseIsNoQuota) {
  EXPECT_EQ(cpus(""), 0);
  EXPECT_EQ(cpus("no colons\n:\n::\n0::relative"), 0);
  EXPECT_EQ(cpus("0::/" + std::string(5000, 'x')), 0);
}

TEST(ThreadCount, EnvironmentDecidesUnlessItIsMalformed) {
  const char* before = std::getenv("KVCACHE_NUM_THREADS");
  const std::string kept = before == nullptr ? "" : before;
  ASSERT_EQ(unsetenv("KVCACHE_NUM_THREADS"), 0);
  const std::int32_t machine = default_thread_count();
  EXPECT_GE(machine, 1);
  EXPECT_LE(machine, kMaxThreads);
  ASSERT_EQ(setenv("KVCACHE_NUM_THREADS", "37", 1), 0);
  EXPECT_EQ(default_thread_count(), 37);
  ASSERT_EQ(setenv("KVCACHE_NUM_THREADS", "many", 1), 0);
  EXPECT_EQ(default_thread_count(), machine);
  if (before == nullptr) {
    unsetenv("KVCACHE_NUM_THREADS");
  } else {
    setenv("KVCACHE_NUM_THREADS", kept.c_str(), 1);
  }
}

TEST(CpuFeatures, AreConsistentAndNamed) {
  const CpuFeatures& cpu = cpu_features();
  EXPECT_EQ(&cpu, &cpu_features());
  EXPECT_NE(cpu.name[0], '\0');
  EXPECT_TRUE(cpu.avx512 || !(cpu.avx512_bf16 || cpu.avx512_vnni));
  EXPECT_TRUE(cpu.avx2 || !cpu.avx512);
  EXPECT_GE(cpu.l1_bytes, 0);
  EXPECT_GE(cpu.l2_bytes, 0);
  EXPECT_GE(cpu.l3_bytes, 0);
#if defined(__x86_64__)
  // The compiler's own detection knows the same processor.
  EXPECT_EQ(cpu.avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(cpu.avx512_vnni, __builtin_cpu_supports("avx512vnni") != 0);
#endif
}

}  // namespace
}  // namespace kvcache::internal
