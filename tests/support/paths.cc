// The one source that knows absolute paths, so that clones share the objects of all others.
#include "support/paths.h"

namespace kvcache::testing {

std::string source_dir() { return KVC_SOURCE_DIR; }
std::string cli_path() { return KVC_CLI; }

}  // namespace kvcache::testing
