// The commands of `kvcache`. Each adds its flags to a subcommand; what runs puts its exit code into
// *exit_code.
#ifndef KVCACHE_APPS_CLI_COMMANDS_H_
#define KVCACHE_APPS_CLI_COMMANDS_H_

#include <CLI/CLI.hpp>

namespace kvcache::cli {

void add_generate(CLI::App& app, int* exit_code);
void add_compare(CLI::App& app, int* exit_code);
void add_watch(CLI::App& app, int* exit_code);
void add_plan(CLI::App& app, int* exit_code);
void add_eval(CLI::App& app, int* exit_code);
void add_info(CLI::App& app, int* exit_code);
void add_inspect(CLI::App& app, int* exit_code);
void add_tune(CLI::App& app, int* exit_code);
void add_replay(CLI::App& app, int* exit_code);
void add_bench(CLI::App& app, int* exit_code);

}  // namespace kvcache::cli

#endif  // KVCACHE_APPS_CLI_COMMANDS_H_
