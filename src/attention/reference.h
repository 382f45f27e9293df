// The definition of attention, readable above all: backend "reference", the oracle of every other.
#ifndef KVCACHE_SRC_ATTENTION_REFERENCE_H_
#define KVCACHE_SRC_ATTENTION_REFERENCE_H_

#include "attention/backend.h"

namespace kvcache::internal {

// All arithmetic is float64. A task is a head of a sequence.
// Cost: for each query, each visible key is read twice, its value once.
const Attention& reference_attention() noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_REFERENCE_H_
