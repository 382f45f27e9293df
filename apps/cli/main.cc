// `kvcache`: the command line. Argument parsing and printing; the work is in runner/ and bench/.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "kvcache/version.h"

namespace {

// One line, as all other errors. A word that is no command is told, not a command missed.
std::string complaint(const CLI::App* app, const CLI::Error& error) {
  std::string line = error.what();
  if (const auto words = app->remaining(); !words.empty() && app->get_subcommands().empty()) {
    line = "command: found " + words.front() + ", expected one of";
    for (const CLI::App* command : app->get_subcommands(nullptr)) line += " " + command->get_name();
  }
  std::replace(line.begin(), line.end(), '\n', ' ');
  return "kvcache: " + line + " (see --help)\n";
}

int run(int argc, char** argv) {
  CLI::App app("The key/value cache of transformer inference: try it, watch it, measure it.",
               "kvcache");
  app.set_version_flag("--version", kvcache::version());
  app.require_subcommand(1);
  app.fallthrough(false);
  app.failure_message(complaint);
  int exit_code = 0;
  kvcache::cli::add_generate(app, &exit_code);
  kvcache::cli::add_compare(app, &exit_code);
  kvcache::cli::add_watch(app, &exit_code);
  kvcache::cli::add_plan(app, &exit_code);
  kvcache::cli::add_eval(app, &exit_code);
  kvcache::cli::add_info(app, &exit_code);
  kvcache::cli::add_inspect(app, &exit_code);
  kvcache::cli::add_tune(app, &exit_code);
  kvcache::cli::add_replay(app, &exit_code);
  kvcache::cli::add_bench(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    exit_code = app.exit(error) == 0 ? 0 : 2;  // prints help to stdout, errors to stderr
  }
  // What stdout did not take is lost without a word otherwise: a full disk, a closed pipe.
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return kvcache::cli::fail(
        kvcache::Status(kvcache::StatusCode::kIo, "stdout: found no room for the output"));
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  kvcache::cli::hold_standard_streams();
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kvcache: %s\n", error.what());
    return 1;
  }
}
