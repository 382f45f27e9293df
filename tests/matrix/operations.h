// The operations of the matrix, by the names that capabilities.json has for them. Each tries what
// it may do, near and far, and leaves a world that goes on.
#ifndef KVCACHE_TESTS_MATRIX_OPERATIONS_H_
#define KVCACHE_TESTS_MATRIX_OPERATIONS_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

#include "matrix/world.h"

namespace kvcache::testing {

using OperationScript = void (*)(World& world);

// As many new tokens of every sequence.
inline Counts each(const World& world, std::int64_t count) {
  return Counts(static_cast<std::size_t>(world.num_seqs()), count);
}
// Different counts where the face can have them.
inline Counts mixed(World& world, std::int64_t most) {
  Counts counts = each(world, most);
  if (!world.face().is_dense()) {
    for (std::int64_t& count : counts) count = world.any(most + 1);
  }
  return counts;
}
inline std::int64_t any_seq(World& world) { return world.any(world.num_seqs()); }
inline std::int64_t longest(const World& world) {
  std::int64_t seq = 0;
  for (std::int64_t i = 1; i < world.num_seqs(); ++i) {
    if (world.length(i) > world.length(seq)) seq = i;
  }
  return seq;
}

inline const std::map<std::string, OperationScript>& operation_scripts() {
  static const AttentionOptions plain_options;
  static const AttentionOptions reproducible = [] {
    AttentionOptions options;
    options.reproducible = true;
    return options;
  }();
  static const std::map<std::string, OperationScript> scripts = {
      {"append",
       [](World& w) {
         w.step(each(w, 1));
         w.step(mixed(w, 3));
         w.step(mixed(w, 7));
       }},
      {"positional write",
       [](World& w) {
         const std::int64_t rows = w.length(0) - w.seqs().front().first.front();
         if (!w.face().is_dense()) return w.note(w.face().write_at({}, {}));
         if (rows < 2) return w.step(each(w, 2));
         w.write_at(std::vector<Counts>(std::size_t(w.num_seqs()), {rows - 1, 0}));
         std::vector<Counts> own;
         for (std::int64_t i = 0; i < w.num_seqs(); ++i) own.push_back({w.any(rows), rows});
         w.write_at(own);
       }},
      {"fork",
       [](World& w) {
         const std::int64_t seq = longest(w);
         w.fork(seq, w.length(seq));
         if (!w.face().is_dense()) {
           w.fork(seq, std::max<std::int64_t>(0, w.length(seq) - 1));
           w.fork(seq, std::max<std::int64_t>(0, w.length(seq) - 3));
           w.fork(seq, 0);
         }
         w.step(each(w, 1));
       }},
      {"reorder",
       [](World& w) {
         Counts beams;
         for (std::int64_t i = 0; i < w.num_seqs(); ++i) beams.push_back(any_seq(w));
         w.reorder(beams);
         w.step(each(w, 1));
       }},
      {"truncate",
       [](World& w) {
         const std::int64_t seq = longest(w);
         w.truncate(seq, w.length(seq) + 1);
         w.truncate(seq, std::max<std::int64_t>(0, w.length(seq) - 1));
         w.step(each(w, 1));
         w.truncate(seq, 1);
         w.truncate(any_seq(w), w.length(0) / 2);
       }},
      {"rewind",
       [](World& w) {
         const std::int64_t seq = longest(w);
         w.rewind(seq, 0);
         w.rewind(seq, std::min<std::int64_t>(1, w.length(seq)));
         w.step(each(w, 1));
         w.rewind(seq, w.length(seq) - 1);
         const std::int64_t other = any_seq(w);
         w.rewind(other, w.length(other) / 2);
       }},
      {"hold rows",
       [](World& w) {
         const std::int64_t seq = longest(w);
         if (!w.hold(seq, true)) return;
         for (int i = 0; i < 3; ++i) w.step(each(w, 3));
         w.rewind(seq, 7);
         w.hold(seq, false);
         w.step(each(w, 1));
       }},
      {"crop",
       [](World& w) {
         if (w.crop(6)) w.step(each(w, 1));
       }},
      {"rollback", [](World& w) { w.step(mixed(w, 5), World::End::kNone); }},
      {"partial accept",
       [](World& w) {
         w.step(mixed(w, 5), World::End::kSome);
         w.step(each(w, 3), World::End::kSome);
       }},
      {"gather", [](World& w) { w.note({}); }},  // check() gathers all there is
      {"tables", [](World& w) { w.check_tables(); }},
      {"attention, decode",
       [](World& w) {
         w.step(each(w, 1), World::End::kAll, &plain_options);
         w.step(mixed(w, 4), World::End::kAll, &plain_options);
       }},
      {"attention, prefill",
       [](World& w) { w.step(each(w, 9 + w.any(4)), World::End::kAll, &plain_options); }},
      {"attention, reproducible",
       [](World& w) {
         w.step(each(w, 1), World::End::kAll, &reproducible);
         w.step(mixed(w, 10), World::End::kAll, &reproducible);
       }},
      {"attention, wider", [](World& w) { w.step_through_wider(); }},
      {"release",
       [](World& w) {
         if (w.num_seqs() > 1) w.release(any_seq(w));
         w.note({});
         w.step(each(w, 1));
       }},
      {"snapshot", [](World& w) { w.note(w.face().snapshot(0)); }},
      {"remove", [](World& w) { w.note(w.face().remove(0, 1, 2)); }},
      {"shift", [](World& w) { w.note(w.face().shift(0, 1, 2, 1)); }},
      {"parents", [](World& w) { w.note(w.face().parents(0)); }},
  };
  return scripts;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_OPERATIONS_H_
