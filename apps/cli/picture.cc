#include "apps/cli/picture.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "apps/cli/console.h"

namespace kvcache::cli {

Status draw(const std::string& kind, const std::string& json, const std::string& picture) {
  KVC_ASSIGN_OR_RETURN(std::string script, shared_file("tools/plot.py"));
  const std::string data = picture + ".json";
  {
    std::ofstream file(data);
    file << json;
    if (!file.flush()) return Status(StatusCode::kIo, data + ": cannot be written");
  }
  std::string words[] = {"python3", std::move(script), kind, data, picture};
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(),
                       words[3].data(), words[4].data(), nullptr};
  // What the script prints belongs to stderr: with --json, stdout holds JSON only.
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  pid_t child = 0;
  const int error = posix_spawnp(&child, "python3", &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  int state = 0;
  while (error == 0 && waitpid(child, &state, 0) < 0 && errno == EINTR) {
  }
  std::remove(data.c_str());
  if (error != 0) {
    return Status(StatusCode::kUnavailable, std::string("python3: ") + std::strerror(error));
  }
  if (!WIFEXITED(state) || WEXITSTATUS(state) != 0) {
    return Status(StatusCode::kIo,
                  picture + ": could not be drawn (tools/plot.py needs matplotlib)");
  }
  say("wrote {}\n", picture);
  return {};
}

}  // namespace kvcache::cli
