// PagedCache: any number of sequences over a pool of pages that they can share.
//
//   reserve -> write each layer -> attend over view(step, layer) -> commit
//
// Only reserve can fail for space, and nothing is visible to others until commit.
#ifndef KVCACHE_PAGED_CACHE_H_
#define KVCACHE_PAGED_CACHE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/kv_view.h"
#include "kvcache/layer_spec.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// Names a sequence. Ids are unique in the process and never used again.
enum class SequenceId : std::int64_t {};

// What a cache may be asked to do; see PagedCache::supports.
enum class Operation : std::uint8_t {
  kFork,
  kTruncate,
  kRewind,
  kReorder,
  kGather,
  kRemove,   // gaps in the middle of a sequence
  kShift,    // moving positions, which re-rotates keys
  kParents,  // new tokens that form a tree
};

struct CacheConfig {
  std::vector<LayerSpec> layers;  // layers with equal specs form a group with one block table
  std::int64_t page_size = 16;    // tokens
  // Pages in each group; 0: as many as budget_bytes allows. Slots are int32: num_pages * page_size
  // < 2^31.
  std::int64_t num_pages = 0;
  std::int64_t budget_bytes = 0;     // bound on reserved_bytes(); 0: as many as num_pages needs
  Layout layout = Layout::kHND;      // of the tokens within a page
  MemoryResource* memory = nullptr;  // not owned; null: system_memory()
  std::vector<Operation> required;   // operations the owner needs: refused here if any is missing

  // `num_layers` equal layers of plain rows of `dtype`, K and V of the same head size.
  static CacheConfig uniform(std::int64_t num_layers, std::int64_t num_kv_heads,
                             std::int64_t head_dim, DType dtype = DType::kF32);
};

// New tokens of one sequence.
struct Append {
  SequenceId seq;
  std::int64_t count = 0;  // >= 0
  // Their ids, for prefix reuse: none or `count`. Kept for the longest prefix of the sequence in
  // which every token has one: an append without them ends it, until truncated away.
  std::span<const std::int32_t> tokens = {};
  std::span<const std::int32_t> parents = {};  // kParents: kUnsupported until built
};

// The three forms in which engines pass page tables. All int32.
struct BlockTable {
  std::vector<std::int32_t> pages;  // [num_seqs, max_pages], -1 for unused
  std::int64_t num_seqs = 0;
  std::int64_t max_pages = 0;
};
struct PageIndices {
  std::vector<std::int32_t> kv_indptr;         // [num_seqs + 1]
  std::vector<std::int32_t> kv_indices;        // [kv_indptr.back()] page ids
  std::vector<std::int32_t> kv_last_page_len;  // [num_seqs] 1 .. page_size; 0 for an empty one
};

struct PagedStats {
  std::int64_t pages_total = 0;       // over all groups, as are the others
  std::int64_t pages_held = 0;        // named by the table of at least one sequence
  std::int64_t pages_reserved = 0;    // taken by open steps
  std::int64_t pages_high_water = 0;  // the most that were held or reserved at once
  std::int64_t pages_copied = 0;      // shared tails copied on write
  std::int64_t rows_copied = 0;       // token rows of those (all heads and layers of one group: 1)
  std::int64_t sequences = 0;         // open now
  std::int64_t open_steps = 0;
};

// Every failing call leaves the cache as if it had not been made. An unknown or released id, a
// step of another cache or one already ended is kNotFound; a sequence in an open step cannot be
// changed by anything else (kInvalidArgument). With a budget, open, fork and reorder are
// kRetryLater where their tables would pass it (see reserved_bytes()).
//
// Pages never move while the cache lives: a view is valid until one of its own sequences changes
// or is released. Sequences may be attended to while others are reserved, written and committed.
//
// Thread safety: const calls may run together; changing calls are serialised by the caller.
// Attention over views that are still valid may run beside any call.
class KVC_API PagedCache {
 public:
  // An open step: room for new tokens, and what was written to it. Dropping it rolls back.
  // REQUIRES: it does not outlive the cache in use (dropping it later is safe).
  class KVC_API Step {
   public:
    Step(Step&&) noexcept;
    Step& operator=(Step&&) noexcept;
    ~Step();

    std::int64_t num_new_tokens() const noexcept;  // over all sequences

   private:
    friend class PagedCache;
    struct Impl;
    explicit Step(std::unique_ptr<Impl> impl) noexcept;
    std::unique_ptr<Impl> impl_;
  };

  // Errors: kInvalidArgument for an empty or malformed config, kUnsupported for a required
  // operation that cannot be given, kOutOfMemory.
  static Result<PagedCache> create(const CacheConfig& config);

  PagedCache(PagedCache&&) noexcept;
  PagedCache& operator=(PagedCache&&) noexcept;
  ~PagedCache();

  // A new, empty sequence.
  Result<SequenceId> open();

  // Gives its pages back; the last sharer frees a page. The id is never valid again.
  Status release(SequenceId seq);

