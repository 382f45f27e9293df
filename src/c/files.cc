// The C door to CacheFile, and to the files of a PrefixCache.
#include "base/expect.h"
#include "c/door.h"
#include "c/paged.h"
#include "c/prefix.h"
#include "kvcache/cache_file.h"

using kvcache::CacheFile;
using kvcache::PrefixNamespace;
using kvcache::SequenceId;
using kvcache::Status;
using kvcache::internal::c_call;
using kvcache::internal::expect_not_null;
using kvcache::internal::ForeignExecutor;
using kvcache::internal::space_of;

kvc_status kvc_paged_save(const kvc_paged* cache, int64_t seq, const char* path,
                          const kvc_prefix_namespace* space) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("path", path));
    KVC_ASSIGN_OR_RETURN(const PrefixNamespace name, space_of(space));
    return CacheFile::save(*cache->cache, SequenceId{seq}, path, name);
  });
}

kvc_status kvc_paged_load(kvc_paged* cache, const char* path, const kvc_prefix_namespace* space,
                          const kvc_executor* executor, int64_t* seq) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("path", path));
    KVC_RETURN_IF_ERROR(expect_not_null("seq", seq));
    KVC_ASSIGN_OR_RETURN(const PrefixNamespace name, space_of(space));
    ForeignExecutor host;
    KVC_RETURN_IF_ERROR(host.adopt(executor));
    KVC_ASSIGN_OR_RETURN(const SequenceId loaded,
                         CacheFile::load(*cache->cache, path, name, host.context()));
    *seq = static_cast<std::int64_t>(loaded);
    return {};
  });
}

kvc_status kvc_prefix_save(const kvc_prefix* prefix, const char* path, int64_t most_bytes,
                           int64_t* pages) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("prefix", prefix));
    KVC_RETURN_IF_ERROR(expect_not_null("path", path));
    KVC_ASSIGN_OR_RETURN(const std::int64_t saved, prefix->prefixes.save(path, most_bytes));
    if (pages != nullptr) *pages = saved;
    return {};
  });
}

kvc_status kvc_prefix_load(kvc_prefix* prefix, const char* path, const kvc_executor* executor,
                           int64_t* pages) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("prefix", prefix));
    KVC_RETURN_IF_ERROR(expect_not_null("path", path));
    ForeignExecutor host;
    KVC_RETURN_IF_ERROR(host.adopt(executor));
    KVC_ASSIGN_OR_RETURN(const std::int64_t loaded, prefix->prefixes.load(path, host.context()));
    if (pages != nullptr) *pages = loaded;
    return {};
  });
}
