#include "kvcache/version.h"

#define KVC_STRING_INNER(x) #x
#define KVC_STRING(x) KVC_STRING_INNER(x)

namespace kvcache {
inline namespace v1 {

const char* version() noexcept {
  return KVC_STRING(KVC_VERSION_MAJOR) "." KVC_STRING(KVC_VERSION_MINOR) "." KVC_STRING(
      KVC_VERSION_PATCH);
}

}  // namespace v1
}  // namespace kvcache
