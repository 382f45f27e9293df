// A face and the naive model of it, side by side: every call goes to both, and all that can be seen
// is compared.
#ifndef KVCACHE_TESTS_MATRIX_WORLD_H_
#define KVCACHE_TESTS_MATRIX_WORLD_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "attention/problem.h"
#include "matrix/face.h"
#include "matrix/list.h"
#include "matrix/rows.h"
#include "support/paged_model.h"

namespace kvcache::testing {

class World {
 public:
  World(const CapabilityList& list, std::unique_ptr<Face> face, const CacheConfig& config,
        double error, std::uint32_t seed)
      : list_(list),
        face_(std::move(face)),
        config_(config),
        rules_(config),
        error_(error),
        random_(seed) {
    // A layered cache keeps everything.
    if (face_->is_dense()) rules_.lives.assign(rules_.lives.size(), Life());
  }

  Face& face() { return *face_; }
  const CacheConfig& config() const { return config_; }
  const PagedModel& rules() const { return rules_; }
  const std::vector<SequenceModel>& seqs() const { return seqs_; }
  std::int64_t num_seqs() const { return static_cast<std::int64_t>(seqs_.size()); }
  std::int64_t length(std::int64_t seq) const { return size_of_tokens(at(seq).tokens); }
  // What came of the calls since the last time, by name.
  Outcomes take_outcomes() { return std::exchange(outcomes_, {}); }
  void note(const Status& status) { outcomes_.insert(list_.outcome_of(status)); }
  // Steps, forks and other changes that were asked of the cache so far.
  std::int64_t operations() const { return operations_; }
  // One of 0 .. bound - 1.
  std::int64_t any(std::int64_t bound) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint32_t>(bound));
  }

  void open() {
    ++operations_;
    ASSERT_EQ(face_->open().to_string(), "ok");
    seqs_.push_back(rules_.open());
  }
  void release(std::int64_t seq) {
    ++operations_;
    const Status status = face_->release(seq);
    note(status);
    if (status.ok()) seqs_.erase(seqs_.begin() + seq);
  }

  // What a step does: of which all, the first or no tokens stay.
  enum class End { kAll, kSome, kNone };

  // One step over all sequences. `options`: attention over each layer's rows is compared with the
  // formula; null: none.
  void step(const Counts& counts, End end = End::kAll, const AttentionOptions* options = nullptr) {
    ++operations_;
    std::vector<Tokens> rows;
    for (const std::int64_t count : counts) rows.push_back(new_tokens(count));
    ASSERT_EQ(face_->begin(counts).to_string(), "ok");
    for (std::int64_t layer = 0; layer < rules_.num_layers(); ++layer) {
      ASSERT_EQ(face_->write(layer, rows).to_string(), "ok");
      if (face_->may_write_again()) {  // the last write counts
        ASSERT_EQ(face_->write(layer, rows).to_string(), "ok");
      }
      if (options != nullptr) check_attention(layer, rows, *options);
      if (!face_->is_dense()) check_slots(layer, rows);
    }
    Counts accepted = counts;
    Status status;
    if (end == End::kNone) {
      status = face_->rollback();
      accepted.assign(counts.size(), 0);
    } else if (end == End::kSome) {
      for (std::int64_t& count : accepted) count = any(count + 1);
      status = face_->commit(&accepted);
    } else {
      status = face_->commit(nullptr);
    }
    if (list_.outcome_of(status) == "no call") accepted = counts;  // rows are there already
    note(status);
    for (std::size_t i = 0; i < seqs_.size(); ++i) {
      rules_.append(seqs_[i], Tokens(rows[i].begin(), rows[i].begin() + accepted[i]));
    }
  }

  // Attention through the layers' own windows, and through none.
  void step_through_wider() {
    ++operations_;
    const Counts counts(seqs_.size(), 1);
    std::vector<Tokens> rows(seqs_.size());
    for (Tokens& row : rows) row = new_tokens(1);
    ASSERT_EQ(face_->begin(counts).to_string(), "ok");
    for (std::int64_t layer = 0; layer < rules_.num_layers(); ++layer) {
      ASSERT_EQ(face_->write(layer, rows).to_string(), "ok");
      check_attention(layer, rows, {});
      const LayerSpec& spec = config_.layers[static_cast<std::size_t>(layer)];
      const HostTensor q = any_queries(num_seqs(), spec.key().dim, 5);
      HostTensor out(DType::kF32, {num_seqs(), kQueryHeads, spec.value().dim});
      note(face_->attend(layer, q, indptr_of(counts), {}, &out));
    }
    ASSERT_EQ(face_->commit(nullptr).to_string(), "ok");
    for (std::size_t i = 0; i < seqs_.size(); ++i) rules_.append(seqs_[i], rows[i]);
  }

  void write_at(const std::vector<Counts>& positions) {
    ++operations_;
    std::vector<Tokens> rows;
    for (const Counts& each : positions) {
      rows.push_back(new_tokens(static_cast<std::int64_t>(each.size())));
    }
    const Status status = face_->write_at(positions, rows);
    note(status);
    if (!status.ok()) return;
    for (std::size_t i = 0; i < seqs_.size(); ++i) {
      for (std::size_t t = 0; t < rows[i].size(); ++t) {
        const auto position = static_cast<std::size_t>(positions[i][t] + seqs_[i].first.front());
        if (position >= seqs_[i].tokens.size()) seqs_[i].tokens.resize(position + 1);
        seqs_[i].tokens[position] = rows[i][t];
      }
    }
  }

  void fork(std::int64_t seq, std::int64_t length) {
    ++operations_;
    const Status status = face_->fork(seq, length);
    if (!agrees(seq, length, status)) return;
    seqs_.push_back(at(seq));
    seqs_.back().cut(length);
  }
  void truncate(std::int64_t seq, std::int64_t n) {
    ++operations_;
    n = std::max(n, least_length(seq));
    const Status status = face_->truncate(seq, n);
    if (agrees(seq, std::min(n, length(seq)), status)) cut(seq, std::min(n, length(seq)));
  }
  void rewind(std::int64_t seq, std::int64_t n) {
    ++operations_;
    n = std::min(n, length(seq) - least_length(seq));
    const Status status = face_->rewind(seq, n);
    if (agrees(seq, length(seq) - n, status)) cut(seq, length(seq) - n);
  }
  // Whether there is such a call.
  bool hold(std::int64_t seq, bool hold) {
    ++operations_;
    const Status status = face_->hold(seq, hold);
    note(status);
    if (status.ok()) rules_.hold(seqs_[static_cast<std::size_t>(seq)], hold);
    return status.ok();
  }
  void reorder(const Counts& beams) {
    ++operations_;
    const Status status = face_->reorder(beams);
    note(status);
    if (!status.ok()) return;
    const std::vector<SequenceModel> before = seqs_;
    for (std::size_t i = 0; i < seqs_.size(); ++i) {
      seqs_[i] = before[static_cast<std::size_t>(beams[i])];
    }
  }
  // Whether there is such a call.
  bool crop(std::int64_t n) {
    ++operations_;
    const Status status = face_->crop(n);
    note(status);
    if (!status.ok()) return false;
    for (SequenceModel& seq : seqs_) {
      for (std::int64_t& first : seq.first) {
        first = std::max(first, size_of_tokens(seq.tokens) - n);
      }
    }
    return true;
  }

  // Everything that can be seen agrees with the model.
  void check() {
    ASSERT_EQ(face_->check().to_string(), "ok");
    Counts lengths, expected;
    for (const SequenceModel& seq : seqs_) expected.push_back(size_of_tokens(seq.tokens));
    ASSERT_EQ(face_->lengths(&lengths).to_string(), "ok");
    ASSERT_EQ(lengths, expected);
    for (std::int64_t layer = 0; layer < rules_.num_layers(); ++layer) {
      const LayerSpec& spec = config_.layers[static_cast<std::size_t>(layer)];
      for (std::int64_t seq = 0; seq < num_seqs(); ++seq) {
        if (face_->is_dense() && length(seq) == 0) continue;
        ASSERT_EQ(face_->first_position(layer, seq).value(),
                  at(seq).first[static_cast<std::size_t>(layer)]);
        HostTensor k, v;
        ASSERT_EQ(face_->gather(layer, seq, &k, &v).to_string(), "ok");
        const Tokens held = rules_.held(at(seq), layer);
        const std::int64_t coded = rules_.coded_rows(at(seq));
        ASSERT_TRUE(are_rows_of(k, spec.key(), held, coded, layer, error_));
        ASSERT_TRUE(are_rows_of(v, spec.value(), held, coded, layer, error_));
      }
    }
  }

  void check_tables() {
    for (std::int64_t layer = 0; layer < rules_.num_layers(); ++layer) {
      for (std::int64_t seq = 0; seq < num_seqs(); ++seq) {
        SequencePages pages;
        const Status status = face_->tables(layer, seq, &pages);
        note(status);
        if (!status.ok()) return;
        const std::set<std::int64_t> live = rules_.live_pages(at(seq), layer);
        ASSERT_EQ(pages.block_table.size(), live.size());
        if (!pages.indices.empty()) {
          ASSERT_EQ(pages.indices, pages.block_table);
          const Counts positions = rules_.positions(at(seq), layer);
          ASSERT_EQ(pages.last_page_len,
                    positions.empty() ? 0 : positions.back() % rules_.page_size + 1);
        }
      }
    }
  }

 private:
  const SequenceModel& at(std::int64_t seq) const { return seqs_[static_cast<std::size_t>(seq)]; }
  // Where a layered cache has been cropped its rows begin.
  std::int64_t least_length(std::int64_t seq) const {
    return face_->is_dense() ? at(seq).first.front() : 0;
  }
  void cut(std::int64_t seq, std::int64_t length) {
    for (std::int64_t i = 0; i < num_seqs(); ++i) {
      if (i != seq && !face_->is_dense()) continue;
      seqs_[static_cast<std::size_t>(i)].cut(length);
    }
  }
  // Whether a return to `length` worked; it must where all layers hold what it needs.
  bool agrees(std::int64_t seq, std::int64_t length, const Status& status) {
    const std::string outcome = list_.outcome_of(status);
    outcomes_.insert(outcome);
    if (outcome == "no call") return false;
    const bool reaches = face_->is_dense() || rules_.reaches(at(seq), length);
    EXPECT_EQ(outcome, reaches ? "passes" : "behind a window") << length;
    return status.ok();
  }
  static std::vector<std::int32_t> indptr_of(const Counts& counts) {
    std::vector<std::int32_t> indptr = {0};
    for (const std::int64_t count : counts) {
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(count));
    }
    return indptr;
  }
  Tokens new_tokens(std::int64_t count) {
    Tokens tokens;
    for (std::int64_t i = 0; i < count; ++i) tokens.push_back(++token_);
    return tokens;
  }

  void check_attention(std::int64_t layer, const std::vector<Tokens>& rows,
                       AttentionOptions options) {
    const LayerSpec& spec = config_.layers[static_cast<std::size_t>(layer)];
    options.window = static_cast<std::int32_t>(spec.life.window);
    options.sink_tokens = spec.life.sink_tokens;
    options.chunk = static_cast<std::int32_t>(spec.life.chunk);
    Counts counts;
    for (const Tokens& row : rows) counts.push_back(size_of_tokens(row));
    const std::vector<std::int32_t> indptr = indptr_of(counts);
    const HostTensor q =
        any_queries(indptr.back(), spec.key().dim, static_cast<std::uint32_t>(random_()));
    HostTensor out(DType::kF32, {indptr.back(), kQueryHeads, spec.value().dim});
    const Status status = face_->attend(layer, q, indptr, options, &out);
    note(status);
    if (!status.ok()) return;
    const std::vector<float> found = values(out), queries = values(q);
    const auto width = static_cast<std::size_t>(kQueryHeads * spec.value().dim);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t dropped = face_->is_dense() ? seqs_[i].first.front() : 0;
      Tokens seen(seqs_[i].tokens.begin() + dropped, seqs_[i].tokens.end());
      for (std::int64_t t = 0; t < counts[i]; ++t) {
        seen.push_back(rows[i][static_cast<std::size_t>(t)]);
        const std::int64_t row = indptr[i] + t;
        const Attended expected =
            attention_by_formula(queries.data() + row * kQueryHeads * spec.key().dim, spec, layer,
                                 seen, rules_.coded_rows(seqs_[i]), dropped);
        const double rounding =
            rounding_of(spec, counts[i] > internal::kDecodeQueries && !options.reproducible);
        for (std::size_t d = 0; d < width; ++d) {
          const double got = found[static_cast<std::size_t>(row) * width + d];
          const double spread = expected.spreads[d * kQueryHeads / width];
          ASSERT_LE(std::abs(got - expected.out[d]), rounding * spread)
              << "layer " << layer << " row " << row << " element " << d;
        }
      }
    }
  }

  // How far an element of attention may be from the formula for what is rounded on the way, where
  // one row has all weight. Roundings are independent of each other, so n rows that weigh alike
  // come nearer by sqrt(n), and a row left out of many is seen. At least twice the worst met in
  // millions of rows: 1.5e-6, 7.6e-4 and 9.1e-3 of plain f32, f16 and bf16, 1.4e-4 of coded rows,
  // 9.2e-3 where a prefill rounds all to bf16.
  double rounding_of(const LayerSpec& spec, bool prefill) const {
    const auto of = [&](const RowFormat& format) {
      if (format.is_coded()) return prefill ? 2e-2 : 5e-4;
      if (format.dtype == DType::kF32) return 5e-6;
      return format.dtype == DType::kF16 ? 2e-3 : 2e-2;
    };
    return std::max(of(spec.key().format), of(spec.value().format));
  }

  void check_slots(std::int64_t layer, const std::vector<Tokens>& rows) {
    Pages slots;
    const Status status = face_->slots(layer, &slots);
    if (!status.ok()) return;
    std::size_t i = 0;
    for (std::int64_t seq = 0; seq < num_seqs(); ++seq) {
      const std::int64_t count = size_of_tokens(rows[static_cast<std::size_t>(seq)]);
      for (std::int64_t t = 0; t < count; ++t, ++i) {
        ASSERT_EQ(slots.at(i) % rules_.page_size, (length(seq) + t) % rules_.page_size);
      }
    }
    ASSERT_EQ(i, slots.size());
  }

  const CapabilityList& list_;
  std::unique_ptr<Face> face_;
  CacheConfig config_;
  PagedModel rules_;
  double error_;
  std::mt19937 random_;
  std::vector<SequenceModel> seqs_;
  Outcomes outcomes_;
  double token_ = 0;
  std::int64_t operations_ = 0;
};

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_WORLD_H_
