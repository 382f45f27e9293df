// Where the tests find the repository and its programs.
#ifndef KVCACHE_TESTS_SUPPORT_PATHS_H_
#define KVCACHE_TESTS_SUPPORT_PATHS_H_

#include <string>

namespace kvcache::testing {

std::string source_dir();  // the repository
std::string cli_path();    // the command line of this build

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_PATHS_H_
