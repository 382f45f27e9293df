#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "support/failing_files.h"
#include "support/temp_dir.h"

namespace kvcache::internal {
namespace {

using test::read_file;
using test::TempDir;
using testing::FailingFiles;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}
Status put(FileSystem& files, const std::string& path, std::string_view text) {
  return replace_file(files, path, [&](File& file) -> Status {
    const std::size_t half = text.size() / 2;
    KVC_RETURN_IF_ERROR(
        file.write_at(static_cast<std::int64_t>(half), bytes_of(text.substr(half))));
    return file.write_at(0, bytes_of(text.substr(0, half)));
  });
}
std::size_t files_in(const std::string& folder) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    (void)entry;
    ++count;
  }
  return count;
}

TEST(File, ReadsWhatWasWritten) {
  const TempDir folder;
  const std::string path = folder.path() + "/a";
  ASSERT_TRUE(put(system_files(), path, "0123456789").ok());
  const auto file = system_files().open(path).value();
  EXPECT_EQ(file->size().value(), 10);
  std::byte out[4];
  ASSERT_TRUE(file->read_at(3, out).ok());
  EXPECT_EQ(static_cast<char>(out[0]), '3');
  EXPECT_EQ(static_cast<char>(out[3]), '6');
}

TEST(File, ReadingPastTheEndIsCorrupt) {
  const TempDir folder;
  const auto file = system_files().open(folder.write("a", "0123")).value();
  std::byte out[4];
  EXPECT_EQ(file->read_at(1, out).code(), StatusCode::kCorrupt);
  EXPECT_EQ(BytesFile(bytes_of("0123")).read_at(1, out).code(), StatusCode::kCorrupt);
  EXPECT_EQ(BytesFile(bytes_of("0123")).read_at(5, out).code(), StatusCode::kCorrupt);
}

TEST(File, ErrorsNameTheFileAndWhatTheSystemSays) {
  const TempDir folder;
  const Status status = system_files().open(folder.path() + "/none").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find("/none: open: No such file"), std::string::npos)
      << status.message();
  EXPECT_EQ(system_files().create(folder.path() + "/none/a").status().code(),
            StatusCode::kNotFound);
  EXPECT_EQ(system_files().open(folder.path()).status().code(), StatusCode::kIo);
}

TEST(File, ReplacingPutsTheWholeFileInPlaceAndLeavesNothingBeside) {
  const TempDir folder;
  const std::string path = folder.write("a", "old");
  ASSERT_TRUE(put(system_files(), path, "the new text").ok());
  EXPECT_EQ(read_file(path), "the new text");
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(File, WhateverFailsWhileReplacingLeavesTheOldFile) {
  for (const bool full : {false, true}) {
    const TempDir folder;
    const std::string path = folder.write("a", "old");
    FailingFiles files;
    if (full) files.fill_up();
    bool failed = true;
    for (int k = 0; failed; ++k) {
      files.fail_at(k);
      const Status status = put(files, path, "the new text");
      failed = !status.ok();
      if (!failed) break;
      EXPECT_EQ(status.code(), StatusCode::kIo) << k;
      // The last call syncs the directory: the new file is there already.
      const bool renamed = status.message() == "injected: sync_directory";
      EXPECT_EQ(read_file(path), renamed ? "the new text" : "old") << status.message();
      EXPECT_EQ(files_in(folder.path()), 1u) << status.message();
      folder.write("a", "old");
    }
    EXPECT_EQ(files.calls(), 6);  // create, two writes, sync, rename, sync_directory
    EXPECT_EQ(read_file(path), "the new text");
  }
}

TEST(File, WhatAKilledWriterLeftIsTakenOver) {
  const TempDir folder;
  const std::string path = folder.write("a", "old");
  folder.write("a.tmp", "half of what was to be a much longer text");
  ASSERT_TRUE(put(system_files(), path, "new").ok());
  EXPECT_EQ(read_file(path), "new");
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(File, TwoWritersOfOneFileTakeTurns) {
  const TempDir folder;
  const std::string path = folder.path() + "/a";
  std::atomic<int> failures{0};
  const auto write = [&](char letter) {
    for (int i = 0; i < 8; ++i) {
      if (!put(system_files(), path, std::string(5000, letter)).ok()) ++failures;
      const std::string text = read_file(path);
      if (text != std::string(5000, text[0])) ++failures;
    }
  };
  std::thread other([&] { write('b'); });
  write('a');
  other.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(MemoryFile, GrowsByWhatIsWritten) {
  MemoryFile file;
  ASSERT_TRUE(file.write_at(2, bytes_of("cd")).ok());
  ASSERT_TRUE(file.write_at(0, bytes_of("ab")).ok());
  EXPECT_EQ(file.size().value(), 4);
  std::byte out[4];
  ASSERT_TRUE(file.read_at(0, out).ok());
  EXPECT_EQ(static_cast<char>(out[3]), 'd');
}

TEST(File, WhatIsReplacedKeepsItsMode) {
  const TempDir folder;
  const std::string path = folder.write("a", "old");
  const auto mine = std::filesystem::perms::owner_read | std::filesystem::perms::owner_write;
  std::filesystem::permissions(path, mine);
  ASSERT_TRUE(put(system_files(), path, "new").ok());
  EXPECT_EQ(read_file(path), "new");
  EXPECT_EQ(std::filesystem::status(path).permissions(), mine);
}

// A pipe that nobody writes to would be waited for.
TEST(File, OpensRegularFilesAlone) {
  const TempDir folder;
  const std::string pipe = folder.path() + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, folder.path()}) {
    const Status status = system_files().open(path).status();
    EXPECT_EQ(status.code(), StatusCode::kIo);
    EXPECT_NE(status.message().find("expected a regular file"), std::string::npos);
  }
}

}  // namespace
}  // namespace kvcache::internal
