// History: where a forward pass puts its keys and values, and how it attends to them. The adapter
// between the runner and every kind of cache, and the absence of one.
#ifndef KVCACHE_RUNNER_MODEL_HISTORY_H_
#define KVCACHE_RUNNER_MODEL_HISTORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/kvcache.h"
#include "runner/config/model_config.h"
#include "runner/model/kv_dtype.h"

namespace kvcache::runner {

// kBatching holds the requests of an Engine, and is no history of one sequence.
enum class HistoryKind : std::uint8_t { kNone, kDynamic, kStatic, kPaged, kFunctional, kBatching };

// "none", "dynamic", "static", "paged", "functional", "batching".
const char* name_of(HistoryKind kind) noexcept;
Result<HistoryKind> parse_history_kind(std::string_view name);

struct HistoryOptions {
  HistoryKind kind = HistoryKind::kDynamic;
  KvDtype rows;               // how keys and values are stored
  DType dtype = DType::kF32;  // of what `rows` does not name
  Layout layout = Layout::kHND;
  std::int64_t page_size = 16;  // kPaged, tokens
  std::int64_t max_length = 0;  // kStatic, kFunctional: capacity; in pages: tokens of room in the
                                // pool, for each sequence
  std::int64_t num_sequences = 1;    // in pages: how many repeat() will make of one
  MemoryResource* memory = nullptr;  // null: system_memory()
};

struct KvUsage {
  std::int64_t nbytes = 0;          // rows stored
  std::int64_t reserved_bytes = 0;  // held for them
  std::int64_t copied_bytes = 0;    // old rows: by growth, repeat and reorder
  std::int64_t pages = 0;           // held by tables; 0 without pages
  std::int64_t rows_copied = 0;     // shared tails copied on write; 0 without pages
};

// Queries, keys and values of one layer of a step, packed: the rows of sequence 0, then those of
// sequence 1, and so on; float32, already rotated.
struct AttentionInputs {
  TensorView q;  // [num_new_tokens, num_heads, head_dim]
  TensorView k;  // [num_new_tokens, num_kv_heads, head_dim]
  TensorView v;  // [num_new_tokens, num_kv_heads, head_dim]
};

// The histories of one or more sequences. A step is begin, attend for every layer in order, then
// end; or abandon, which leaves everything as before begin.
class History {
 public:
  virtual ~History() = default;

  virtual std::int64_t num_sequences() const noexcept = 0;

  // counts: new tokens of each sequence, [num_sequences], each >= 0; ids: theirs, packed, or none.
  // Errors: kInvalidArgument for counts that the cache cannot take together.
  virtual Status begin(std::span<const std::int64_t> counts, std::span<const std::int32_t> ids) = 0;

  // Stores k and v of one layer, then attends: out [num_new_tokens, num_heads, head_dim] float32 is
  // what each new token makes of its sequence so far, itself included.
  virtual Status attend(std::int64_t layer, const AttentionInputs& inputs,
                        const MutableTensorView& out, const AttentionOptions& options,
                        const ExecContext& context) = 0;
  virtual Status end() = 0;
  virtual void abandon() noexcept = 0;

  // K/V rows that one layer's attention read in the last step, over all sequences.
  virtual std::int64_t rows_read() const noexcept = 0;

  // False for the absence of a cache: every step must then bring all tokens from the first.
  virtual bool keeps_history() const noexcept = 0;

  virtual std::int64_t length(std::int64_t sequence = 0) const = 0;  // tokens stored
  // What the next token is rotated with.
  virtual std::int64_t next_position(std::int64_t sequence = 0) const = 0;
  virtual KvUsage usage() const = 0;

  // An empty sequence becomes the longest beginning of `text` that a prefix cache has, but for its
  // last token: how many tokens these are. 0 where there is none, or no room for what was found.
  virtual std::int64_t find(std::int64_t sequence, std::span<const std::int32_t> text);

  // Sequences a, b become a, a, b, b for n = 2. Between steps; error, unchanged.
  // Errors: kUnsupported where the cache cannot.
  virtual Status repeat(std::int64_t n, const ExecContext& context) = 0;

  // Sequence i becomes what sequence beam_idx[i] was; beam_idx is [num_sequences]. Between steps;
  // error, unchanged. Errors: kUnsupported where the cache cannot.
  virtual Status reorder(std::span<const std::int64_t> beam_idx, const ExecContext& context) = 0;

 protected:
  History() = default;
  History(const History&) = default;
  History& operator=(const History&) = default;
};

// Rows that are coded, or that layers or keys and values store differently, are for kPaged and
// kNone, which keeps them in pages for the time of a step. Errors: kUnsupported for them in another
// kind; those of KvDtype::layers and of the cache.
Result<std::unique_ptr<History>> make_history(const ModelConfig& config,
                                              const HistoryOptions& options);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_HISTORY_H_
