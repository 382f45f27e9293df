// Pictures of what a command measured.
#ifndef KVCACHE_APPS_CLI_PICTURE_H_
#define KVCACHE_APPS_CLI_PICTURE_H_

#include <string>

#include "kvcache/status.h"

namespace kvcache::cli {

// Hands `json` to tools/plot.py, which draws it as `kind` ("compare", "eval") into the file
// `picture`. Errors: kNotFound without the script, kUnavailable without Python, kIo.
Status draw(const std::string& kind, const std::string& json, const std::string& picture);

}  // namespace kvcache::cli

#endif  // KVCACHE_APPS_CLI_PICTURE_H_
