// A backend: what it is called, the device whose memory it reads, whether it runs here, and its
// functions over plain structs. registry.cc lists the backends of this build.
#ifndef KVCACHE_SRC_KERNELS_BACKEND_H_
#define KVCACHE_SRC_KERNELS_BACKEND_H_

#include <cstdint>

#include "kvcache/types.h"
#include "tensor/codecs/coded_block.h"
#include "tensor/row_copy.h"

namespace kvcache::internal {

// How a sequence's step is computed: by the number of its new tokens, 1 to 8 or more. The bits of a
// result depend on it, and on nothing else of the batch.
enum class Path : std::uint8_t { kDecode, kPrefill };
inline constexpr std::int64_t kDecodeQueries = 8;

// Rows between a caller's tensors and a cache. Both sides may be strided; no alignment is needed.
// Bit for bit what copy_rows (tensor/convert.h) does, in the instructions of the backend.
// REQUIRES: floating types; the two sides do not overlap.
struct RowKernels {
  void (*store)(const RowCopy& rows);  // into a cache's rows, rounded to their type
  void (*load)(const RowCopy& rows);   // out of them
  void (*copy)(const RowCopy& rows);   // from cache to cache. REQUIRES: equal types

  // Rows that are stored coded, bit for bit as tensor/codecs/coded_block.h defines it.
  std::int64_t (*refused)(const CodedBlock& block);  // the first token that cannot be, or -1
  void (*encode)(const CodedBlock& block);           // into a cache. REQUIRES: none is refused
  void (*decode)(const CodedBlock& block);           // out of it

  // `count` dense rows of floats, `stride` elements apart, are turned: rotate_row().
  void (*rotate)(float* rows, std::int64_t count, std::int64_t stride, std::int64_t elements);
};

// Who attends. src/attention/backend.h has the functions: they run plans, which kernels know
// nothing of.
enum class Attends : std::uint8_t {
  kByDefinition,  // row by row, in float64
  kByCuts,        // on a CPU, by the functions of Backend::cuts
  kNowhere,       // there is no such device in this build
};

struct Availability {
  bool here = false;
  const char* reason = "";  // why, or why not
};

struct AttentionKernels;  // kernels/cpu/cut.h

struct Backend {
  const char* name = nullptr;
  const char* description = nullptr;
  Device device;
  Availability availability;
  const RowKernels* rows = nullptr;  // never null; they do nothing where it does not run
  Attends attends = Attends::kNowhere;
  const AttentionKernels* cuts = nullptr;  // of kByCuts, where the build has the instruction set
};

// All backends, best first; "reference" is the last. Thread safety: may be called from any thread.
const Backend* all_backends(std::int32_t* count) noexcept;

// The one of this name, available or not; null if there is none.
const Backend* find_backend(const char* name) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_KERNELS_BACKEND_H_
