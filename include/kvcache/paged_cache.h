// PagedCache: any number of sequences over a pool of pages that they can share.
//
//   reserve -> write each layer -> attend over view(step, layer) -> commit
//
// Only reserve can fail for space, and nothing is visible to others until commit.
#ifndef KVCACHE_PAGED_CACHE_H_
#define KVCACHE_PAGED_CACHE_H_

#include <cstddef>
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
  std::vector<LayerSpec> layers;  // layers of equal life form a group with one block table
  std::int64_t page_size = 16;    // tokens
  // The most pages of each group; 0: as many as budget_bytes allows one. Slots are int32:
  // num_pages * page_size < 2^31.
  std::int64_t num_pages = 0;
  // Bound on reserved_bytes(), one over all groups: where it is reached, the memory of a page that
  // is free in one group goes to another that needs it. 0: as much as num_pages needs.
  std::int64_t budget_bytes = 0;
  // How far below the longest it has been a sequence can be taken back in layers that do not keep
  // all tokens: they hold that many more.
  std::int64_t rewind_tokens = 0;
  // The newest so many tokens stay plain in coded layers, and those before are coded in whole
  // pages: see PagedCache. 0: rows are coded as they are written.
  std::int64_t residual_tokens = 0;
  bool prefixes = false;         // room for the index of a PrefixCache; not beside residual_tokens
  Layout layout = Layout::kHND;  // of the tokens within a page
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
  // which every token has one: an append without them ends it, until truncated away, and so does
  // one whose ids find no room. That is for num_pages * page_size of them, in sequences of layers
  // that all drop rows.
  std::span<const std::int32_t> tokens = {};
  std::span<const std::int32_t> parents = {};  // kParents: kUnsupported until built
};

// The three forms in which engines pass page tables. All int32. Of a layer that has dropped rows
// they list the pages of the sinks, then those from first_position on, whose row lies in slot
// first_position % page_size of its page.
struct BlockTable {
  std::vector<std::int32_t> pages;  // [num_seqs, max_pages], -1 for unused
  std::int64_t num_seqs = 0;
  std::int64_t max_pages = 0;
};
struct PageIndices {
  std::vector<std::int32_t> kv_indptr;         // [num_seqs + 1]
  std::vector<std::int32_t> kv_indices;        // [kv_indptr.back()] page ids
  std::vector<std::int32_t> kv_last_page_len;  // [num_seqs] 1 .. page_size; 0: no row is held
};

// Coded rows as they are stored (RowFormat): copies, dense, whatever pages and layout are.
struct RowCodes {
  RowFormat format;
  std::int64_t heads = 0, rows = 0;
  std::vector<std::byte> codes;       // [heads, rows, code_bytes(head_dim)]
  std::vector<std::uint16_t> scales;  // [heads, rows, num_scales(head_dim)] as bits of f16
  std::vector<std::uint8_t> zeros;    // the same for int4; else empty
};

struct PagedStats {
  std::int64_t pages_total = 0;       // over all groups, as are the others
  std::int64_t pages_held = 0;        // named by the table of at least one sequence
  std::int64_t pages_reserved = 0;    // taken by open steps
  std::int64_t pages_cached = 0;      // kept by a PrefixCache, held by no sequence
  std::int64_t pages_high_water = 0;  // the most that were held or reserved at once
  std::int64_t pages_copied = 0;      // shared tails copied on write
  std::int64_t rows_copied = 0;       // token rows of those (all heads and layers of one group: 1)
  std::int64_t rows_encoded = 0;      // committed rows that are coded, K and V of each layer apart
  std::int64_t sequences = 0;         // open now
  std::int64_t open_steps = 0;
};

