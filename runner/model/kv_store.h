// KvStore: where a forward pass puts its keys and values, and what it attends to. The adapter
// between the runner and every kind of cache, and the absence of one.
#ifndef KVCACHE_RUNNER_MODEL_KV_STORE_H_
#define KVCACHE_RUNNER_MODEL_KV_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/kvcache.h"
#include "runner/config/model_config.h"

namespace kvcache::runner {

enum class StoreKind : std::uint8_t { kNone, kDynamic, kStatic, kPaged };

// "none", "dynamic", "static", "paged".
const char* name_of(StoreKind kind) noexcept;
Result<StoreKind> parse_store_kind(std::string_view name);

struct KvStoreOptions {
  StoreKind kind = StoreKind::kDynamic;
  DType dtype = DType::kF32;
  Layout layout = Layout::kHND;
  std::int64_t page_size = 16;       // kPaged, tokens
  std::int64_t max_length = 0;       // kStatic: capacity; kPaged: tokens of room in the pool
  MemoryResource* memory = nullptr;  // null: system_memory()
};

struct KvUsage {
  std::int64_t nbytes = 0;          // rows stored
  std::int64_t reserved_bytes = 0;  // held for them
  std::int64_t copied_bytes = 0;    // by growth
  std::int64_t pages = 0;           // held by tables; 0 without pages
};

// The history of one sequence. A step is begin, write for every layer in order, then end; or
// abandon, which leaves everything as before begin.
class KvStore {
 public:
  virtual ~KvStore() = default;

  virtual Status begin(std::int64_t num_new_tokens) = 0;

  // Stores k and v [num_new_tokens, num_kv_heads, head_dim] (float32, already rotated) of one
  // layer; returns what the new tokens attend to, themselves included. Valid until the next write.
  virtual Result<OwnedKvView> write(std::int64_t layer, const TensorView& k, const TensorView& v,
                                    const ExecContext& context) = 0;
  virtual Status end() = 0;
  virtual void abandon() noexcept = 0;

  // False for the absence of a cache: every step must then bring all tokens from the first.
  virtual bool keeps_history() const noexcept = 0;

  virtual std::int64_t length() const = 0;         // tokens stored
  virtual std::int64_t next_position() const = 0;  // what the next token is rotated with
  virtual KvUsage usage() const = 0;

 protected:
  KvStore() = default;
  KvStore(const KvStore&) = default;
  KvStore& operator=(const KvStore&) = default;
};

Result<std::unique_ptr<KvStore>> make_kv_store(const ModelConfig& config,
                                               const KvStoreOptions& options);

// What each layer of the model stores per token.
std::vector<LayerSpec> layer_specs(const ModelConfig& config, DType dtype);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_KV_STORE_H_
