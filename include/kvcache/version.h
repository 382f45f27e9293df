// The version of the library, and the marks on public names.
#ifndef KVCACHE_VERSION_H_
#define KVCACHE_VERSION_H_

#define KVC_VERSION_MAJOR 0
#define KVC_VERSION_MINOR 2
#define KVC_VERSION_PATCH 0

// Marks what the shared library exports; everything else is hidden.
#if defined(__GNUC__)
#define KVC_API [[gnu::visibility("default")]]
#else
#define KVC_API
#endif

namespace kvcache {
inline namespace v1 {

// "major.minor.patch" of the library that is linked (the macros are those of the headers).
KVC_API const char* version() noexcept;

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_VERSION_H_
