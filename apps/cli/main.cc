// `kvcache`: the command line. Argument parsing and printing; the work is in runner/ and bench/.
#include <CLI/CLI.hpp>
#include <exception>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "kvcache/version.h"

int main(int argc, char** argv) {
  CLI::App app("The key/value cache of transformer inference: try it, watch it, measure it.",
               "kvcache");
  app.set_version_flag("--version", kvcache::version());
  app.require_subcommand(1);
  app.fallthrough(false);
  int exit_code = 0;
  kvcache::cli::add_generate(app, &exit_code);
  kvcache::cli::add_compare(app, &exit_code);
  kvcache::cli::add_watch(app, &exit_code);
  kvcache::cli::add_plan(app, &exit_code);
  kvcache::cli::add_info(app, &exit_code);
  kvcache::cli::add_bench(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);  // prints help to stdout, errors to stderr
    return code == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    return kvcache::cli::fail(kvcache::Status(kvcache::StatusCode::kInternal, error.what()));
  }
  return exit_code;
}
