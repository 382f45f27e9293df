// ContiguousLayer: the rows of one layer in one region of memory (see geometry.h).
//
// Calls come in two kinds: those that may fail change no row, no length and no address that was
// handed out; those that change rows cannot fail.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_LAYER_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_LAYER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cache/contiguous/geometry.h"
#include "kvcache/executor.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

// A reservation and what is committed of it; released with its last holder.
struct Mapping {
  MemoryResource* memory = nullptr;
  Region region;
  std::int64_t committed = 0;

  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (memory != nullptr) memory->release(region, committed);
  }
};

// How a layer gets its memory.
struct Placement {
  MemoryResource* memory = nullptr;
  std::int64_t fixed_capacity = 0;  // tokens; 0: grows
  std::int64_t reserve_tokens = 1;  // growing: address space asked for at first
  // Growing: the most address space this layer may take. A wish beyond half of it is halved, as is
  // one that the system refuses, so that later layers find room too.
  std::int64_t address_bytes = 0;
};

// Which batch row each row of a new batch comes from.
struct BatchGather {
  std::int64_t count = 0;                 // rows of the new batch, >= 1
  const std::int64_t* indices = nullptr;  // [count]; null: rows a, b become a, a, b, b ...
  std::int64_t repeat = 1;                // ... each so many times

  std::int64_t source(std::int64_t i) const noexcept {
    return indices != nullptr ? indices[i] : i / repeat;
  }
};

class ContiguousLayer {
 public:
  ContiguousLayer() noexcept = default;
  ContiguousLayer(ContiguousLayer&&) noexcept = default;
  ContiguousLayer& operator=(ContiguousLayer&&) noexcept = default;

  // Whether the shape is known: from the first rows until reset.
  bool populated() const noexcept { return populated_; }
  // REQUIRES: populated().
  const LayerShape& shape() const noexcept { return geometry_.shape; }
  std::int64_t length() const noexcept { return length_; }
  std::int64_t first_position() const noexcept { return first_position_; }

  std::int64_t stored_bytes() const noexcept {
    return populated_ ? geometry_.stored_bytes(length_) : 0;
  }
  std::int64_t committed_bytes() const noexcept { return mapping_ ? mapping_->committed : 0; }
  std::int64_t address_bytes() const noexcept { return mapping_ ? mapping_->region.bytes : 0; }
  const std::shared_ptr<Mapping>& mapping() const noexcept { return mapping_; }

  bool is_coded() const noexcept {
    return shape().key().format.is_coded() || shape().value().format.is_coded();
  }

  // Rows 0 .. length in the axis order of the layout: of a coded buffer an undefined tensor.
  KeyValueView rows() const noexcept;

  // Where the rows of a buffer lie for attention: a page of all tokens for each batch row.
  // REQUIRES: populated().
  RowsView rows_view(std::int32_t buffer) const noexcept;

  // Decodes rows 0 .. length of a coded buffer. REQUIRES: a dense tensor of theirs, in the axis
  // order of the layout, of a floating type.
  void decode(std::int32_t buffer, const MutableTensorView& rows,
              const ExecContext& context) const noexcept;

  // Whether rows 0 .. `length` lie in committed memory. REQUIRES: populated().
  bool has_room(std::int64_t length) const noexcept { return length <= ready_length_; }

  // --- May fail. ---

  // Room for rows 0 .. `length`. `*copied` grows by the bytes that a growth had to copy.
  // Errors: kOutOfMemory. REQUIRES: populated().
  Status make_room(std::int64_t length, const Placement& placement, std::int64_t* copied);

  // Gives an unpopulated layer its shape, with room for rows 0 .. `length`. Memory that reset()
  // kept is used if it fits, and given back otherwise. Errors: kOutOfMemory.
  Status populate(const LayerShape& shape, std::int64_t length, const Placement& placement);

  // --- Cannot fail. ---

  // Copies tokens `first` .. `first + count` of `key` and `value` (in the axis order of the layout)
  // to rows `row` and on of batch rows `batch` .. `batch + num_batch`, converting or encoding.
  // REQUIRES: room for them, equal shapes; rows that their form can store; the sources do not
  // overlap this layer's memory.
  struct Slice {
    std::int64_t batch, num_batch, first, count, row;
  };
  void write(const TensorView& key, const TensorView& value, const Slice& slice,
             const ExecContext& context) noexcept;

  // Rows that are there from now on. Growing past rows that were not written needs zero_rows
  // first. REQUIRES: room for them.
  void set_length(std::int64_t length) noexcept;

  // Of the first row, whatever was cropped.
  void set_first_position(std::int64_t position) noexcept { first_position_ = position; }

  // Makes rows length() .. `end` read as zeros. REQUIRES: room for them.
  void zero_rows(std::int64_t end, const ExecContext& context) noexcept;

  // Keeps the most recent `n`; returns the bytes that had to be moved. REQUIRES: n >= 0.
  std::int64_t crop(std::int64_t n, const ExecContext& context) noexcept;

  // Makes batch row i a copy of batch row gather.source(i) of `from`, lengths included; returns
  // the bytes. REQUIRES: shapes equal but for the batch, room for from.length().
  std::int64_t copy_batch(const ContiguousLayer& from, const BatchGather& gather,
                          const ExecContext& context) noexcept;

  // Forgets rows and shape, keeps the memory for the next ones.
  void reset() noexcept;

  // Returns memory that no row needs: all of it from an empty layer, whole pages behind the rows
  // of a growing one.
  void shrink() noexcept;

  // What a layer holds, for take_back().
  struct Mark {
    bool populated = false;
    bool mapped = false;
    std::int64_t length = 0;
    std::int64_t committed_length = 0;
  };
  Mark mark() const noexcept {
    return {populated_, mapping_ != nullptr, length_, committed_length_};
  }

  // Undoes populate(), make_room() and appends since `mark` was taken, the account of memory
  // included; rows that moved stay where they are. REQUIRES: nothing else was called since.
  void take_back(const Mark& mark) noexcept;

  // Whether a pointer leads into this layer's memory.
  bool owns(const void* pointer) const noexcept;

 private:
  Status grow(std::int64_t length, const Placement& placement, std::shared_ptr<Mapping> grown,
              std::int64_t* copied);
  Status allocate(const LayerShape& shape, std::int64_t length, const Placement& placement);
  std::byte* at(std::int64_t offset) const noexcept { return mapping_->region.data + offset; }
  // Calls fn(row, bytes of a token) for what belongs to rows `first` .. `last` of the codes.
  template <typename Fn>
  void for_each_row(std::int64_t first, std::int64_t last, Fn&& fn) const noexcept {
    for (std::int64_t r = first; r < last; ++r) {
      geometry_.for_each_row(r, [&](std::int32_t s, std::int64_t, std::int64_t offset) {
        fn(at(offset), geometry_.strips[s].token_bytes);
      });
    }
  }
  // Returns the whole pages behind the first `length` rows. REQUIRES: length >= length_.
  void decommit_behind(std::int64_t length) noexcept;
  void copy_row(const ContiguousLayer& from, std::int64_t source, std::int64_t target) noexcept;

  bool populated_ = false;
  ContiguousGeometry geometry_;       // of mapping_, if there is one; else only the shape counts
  std::shared_ptr<Mapping> mapping_;  // none: no memory held
  std::int64_t length_ = 0;
  std::int64_t first_position_ = 0;
  std::int64_t ready_length_ = 0;      // rows that lie in committed memory
  std::int64_t committed_length_ = 0;  // rows that memory was committed for
  std::int64_t touched_ = 0;           // rows from here on were never written and read as zeros
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_LAYER_H_
