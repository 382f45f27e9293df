// How a CPU runs a plan: items of work on the executor, level by level.
#ifndef KVCACHE_SRC_ATTENTION_CPU_RUN_H_
#define KVCACHE_SRC_ATTENTION_CPU_RUN_H_

#include "attention/backend.h"

namespace kvcache::internal {

// Of backends that attend by cuts.
const Attention& cpu_attention() noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_CPU_RUN_H_
