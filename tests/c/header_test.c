/* The header is C11 by itself, and C sees the structs as C++ does. */
#include "kvcache_c.h"

#include <stddef.h>

#include "support/c_header.h"

size_t header_test_sizes(size_t* sizes, size_t room) {
  const size_t seen[] = {sizeof(kvc_tensor),
                         sizeof(kvc_executor),
                         sizeof(kvc_part),
                         sizeof(kvc_view_desc),
                         sizeof(kvc_layer_spec),
                         sizeof(kvc_append),
                         sizeof(kvc_attention_options),
                         sizeof(kvc_paged_config),
                         sizeof(kvc_paged_stats),
                         sizeof(kvc_memory),
                         offsetof(kvc_part, positions_stride),
                         offsetof(kvc_tensor, strides)};
  const size_t count = sizeof(seen) / sizeof(seen[0]);
  for (size_t i = 0; i < count && i < room; ++i) sizes[i] = seen[i];
  return count;
}

kvc_status header_test_call_from_c(void) {
  kvc_plan* plan = NULL;
  kvc_status status = kvc_plan_create(&plan);
  kvc_plan_free(plan);
  return status == KVC_OK ? kvc_plan_create(NULL) : KVC_INTERNAL;
}
