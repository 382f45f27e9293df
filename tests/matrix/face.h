// One face of the same sequences: what the operations of the matrix call. Sequences go by number;
// a step is over all of them. What a face has no call for is no_call().
#ifndef KVCACHE_TESTS_MATRIX_FACE_H_
#define KVCACHE_TESTS_MATRIX_FACE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kvcache/attention.h"
#include "kvcache/paged_cache.h"
#include "matrix/list.h"
#include "matrix/rows.h"
#include "support/paged.h"

namespace kvcache::testing {

// Page ids of a sequence in one layer, as each form of table says it.
struct SequencePages {
  Pages block_table;  // without the unused
  Pages indices;      // of page_indices; empty where the face has only block tables
  std::int32_t last_page_len = 0;
};

class Face {
 public:
  virtual ~Face() = default;
  virtual const char* name() const = 0;

  // Whether all sequences are of one length.
  virtual bool is_dense() const { return false; }

  // Whether a layer of the open step may be written again.
  virtual bool may_write_again() const { return !is_dense(); }

  virtual Status open() = 0;
  virtual Status release(std::int64_t seq) = 0;

  // rows[i] are the new tokens of sequence i. begin, write every layer, attend, commit.
  virtual Status begin(const Counts& counts) = 0;
  virtual Status write(std::int64_t layer, const std::vector<Tokens>& rows) = 0;
  virtual Status commit(const Counts* accepted) = 0;
  virtual Status rollback() = 0;
  // Of the open step's rows of a layer.
  virtual Status attend(std::int64_t layer, const HostTensor& q,
                        const std::vector<std::int32_t>& indptr, const AttentionOptions& options,
                        HostTensor* out) = 0;

  // Replaces committed rows, all layers: positions [B][n], tokens likewise.
  virtual Status write_at(const std::vector<Counts>&, const std::vector<Tokens>&) {
    return no_call();
  }
  // The new sequence is the last.
  virtual Status fork(std::int64_t seq, std::int64_t length) = 0;
  virtual Status reorder(const Counts& beams) = 0;
  virtual Status truncate(std::int64_t seq, std::int64_t n) = 0;
  virtual Status rewind(std::int64_t seq, std::int64_t n) = 0;
  virtual Status crop(std::int64_t) { return no_call(); }
  virtual Status hold(std::int64_t, bool) { return no_call(); }

  // What a layer holds of a sequence: K and V, float32 [S, heads, dim].
  virtual Status gather(std::int64_t layer, std::int64_t seq, HostTensor* k, HostTensor* v) = 0;
  virtual Status lengths(Counts* lengths) = 0;
  virtual Result<std::int64_t> first_position(std::int64_t layer, std::int64_t seq) = 0;
  virtual Status tables(std::int64_t, std::int64_t, SequencePages*) { return no_call(); }
  virtual Status slots(std::int64_t, Pages*) { return no_call(); }  // of the open step

  virtual Status snapshot(std::int64_t) { return no_call(); }
  virtual Status remove(std::int64_t, std::int64_t, std::int64_t) { return no_call(); }
  virtual Status shift(std::int64_t, std::int64_t, std::int64_t, std::int64_t) { return no_call(); }
  virtual Status parents(std::int64_t) { return no_call(); }

  // The bookkeeping agrees with itself.
  virtual Status check() const { return {}; }
};

// A face of sequences over layers of `config`, none open. Errors: those of creating the cache.
using MakeFace = Result<std::unique_ptr<Face>> (*)(const CacheConfig& config);

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_FACE_H_
