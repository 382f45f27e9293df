// What a model of transformers computed is found again: a PagedCache of all its layers and the
// PrefixCache over it, beside the caches that its calls compute with. Rows are copied in and out.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_PREFIX_H_
#define KVCACHE_PYTHON_BINDINGS_HF_PREFIX_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvcache/layer_spec.h"
#include "kvcache/paged_cache.h"
#include "kvcache/prefix.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "python/bindings/hf_paged.h"

namespace kvcache::python {

// The rows of one layer of a call: those of a paged layer, or key [B, H, n, Dk] and value
// [B, H, n, Dv] of its last n columns, dense in their last axis.
struct PrefixRows {
  const PagedLayer* layer = nullptr;
  TensorView key, value;

  std::int64_t batch() const noexcept { return layer != nullptr ? layer->batch() : key.shape[0]; }
  std::int64_t columns() const noexcept {
    return layer != nullptr ? layer->length() : key.shape[2];
  }
  LayerSpec spec() const noexcept;
  // Of one text the rows from the one `behind` its end on, as [count, H, D]; those of a paged layer
  // are copied to `copy`. REQUIRES: count <= behind <= columns().
  Result<TensorView> read(std::int64_t text, std::int64_t behind, std::int64_t count, bool keys,
                          std::vector<std::byte>* copy) const;
};

struct PrefixCounts {
  std::int64_t matches = 0;        // texts that were looked for
  std::int64_t hits = 0;           // of these, with a token found
  std::int64_t tokens_asked = 0;   // in them
  std::int64_t tokens_found = 0;   // of these
  std::int64_t tokens_reused = 0;  // that were not computed again
  std::int64_t tokens_stored = 0;
  std::int64_t texts_refused = 0;  // whose next rows found no room
  std::int64_t misses[7] = {};     // texts, by PrefixMiss
};

// Thread safety: one call at a time, who holds turn().
class ModelRows {
 public:
  ModelRows(std::int64_t budget_bytes, std::int64_t page_size)
      : budget_bytes_(budget_bytes), page_size_(page_size) {}
  ModelRows(const ModelRows&) = delete;
  ModelRows& operator=(const ModelRows&) = delete;

  std::recursive_mutex& turn() const noexcept { return turn_; }

  // Makes room for rows of these layers. What was stored of others goes. Errors: kInvalidArgument
  // for a budget below a page, kUnsupported for coded rows, kRetryLater while a batch has rows of
  // others, kOutOfMemory.
  Status expect(std::span<const LayerSpec> layers);

  const PrefixCounts& counts() const noexcept { return counts_; }
  PrefixStats stats();

  // What is stored, of all namespaces, in a file; and of a file what one namespace has. Both return
  // how many pages. Errors: those of PrefixCache, and kInvalidArgument where nothing was expected
  // yet, or where texts of others alone are there.
  Result<std::int64_t> save(const std::string& path);
  Result<std::int64_t> load(const std::string& path, const PrefixNamespace& space);

  std::int64_t reserved_bytes();  // at most the budget
  std::int64_t budget_bytes() const noexcept { return budget_bytes_; }

  Status check_invariants();  // for tests

 private:
  friend class PrefixBatch;

  // Sequences of batches that are gone, a node of each. Nothing else is held while they are listed,
  // and nothing allocated, so that the garbage collector may end a batch anywhere.
  void retire(std::list<std::vector<SequenceId>>* seqs) noexcept;
  void release_retired() noexcept;

  const std::int64_t budget_bytes_;
  const std::int64_t page_size_;
  std::vector<LayerSpec> layers_;
  std::optional<PagedCache> cache_;      // none before the first rows
  std::optional<PrefixCache> prefixes_;  // over it
  PrefixCounts counts_;
  std::mutex retiring_;
  std::list<std::vector<SequenceId>> retired_;
  mutable std::recursive_mutex turn_;
};

// The texts of one call: B rows of columns, of which the first paddings[b] are no text. For each
// forward pass: find() what its new columns and those before have stored, gather() that, append()
// what it computed.
//
// Thread safety: one call at a time, who holds the store's turn(). It may go at any time: nothing
// more is then stored, and what is can be found to its last token.
class PrefixBatch {
 public:
  // ends: ids of tokens behind which nothing of a text that grows by single tokens is stored.
  PrefixBatch(std::shared_ptr<ModelRows> store, const PrefixNamespace& space,
              std::vector<std::int64_t> paddings, std::vector<std::int32_t> ends);
  PrefixBatch(const PrefixBatch&) = delete;
  PrefixBatch& operator=(const PrefixBatch&) = delete;
  ~PrefixBatch();

  std::int64_t length() const noexcept { return length_; }  // columns that the call has rows of
  std::int64_t fresh() const noexcept { return total_ - length_; }  // of the forward pass

  // ids [B, n] of the next columns: how many columns need not be computed, length() for none that
  // is new, as all texts have their rows stored. The last `keep` are always computed.
  // Errors: kInvalidArgument for another shape.
  Result<std::int64_t> find(const TensorView& ids, std::int64_t keep);

  // The columns that find() found, from length() on, of one layer: key [B, H, n, Dk] and value
  // [B, H, n, Dv], zeros for paddings and for what no later query sees.
  Status gather(std::int64_t layer, const MutableTensorView& key,
                const MutableTensorView& value) const;
  std::int64_t found() const noexcept { return found_; }  // columns
  const LayerSpec& layer(std::int64_t index) const noexcept;

  // Stores the columns that were computed, and ends the forward pass. Whether there is a text of
  // which more will be stored: none where there is no room. Errors: those of expect(),
  // kInvalidArgument for layers whose rows are not those columns; the batch is then closed.
  Result<bool> append(std::span<const PrefixRows> layers);

  // The call dropped its newest columns, and has that many. REQUIRES: between forward passes.
  void crop(std::int64_t columns) noexcept;

  std::int64_t batch() const noexcept { return static_cast<std::int64_t>(texts_.size()); }

 private:
  struct Text {
    std::int64_t padding = 0;
    std::vector<std::int32_t> tokens;  // those of the forward pass too
    SequenceId seq{};                  // in the store; meaningless where it is not stored
    bool is_open = false;
    bool is_closed = false;   // for ever
    std::int64_t stored = 0;  // tokens
    SequenceId loading{};     // the columns that find() found
    std::int64_t loads = 0;   // tokens of them
  };

  Status open(Text& text, const PrefixHandle& handle);
  // From here on nothing of it is stored; what is can be found to its last token.
  void close(Text& text) noexcept;
  void close() noexcept;  // all of them
  void end_loading() noexcept;
  // Shortens `start` to what every layer can serve of all texts.
  Status settle(std::int64_t* start) const;
  Status store_text(std::int64_t index, std::span<const PrefixRows> layers);

  std::shared_ptr<ModelRows> store_;
  PrefixNamespace space_;
  std::vector<Text> texts_;
  std::vector<std::int32_t> ends_;
  std::list<std::vector<SequenceId>> leaving_;  // one node, with room for all that the end lists
  std::int64_t length_ = 0;
  std::int64_t total_ = 0;  // with those of the forward pass
  std::int64_t found_ = 0;
};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_PREFIX_H_