// Every failing call leaves the cache as if it had not been made. An unknown or released id, a
// step of another cache or one already ended is kNotFound; a sequence in an open step cannot be
// changed by anything else (kInvalidArgument). With a budget, open, fork and reorder are
// kRetryLater where their tables would pass it (see reserved_bytes()).
//
// A layer whose Life has a window or chunk drops rows when a step commits: rows that no later query
// sees are no longer held, and a page without a row that is held goes back (a shared one loses a
// reference). Rows keep their positions, and that of position p lies in slot p % page_size. Between
// steps a windowed layer has at most ceil((window + rewind_tokens) / page_size) + 1 pages a
// sequence, and those of its sinks; during a step also those of the step's rows, so long prompts go
// in chunks. hold_rows() keeps more. Going back, by fork, truncate or rewind, to a length less than
// the sequence's works where every layer holds what a query at that position sees; else it is
// kOutOfRange, naming layer, first position held and the one needed.
//
// With residual_tokens = r the rows 0 .. c of a coded layer are coded and the others plain, of the
// format's dtype: c = page_size * floor(max(0, n - r) / page_size) at length n, and never less than
// it was, but that a return to a length m < c leaves c = m. Rows are encoded by commit, from what
// was stored plain. A view has two parts then, codes and tail: so a step sees its own rows plain,
// and its results depend on how a text is cut into steps. Behind a return below c the tail's part
// begins up to page_size - 1 rows early, which its first_visible hides and masks count. Tails are a
// group of their own, with pages of their own. Such layers keep all rows: with a window or chunk
// kUnsupported, and so are tables of theirs, as their rows lie in two.
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

  // A new, empty sequence. A PrefixCache knows nothing of it: see PrefixCache::open.
  Result<SequenceId> open();

  // Gives its pages back; the last sharer frees a page. The id is never valid again.
  Status release(SequenceId seq);

  // Room for the new tokens of every sequence in every layer, copies of tail pages that are shared
  // now included, or nothing at all. Zero tokens and zero sequences are steps too, with nothing to
  // write. Pages that were never used are asked of the memory resource here, and stay committed;
  // with a budget until another group needs their bytes; a refusal of the resource evicts nothing.
  // Errors: kRetryLater while other sequences hold the pages or bytes, kNeverFits if
  // what these sequences hold and ask for exceeds the pool or budget, kInvalidArgument for a
  // sequence named twice or in another open step, kUnsupported for parents, kOutOfMemory.
  Result<Step> reserve(std::span<const Append> appends);

  // Stores the step's rows of one layer: k [num_new_tokens, num_kv_heads, k_head_dim] and v
  // likewise (in both layouts), sequences in the order of the appends, converted to the layer's
  // format. May be repeated; the last one counts. Coded rows are encoded here, once, and every
  // query sees the codes. Errors: kInvalidArgument for shapes and types, for rows that lie in this
  // cache's own pages, and, naming sequence and token, for rows that a coded form cannot store:
  // elements that are not finite (fp8_e4m3 keeps NaN) or too large for a scale of 16 bits.
  Status write(Step& step, std::int64_t layer, const TensorView& k, const TensorView& v,
               const ExecContext& context = {});

  // The committed rows of the step's sequences and the step's own rows, sequences in the order of
  // the appends. Valid until the step ends. Errors: kInvalidArgument before write().
  Result<OwnedKvView> view(const Step& step, std::int64_t layer) const;

  // Committed rows only. Of a layer that drops rows the last ones see less than their window: a
  // call whose queries would see a row that is gone is refused at plan().
  Result<OwnedKvView> view(std::int64_t layer, std::span<const SequenceId> seqs) const;

  // Keeps the first accepted[i] new tokens of appends[i] (none given: all), returns the rest of
  // the room and ends the step. Errors: kInvalidArgument if a layer was not written, or for an
  // accepted count outside 0 .. count; the step then stays open.
  Status commit(Step& step, std::span<const std::int64_t> accepted = {},
                const ExecContext& context = {});

  // Everything as before reserve(); ends the step. The memory of pages that the step was the first
  // to take stays committed for later ones: reserved_bytes() may be higher than before.
  Status rollback(Step& step);

  // A new sequence of the first `length` tokens of `seq`. Shares pages, copies none; a shared tail
  // page is copied by whichever side first writes to it. Errors: kOutOfRange.
  Result<SequenceId> fork(SequenceId seq, std::int64_t length);

  // Whether fork and truncate to `length` would find all that they need. Errors: theirs.
  Status reaches(SequenceId seq, std::int64_t length) const;

  // Whether the layers that drop rows hold all that the sequence brings from here on, whatever
  // their windows and chunks, so that it can be taken back over any number of steps. false: what
  // they drop at this length goes now, that of an open step when it ends. Forks and what reorder
  // makes of other sequences are as their source.
  Status hold_rows(SequenceId seq, bool hold);

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

  // The pages of committed rows, in three forms (kUnsupported beside residual_tokens); the slots
  // (page * page_size + offset) of a step's new tokens, [num_new_tokens].
  Result<BlockTable> block_table(std::int64_t layer, std::span<const SequenceId> seqs) const;
  Result<PageIndices> page_indices(std::int64_t layer, std::span<const SequenceId> seqs) const;
  Result<std::vector<std::int32_t>> slot_mapping(const Step& step, std::int64_t layer) const;

  // Copies the committed rows that one layer holds of one sequence to dense tensors of the caller,
  // the sinks first, decoded and converted to their dtype: [H, S, D] for kHND, [S, H, D] for kNHD,
  // with S = rows_held(layer, seq).
  Status gather(std::int64_t layer, SequenceId seq, const MutableTensorView& key,
                const MutableTensorView& value, const ExecContext& context = {}) const;

  // The same of the step's sequence number `index`, with the step's own rows behind: what
  // view(step, layer) shows, S = rows_held(layer, seq) + its new tokens. Errors: kInvalidArgument
  // before write(); kOutOfRange for an index that the step has not.
  Status gather(const Step& step, std::int64_t layer, std::int64_t index,
                const MutableTensorView& key, const MutableTensorView& value,
                const ExecContext& context = {}) const;

  // The committed rows of a layer's keys or values as codes, those that are coded. Errors:
  // kUnsupported for plain rows.
  Result<RowCodes> gather_codes(std::int64_t layer, SequenceId seq, Role role) const;

  Result<std::vector<SequenceId>> sequences() const;  // that are open, in the order of their ids

  Result<std::int64_t> seq_length(SequenceId seq) const;     // committed tokens
  Result<std::int64_t> next_position(SequenceId seq) const;  // what the next token rotates with

  // The position of the oldest row that a layer holds beside the sinks, and how many it holds:
  // min(sink_tokens, first_position) + length - first_position.
  Result<std::int64_t> first_position(std::int64_t layer, SequenceId seq) const;
  Result<std::int64_t> rows_held(std::int64_t layer, SequenceId seq) const;

  std::int64_t num_layers() const noexcept;
  std::int64_t num_groups() const noexcept;
  std::int64_t page_size() const noexcept;  // tokens
  Layout layout() const noexcept;           // of the tokens within a page
  // What a reserve could take of one group now; with a budget, if it took nothing of the others.
  std::int64_t free_pages(std::int64_t group = 0) const noexcept;
  PagedStats stats() const noexcept;
  bool supports(Operation operation) const noexcept;

  // Bytes of committed rows that are held, a shared row counted once.
  std::int64_t nbytes() const noexcept;

  // Bytes held for them: pages touched so far, but for those whose memory went back, and tables.
  // With G groups of which none has touched more than t pages (or blocks of page_size token ids), S
  // sequences and E ids of both in their tables, tables are
  //   t * (32 G + 4 page_size + 140) + max(0, 128 S + 4 E - t * (132 + 4 G)):
  // each page brings room for a sequence of its own, and sharing counts only beyond that. With
  // CacheConfig::prefixes each of the t pages has 164 + 16 G more; handles and pins count as
  // sequences, and a namespace as two. All of it is committed from the MemoryResource.
  std::int64_t reserved_bytes() const noexcept;

  // Every page is in exactly one of free, held, reserved, cached; reference counts equal the number
  // of tables that name the page. Errors: kInternal naming the page. For tests.
  Status check_invariants() const;

 private:
  friend class PrefixCache;
  friend class PrefixHandle;
  friend class CacheFile;
  struct Impl;
  explicit PagedCache(std::shared_ptr<Impl> impl) noexcept;
  std::shared_ptr<Impl> impl_;  // shared with open steps, so that late drops are safe
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_PAGED_CACHE_H_