  // Room for the new tokens of every sequence in every layer, copies of tail pages that are shared
  // now included, or nothing at all. Zero tokens and zero sequences are steps too, with nothing to
  // write. Pages that were never used are asked of the memory resource here, and stay committed.
  // Errors: kRetryLater while other sequences hold the pages, kNeverFits if the pages that these
  // sequences hold and ask for exceed the pool, kInvalidArgument for a sequence named twice or in
  // another open step, kUnsupported for parents, kOutOfMemory.
  Result<Step> reserve(std::span<const Append> appends);

  // Stores the step's rows of one layer: k [num_new_tokens, num_kv_heads, k_head_dim] and v
  // likewise (in both layouts), sequences in the order of the appends, converted to the layer's
  // format. May be repeated; the last one counts. Errors: kInvalidArgument for shapes and types,
  // and for rows that lie in this cache's own pages.
  Status write(Step& step, std::int64_t layer, const TensorView& k, const TensorView& v,
               const ExecContext& context = {});

  // The committed rows of the step's sequences and the step's own rows, sequences in the order of
  // the appends. Valid until the step ends. Errors: kInvalidArgument before write().
  Result<OwnedKvView> view(const Step& step, std::int64_t layer) const;

  // Committed rows only.
  Result<OwnedKvView> view(std::int64_t layer, std::span<const SequenceId> seqs) const;

  // Keeps the first accepted[i] new tokens of appends[i] (none given: all), returns the rest of
  // the room and ends the step. Errors: kInvalidArgument if a layer was not written, or for an
  // accepted count outside 0 .. count; the step then stays open.
  Status commit(Step& step, std::span<const std::int64_t> accepted = {});

  // Everything as before reserve(); ends the step. The memory of pages that the step was the first
  // to take stays committed for later ones: reserved_bytes() may be higher than before.
  Status rollback(Step& step);

  // A new sequence of the first `length` tokens of `seq`. Shares pages, copies none; a shared tail
  // page is copied by whichever side first writes to it. Errors: kOutOfRange.
  Result<SequenceId> fork(SequenceId seq, std::int64_t length);

  // Keeps the first n tokens (n beyond the length: nothing changes) / drops the newest n
  // (kOutOfRange beyond the length).
  Status truncate(SequenceId seq, std::int64_t n);
  Status rewind(SequenceId seq, std::int64_t n);

  // Sequence seqs[i] becomes what seqs[beam_idx[i]] was. Ids stay, references move, no row is
  // copied. `beam_idx` is 1-D, kI32 or kI64, one index per sequence.
  Status reorder(std::span<const SequenceId> seqs, const TensorView& beam_idx);

  // By position, as ranges [begin, end). Errors: kUnsupported until built.
  Status remove(SequenceId seq, std::int64_t begin, std::int64_t end);
  Status shift(SequenceId seq, std::int64_t begin, std::int64_t end, std::int64_t delta);

  // The pages of committed rows, in three forms; the slots (page * page_size + offset) of a step's
  // new tokens, [num_new_tokens].
  Result<BlockTable> block_table(std::int64_t layer, std::span<const SequenceId> seqs) const;
  Result<PageIndices> page_indices(std::int64_t layer, std::span<const SequenceId> seqs) const;
  Result<std::vector<std::int32_t>> slot_mapping(const Step& step, std::int64_t layer) const;

  // Copies the committed rows of one sequence to dense tensors of the caller, converting to their
  // dtype: [H, S, D] for kHND, [S, H, D] for kNHD.
  Status gather(std::int64_t layer, SequenceId seq, const MutableTensorView& key,
                const MutableTensorView& value, const ExecContext& context = {}) const;

  Result<std::int64_t> seq_length(SequenceId seq) const;     // committed tokens
  Result<std::int64_t> next_position(SequenceId seq) const;  // what the next token rotates with
  std::int64_t num_layers() const noexcept;
  std::int64_t num_groups() const noexcept;
  std::int64_t page_size() const noexcept;                         // tokens
  Layout layout() const noexcept;                                  // of the tokens within a page
  std::int64_t free_pages(std::int64_t group = 0) const noexcept;  // what a reserve could take now
  PagedStats stats() const noexcept;
  bool supports(Operation operation) const noexcept;

  // Bytes of committed rows, a shared row counted once.
  std::int64_t nbytes() const noexcept;

  // Bytes held for them: pages touched so far, and tables. With G groups of n pages, S sequences
  // and E ids in their tables (of pages, and of blocks of page_size token ids), tables are
  //   n * (32 G + 4 page_size + 140) + max(0, 128 S + 4 E - n * (132 + 4 G)):
  // each page brings room for a sequence of its own, and sharing counts only beyond that. All of it
  // is committed from the MemoryResource.
  std::int64_t reserved_bytes() const noexcept;

  // Every page is in exactly one of free, held, reserved, cached; reference counts equal the number
  // of tables that name the page. Errors: kInternal naming the page. For tests.
  Status check_invariants() const;

 private:
  struct Impl;
  explicit PagedCache(std::shared_ptr<Impl> impl) noexcept;
  std::shared_ptr<Impl> impl_;  // shared with open steps, so that late drops are safe
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_PAGED_CACHE_H_
