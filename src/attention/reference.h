// The definition of attention, readable above all: backend "reference", the oracle of every other.
#ifndef KVCACHE_SRC_ATTENTION_REFERENCE_H_
#define KVCACHE_SRC_ATTENTION_REFERENCE_H_

#include <cstdint>

#include "attention/problem.h"

namespace kvcache::internal {

// Attention of one query and one head over the keys of its sequence: writes its row of `out` and
// its element of `lse`. All arithmetic is float64. `scratch` holds [v_head_dim].
// Cost: each visible key is read twice, its value once.
void reference_row(const AttentionProblem& problem, std::int32_t seq, std::int64_t query,
                   std::int64_t head, double* scratch);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_REFERENCE_H_
